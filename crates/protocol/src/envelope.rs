//! The outer form of every message.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The version of the protocol; a peer that speaks another is refused.
pub const VERSION: u32 = 1;
/// The largest message that is taken in. Payloads over 64 KB go by the blob store, so this is generous.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// `{v, id, msgType, content}`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope {
    /// [`VERSION`] of who wrote it.
    pub v: u32,
    /// Names the request; its reply carries the same, and so does a request that is sent again.
    pub id: String,
    /// Which message it is.
    pub msg_type: String,
    /// The message itself.
    pub content: Box<RawValue>,
}

/// Why bytes are no message for us.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Larger than [`MAX_MESSAGE`].
    #[error("a message of {0} bytes is over the limit of {MAX_MESSAGE}")]
    TooLarge(usize),
    /// No JSON of this form.
    #[error("a message is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by another version.
    #[error("a message is of protocol version {0}, this is version {VERSION}; update the older side")]
    Version(u32),
    /// A message type nobody knows here.
    #[error("unknown message type {0:?}")]
    UnknownType(String),
}

impl Envelope {
    /// Wraps a message.
    ///
    /// # Errors
    /// What serde_json says of a value that is no JSON, which no type of this crate is.
    pub fn new(id: impl Into<String>, msg_type: &str, content: &impl Serialize) -> Result<Self, EnvelopeError> {
        let content = serde_json::value::to_raw_value(content)?;
        Ok(Self { v: VERSION, id: id.into(), msg_type: msg_type.to_owned(), content })
    }

    /// The bytes that travel.
    ///
    /// # Errors
    /// A message over [`MAX_MESSAGE`].
    pub fn encode(&self) -> Result<Vec<u8>, EnvelopeError> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() > MAX_MESSAGE { Err(EnvelopeError::TooLarge(bytes.len())) } else { Ok(bytes) }
    }

    /// Reads what travelled.
    ///
    /// # Errors
    /// Bytes that are too many, no envelope, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(EnvelopeError::TooLarge(bytes.len()));
        }
        let envelope: Self = serde_json::from_slice(bytes)?;
        if envelope.v == VERSION { Ok(envelope) } else { Err(EnvelopeError::Version(envelope.v)) }
    }

    /// Reads the message inside.
    ///
    /// # Errors
    /// Content that is no `T`.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, EnvelopeError> {
        Ok(serde_json::from_str(self.content.get())?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_reads_back_as_itself() {
        let bytes = Envelope::new("7", "ping", &[1, 2, 3]).unwrap().encode().unwrap();
        let envelope = Envelope::decode(&bytes).unwrap();
        assert_eq!((envelope.id.as_str(), envelope.msg_type.as_str()), ("7", "ping"));
        assert_eq!(envelope.parse::<Vec<u8>>().unwrap(), [1, 2, 3]);
    }

    #[test]
    fn another_version_is_named() {
        let error = Envelope::decode(br#"{"v":9,"id":"1","msgType":"x","content":null}"#).unwrap_err();
        assert!(error.to_string().contains("version 9"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Envelope::decode(&bytes);
        }
    }
}
