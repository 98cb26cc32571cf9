//! Frames between a worker and a process that answers many calls (docs/reference/handler-protocol.md).
//!
//! The process finds two pipes: calls come on its standard input, and its answers go to the descriptor [`ANSWERS`]. A
//! frame is a header of [`HEADER`] bytes and a body: `length: u32, kind: u8, zero: [u8; 3], id: u64`, little-endian, the length that of the body. Many frames may
//! be under way; an answer names its call by the id.
//!
//! ```text
//! worker                                  process
//!   │ ◀──────────────────────── ready ─────── │   it may be called from now on
//!   │ ── call: context, params, body ───────▶ │
//!   │ ◀──────────────── result | reply | exception ──── │
//!   │ ◀─────────────── or: stream, then pieces, done ── │
//!   │ ── credit, stop ──────────────────────▶ │   of a stream
//!   │ ◀─────────────────────────────── ended ── │   where each call has a process of its own
//! ```

/// The descriptor that a process answers on.
pub const ANSWERS: i32 = 3;
/// The bytes before each body.
pub const HEADER: usize = 16;
/// The id of a ready frame whose process forks for each call; 0 for any other.
pub const FORKS: u64 = 1;
/// The credit of a stream at its beginning, in bytes.
pub const STREAM_CREDIT: u32 = 64 * 1024;
/// The least credit that a piece of a stream costs, in bytes: every piece takes memory.
pub const LEAST_COST: u32 = 64;
/// The bytes at the beginning of a call's frame, before its context: the lengths of the context and of the params.
pub const LENGTHS: usize = 8;
/// The bytes at the beginning of the frame of an exception or a reply: the length of its message, or of its head.
const LENGTH: usize = 4;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the process: the lengths of context and params, each a `u32`, the context in JSON, the params in JSON, and the
    /// request's body where that is not the params.
    Call,
    /// To an interpreter that waits without code: what [`begin`] makes. Only our own shim is ever sent this.
    Begin,
    /// To the process: more credit for a stream, in bytes, a `u32`; a stream begins with [`STREAM_CREDIT`].
    Credit,
    /// To the process: the reader of a stream is gone.
    Stop,
    /// From the process: it may be called.
    Ready,
    /// From the process: what a call answers, a text as it is, anything else in JSON.
    Result,
    /// From the process: an answer with a head: the length of that as `u32`, the head in JSON (`{"status", "headers"}`, the
    /// latter pairs of name and value), and the body.
    Reply,
    /// From the process: a call failed; the message's length as `u32`, the message, and where it came from.
    Exception,
    /// From the process: a streamed answer begins; its head in JSON, as in a reply.
    Stream,
    /// From the process: a piece of a stream, which costs as many bytes of credit, and [`LEAST_COST`] at least.
    Piece,
    /// From the process: a stream is whole.
    Done,
    /// From a process that forks for each call: the call's own process has ended, as wait(2) tells it, a `u32`.
    Ended,
}

impl Kind {
    /// The byte that says so.
    pub fn byte(self) -> u8 {
        match self {
            Self::Call => 1,
            Self::Begin => 2,
            Self::Credit => 3,
            Self::Stop => 4,
            Self::Ready => 0x80,
            Self::Result => 0x81,
            Self::Exception => 0x82,
            Self::Ended => 0x83,
            Self::Reply => 0x84,
            Self::Stream => 0x85,
            Self::Piece => 0x86,
            Self::Done => 0x87,
        }
    }

    /// What a byte says.
    pub fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 12] = [
            Kind::Call,
            Kind::Begin,
            Kind::Credit,
            Kind::Stop,
            Kind::Ready,
            Kind::Result,
            Kind::Exception,
            Kind::Ended,
            Kind::Reply,
            Kind::Stream,
            Kind::Piece,
            Kind::Done,
        ];
        ALL.into_iter().find(|kind| kind.byte() == byte)
    }
}

