//! Bytes that travel with a message, or beside it.

use serde::{Deserialize, Serialize};

use crate::BlobKey;

/// The largest text that travels inside a message; what is larger goes by the blob store.
pub const MAX_INLINE: usize = 64 * 1024;

/// Params, a body, a result or a log: short texts inline, everything else by reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Payload {
    /// The text itself, at most [`MAX_INLINE`] bytes.
    Text(String),
    /// The bytes lie in the blob store.
    Blob {
        /// Their name there.
        key: BlobKey,
        /// How many they are.
        bytes: u64,
        /// Whether they are UTF-8.
        utf8: bool,
    },
}

impl Payload {
    /// No bytes at all.
    pub fn empty() -> Self {
        Self::Text(String::new())
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Blob { bytes, .. } => *bytes,
        }
    }

    /// How many of them lie in memory with it.
    pub fn inline_len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Blob { .. } => 0,
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
