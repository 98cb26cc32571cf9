//! Heads as bytes.

/// The head of a message, as it was read.
#[derive(Debug)]
pub struct Head(pub(crate) Vec<u8>);

const END: &[u8] = b"\r\n\r\n";

/// Where a head ends, looked for from an offset on.
pub(crate) fn end(bytes: &[u8], from: usize) -> Option<usize> {
    bytes[from.min(bytes.len())..].windows(END.len()).position(|at| at == END).map(|at| from + at + END.len())
}

/// Whether it is an answer before the real one: 100, 103.
pub(crate) fn is_interim(head: &[u8]) -> bool {
    head.starts_with(b"HTTP/1.") && head.get(8..10) == Some(b" 1")
}

/// Whether a name is as hyper's `title_case_headers` writes it: each word begins with a capital.
pub(crate) fn is_canonical(name: &str) -> bool {
    let mut is_first = true;
    name.bytes().all(|byte| {
        let is_right = if is_first { !byte.is_ascii_lowercase() } else { !byte.is_ascii_uppercase() };
        is_first = byte == b'-';
        is_right
    })
}

/// A name as it is written where nothing else is known: each word begins with a capital.
pub fn canonical(name: &str) -> String {
    let mut is_first = true;
    let bytes = name.chars().map(|c| {
        let written = if is_first { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
        is_first = c == '-';
        written
    });
    bytes.collect()
}

/// The places of the names in a head, after its first line.
fn names(head: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut begin = 0;
    head.split_inclusive(|byte| *byte == b'\n').filter_map(move |line| {
        let start = begin;
        begin += line.len();
        let length = line.iter().position(|byte| *byte == b':')?;
        (start > 0).then_some(start..start + length)
    })
}

/// Replaces names that differ in case alone; false where the message does not begin with a whole head.
pub(crate) fn rename(message: &mut [u8], to: &[String]) -> bool {
    let Some(end) = end(message, 0) else { return false };
    let head = &mut message[..end];
    let places: Vec<_> = names(head).collect();
    for place in places {
        let name = &mut head[place];
        if let Some(written) = to.iter().find(|written| written.as_bytes().eq_ignore_ascii_case(name)) {
            name.copy_from_slice(written.as_bytes());
        }
    }
    true
}

impl Head {
    /// Whether it is that of a request with this method and target.
    pub fn is_request(&self, method: &str, target: &str) -> bool {
        let parts = [method, " ", target, " HTTP/"];
        parts.iter().try_fold(&self.0[..], |rest, part| rest.strip_prefix(part.as_bytes())).is_some()
    }

    /// A name as it was written, the first time where it is repeated.
    pub fn name(&self, name: &str) -> Option<&str> {
        let places = names(&self.0).map(|place| &self.0[place]);
        let mut written = places.filter(|written| written.eq_ignore_ascii_case(name.as_bytes()));
        std::str::from_utf8(written.next()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_names_are_those_that_hyper_writes() {
        for name in ["X-Request-Id", "Etag", "Sec-Websocket-Key", "X-1-A", "-"] {
            assert!(is_canonical(name) && canonical(&name.to_lowercase()) == name, "{name}");
        }
        for name in ["X-Request-ID", "ETag", "x-a", "X-a", "WWW-Authenticate"] {
            assert!(!is_canonical(name), "{name}");
        }
    }
}