/// What stands before a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Which call it belongs to; 0 for none.
    pub id: u64,
    /// The body's length in bytes.
    pub length: u32,
}

impl Header {
    /// The bytes that travel.
    pub fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4] = self.kind.byte();
        bytes[8..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }

    /// Reads what travelled; none where it is no header.
    pub fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let [a, b, c, d, kind, 0, 0, 0, id @ ..] = *bytes else { return None };
        Some(Self {
            kind: Kind::from_byte(kind)?,
            id: u64::from_le_bytes(id),
            length: u32::from_le_bytes([a, b, c, d]),
        })
    }
}

/// What a process is to do, for an interpreter that is there already: each variable with a NUL behind it, a NUL, the
/// words with a NUL between them.
pub fn begin<'a>(env: impl Iterator<Item = (&'a str, &'a str)>, words: &[String]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in env {
        body.extend([name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    body.extend(words.join("\0").into_bytes());
    body
}

/// Splits what an exception's frame carries into message and origin, and what a reply's does into head and body.
pub fn split(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = body.split_first_chunk::<LENGTH>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// What a call's frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// What the process is told of the call, in JSON.
    pub context: &'a [u8],
    /// The params, in JSON.
    pub params: &'a [u8],
    /// The body of the request, where that is not the params; empty otherwise.
    pub body: &'a [u8],
}

impl<'a> Call<'a> {
    /// Splits what the frame carries; none where it is too short for what it says.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let ([a, b, c, d, params @ ..], rest) = bytes.split_first_chunk::<LENGTHS>()?;
        let (context, rest) = rest.split_at_checked(u32::from_le_bytes([*a, *b, *c, *d]) as usize)?;
        let (params, body) = rest.split_at_checked(u32::from_le_bytes(*params) as usize)?;
        Some(Self { context, params, body })
    }

    /// Writes the frame but for the params and the body, which follow as they are.
    pub fn begin(&self, id: u64, out: &mut Vec<u8>) {
        // Both are bounded to some megabytes (docs/reference/guarantees.md).
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let whole = LENGTHS + self.context.len() + self.params.len() + self.body.len();
        out.extend_from_slice(&Header { kind: Kind::Call, id, length: length(whole) }.encode());
        out.extend_from_slice(&length(self.context.len()).to_le_bytes());
        out.extend_from_slice(&length(self.params.len()).to_le_bytes());
        out.extend_from_slice(self.context);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_as_itself() {
        let header = Header { kind: Kind::Exception, id: u64::MAX - 1, length: 70_000 };
        assert_eq!(Header::decode(&header.encode()), Some(header));
    }

    #[test]
    fn what_is_no_header_is_told() {
        let mut bytes = Header { kind: Kind::Ready, id: 0, length: 0 }.encode();
        bytes[5] = 1;
        assert_eq!(Header::decode(&bytes), None);
        assert_eq!(Header::decode(&[7; HEADER]), None);
    }

    #[test]
    fn a_body_is_split_where_it_says() {
        assert_eq!(split(&[2, 0, 0, 0, b'{', b'}', b'1']), Some((&b"{}"[..], &b"1"[..])));
        assert_eq!(split(&[9, 0, 0, 0, b'x']), None);
        assert_eq!(split(&[9, 0]), None);
    }

    #[test]
    fn a_call_is_split_where_it_says() {
        let call = Call { context: b"{}", params: b"7", body: b"body" };
        let mut frame = Vec::new();
        call.begin(5, &mut frame);
        frame.extend_from_slice(b"7body");
        let (header, bytes) = frame.split_first_chunk().unwrap();
        assert_eq!(Header::decode(header), Some(Header { kind: Kind::Call, id: 5, length: 15 }));
        assert_eq!(Call::decode(bytes), Some(call));
        assert_eq!(Call::decode(&bytes[..11]), Some(Call { context: b"{}", params: b"7", body: b"" }));
        assert_eq!(Call::decode(&bytes[..10]), None);
        assert_eq!(Call::decode(&bytes[..7]), None);
    }
}
