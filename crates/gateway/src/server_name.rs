//! The server's name in the first message of TLS: whom a client means that has connected to a name.
//!
//! Many names may share an address, so a rule for one of them would open all. Where a connection that was dialled by name
//! begins with a ClientHello, the name in it has to be one that the function's rules permit (RFC 8446, 4.1.2; RFC 6066, 3).

/// The longest ClientHello that is waited for, in bytes; ordinary ones have up to two thousand.
const LONGEST: usize = 16 * 1024;

/// What the first bytes of a client say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They may be a ClientHello that is not whole yet.
    Unfinished,
    /// They are none, or they name what is permitted, or nothing.
    Permitted,
    /// They name something else, or are a ClientHello that cannot be read.
    Refused,
}

/// Judges the first bytes of a client by the names that are permitted: `api.example.org`, `*.example.org`.
pub fn judge(bytes: &[u8], names: &[String]) -> Verdict {
    // A record of the kind "handshake" of some version 3.x; whatever begins otherwise is not TLS.
    match bytes {
        [] | [22] => return Verdict::Unfinished,
        [22, 3, ..] => {}
        _ => return Verdict::Permitted,
    }
    match server_name(bytes) {
        Err(Incomplete) if bytes.len() < LONGEST => Verdict::Unfinished,
        Err(Incomplete) | Ok(Hello::Malformed) => Verdict::Refused,
        Ok(Hello::Nameless) => Verdict::Permitted,
        Ok(Hello::Named(name)) if names.iter().any(|permitted| is_named(permitted, &name)) => Verdict::Permitted,
        Ok(Hello::Named(_)) => Verdict::Refused,
    }
}

/// Whether a name is a permitted one, or lies below a pattern.
fn is_named(permitted: &str, name: &str) -> bool {
    match permitted.strip_prefix('*') {
        Some(below) => name.len() > below.len() && name.ends_with(below),
        None => name == permitted,
    }
}

/// More bytes are needed.
struct Incomplete;

#[derive(Debug, PartialEq, Eq)]
enum Hello {
    /// In lower case.
    Named(String),
    Nameless,
    Malformed,
}

/// Takes bytes from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, length: usize) -> Option<usize> {
        Some(self.take(length)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// A vector whose length stands before it, in so many bytes.
    fn vector(&mut self, length: usize) -> Option<&'a [u8]> {
        let length = self.number(length)?;
        self.take(length)
    }
}

/// The first handshake message, which may take several records; as far as it has come. What follows it is not looked at.
fn handshake(bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut records, mut message) = (Reader(bytes), Vec::new());
    let is_whole = |message: &[u8]| {
        let mut message = Reader(message);
        message.take(1).and_then(|_| message.vector(3)).is_some()
    };
    while let Some([kind, ..]) = records.0.get(..5) {
        if is_whole(&message) {
            break;
        }
        if *kind != 22 {
            return None;
        }
        records.take(3);
        let length = records.number(2)?;
        let there = length.min(records.0.len());
        message.extend_from_slice(records.take(there)?);
    }
    Some(message)
}

fn server_name(bytes: &[u8]) -> Result<Hello, Incomplete> {
    let Some(message) = handshake(bytes) else { return Ok(Hello::Malformed) };
    let mut message = Reader(&message);
    let kind = message.number(1).ok_or(Incomplete)?;
    let length = message.number(3).ok_or(Incomplete)?;
    if kind != 1 || length > LONGEST {
        return Ok(Hello::Malformed);
    }
    let hello = message.take(length).ok_or(Incomplete)?;
    Ok(name_in(hello).unwrap_or(Hello::Malformed))
}

/// The name in a whole ClientHello; none for one that is malformed.
fn name_in(hello: &[u8]) -> Option<Hello> {
    let mut hello = Reader(hello);
    // Version and random; session, cipher suites and compression methods.
    hello.take(2 + 32)?;
    hello.vector(1)?;
    hello.vector(2)?;
    hello.vector(1)?;
    if hello.0.is_empty() {
        return Some(Hello::Nameless);
    }
    let mut extensions = Reader(hello.vector(2)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let body = extensions.vector(2)?;
        if kind != 0 {
            continue;
        }
        let mut names = Reader(Reader(body).vector(2)?);
        // The first name is the only one (RFC 6066, 3); 0 stands for the name of a host.
        let kind = names.number(1)?;
        let name = std::str::from_utf8(names.vector(2)?).ok()?;
        return (kind == 0).then(|| Hello::Named(name.trim_end_matches('.').to_ascii_lowercase()));
    }
    Some(Hello::Nameless)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sized(length: usize, bytes: &[u8]) -> Vec<u8> {
        let size = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        [&size[4 - length..], bytes].concat()
    }

    /// A ClientHello that names a host, in records of so many bytes.
    fn hello(name: Option<&str>, record: usize) -> Vec<u8> {
        let named = name.map(|name| {
            let entry = [&[0][..], &sized(2, name.as_bytes())].concat();
            [&[0, 0][..], &sized(2, &sized(2, &entry))].concat()
        });
        let other = [0, 10, 0, 2, 0, 29];
        let extensions = [&other[..], &named.unwrap_or_default()].concat();
        let body = [
            &[3, 3][..],
            &[7; 32],
            &sized(1, &[9; 32]),
            &sized(2, &[0x13, 0x01]),
            &sized(1, &[0]),
            &sized(2, &extensions),
        ]
        .concat();
        let message = [&[1][..], &sized(3, &body)].concat();
        message.chunks(record).flat_map(|part| [&[22, 3, 1][..], &sized(2, part)].concat()).collect()
    }

    fn judged(bytes: &[u8]) -> Verdict {
        judge(bytes, &["api.example.org".to_owned(), "*.b.example".to_owned()])
    }

    #[test]
    fn the_name_has_to_be_a_permitted_one() {
        for (name, verdict) in [
            ("api.example.org", Verdict::Permitted),
            ("API.Example.org.", Verdict::Permitted),
            ("x.b.example", Verdict::Permitted),
            ("b.example", Verdict::Refused),
            ("other.example.org", Verdict::Refused),
            ("", Verdict::Refused),
        ] {
            for record in [1, 50, 16_000] {
                assert_eq!(judged(&hello(Some(name), record)), verdict, "{name} {record}");
            }
        }
        assert_eq!(judged(&hello(None, 16_000)), Verdict::Permitted);
    }

    #[test]
    fn what_is_not_whole_is_waited_for() {
        let whole = hello(Some("other.example.org"), 100);
        for length in 0..whole.len() {
            assert_eq!(judged(&whole[..length]), Verdict::Unfinished, "{length}");
        }
        assert_eq!(judged(&[whole.clone(), b"more".to_vec()].concat()), Verdict::Refused);
        // Early data follows in records of other kinds (RFC 8446, 4.2.10).
        let early = [&hello(Some("api.example.org"), 100)[..], &[20, 3, 3, 0, 1, 1], &[23, 3, 3, 0, 2, 9, 9]].concat();
        assert_eq!(judged(&early), Verdict::Permitted);
    }

    #[test]
    fn other_protocols_pass_and_broken_hellos_do_not() {
        for bytes in [&b"GET / HTTP/1.1"[..], b"\x16\x05", b"\x00\x00\x00\x08", b"EHLO x"] {
            assert_eq!(judged(bytes), Verdict::Permitted);
        }
        // Another message, another record in between, and one that never ends.
        assert_eq!(judged(&[22, 3, 1, 0, 4, 2, 0, 0, 0]), Verdict::Refused);
        assert_eq!(judged(&[22, 3, 1, 0, 1, 1, 23, 3, 1, 0, 0]), Verdict::Refused);
        assert_eq!(judged(&[22, 3, 1].repeat(LONGEST)), Verdict::Refused);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut random = fastrand::Rng::with_seed(443);
        let whole = hello(Some("api.example.org"), 60);
        for _ in 0..100_000 {
            let mut bytes = whole.clone();
            for _ in 0..random.usize(1..5) {
                let at = random.usize(2..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(0..=bytes.len()));
            judged(&bytes);
        }
    }
}
