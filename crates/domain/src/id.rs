//! Numbers and identities the platform gives.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

numbers! {
    /// The number of a call, from 1; never used twice, gaps are allowed.
    CallNum;
    /// How often a call or a build was claimed; every write after a claim names it, so a late one is told apart.
    Epoch;
    /// The number of a function's version, from 1.
    Version;
    /// The number of a runtime's revision, from 1.
    Revision;
}

impl Epoch {
    /// The epoch of the claim after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl FromStr for CallNum {
    type Err = InvalidCallNum;

    fn from_str(text: &str) -> Result<Self, InvalidCallNum> {
        let plain = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        match text.parse() {
            Ok(number) if plain && number > 0 => Ok(Self(number)),
            _ => Err(InvalidCallNum { text: text.chars().take(80).collect() }),
        }
    }
}

/// A text that is no call number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no call number: call numbers are decimal and begin at 1")]
pub struct InvalidCallNum {
    /// The text as it came, cut at 80 characters.
    pub text: String,
}

/// Who holds a claim: one run of one worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// The worker's name, the same after a restart.
    pub worker: String,
    /// One run of that worker, new with each start of the process.
    pub incarnation: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.worker, self.incarnation)
    }
}

/// The function whose value names a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DigestKind {
    /// SHA-256, which people compare: archives, artifacts, images.
    Sha256,
    /// BLAKE3, which costs a tenth: what calls carry.
    Blake3,
}

impl DigestKind {
    /// The name of the algorithm.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
        }
    }
}

/// The name of a blob: the digest of its bytes. As a text it is 64 hexadecimal digits, after `blake3-` where it is no
/// SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlobKey {
    digest: DigestKind,
    value: [u8; 32],
}

/// What a key begins with that is no SHA-256.
const BLAKE3: &str = "blake3-";

impl BlobKey {
    /// The key of a blob whose digest has this value.
    pub fn new(digest: DigestKind, value: [u8; 32]) -> Self {
        Self { digest, value }
    }

    /// Which digest it is.
    pub fn digest(&self) -> DigestKind {
        self.digest
    }

    /// The value in hexadecimal digits.
    pub fn digits(&self) -> String {
        let digits = self.to_string();
        digits.strip_prefix(BLAKE3).map(str::to_owned).unwrap_or(digits)
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.digest == DigestKind::Blake3 {
            f.write_str(BLAKE3)?;
        }
        f.write_str(&hex::encode(self.value))
    }
}

impl fmt::Debug for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no blob key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a blob key is 64 lower-case hexadecimal digits, or those behind blake3-")]
pub struct InvalidBlobKey;

impl FromStr for BlobKey {
    type Err = InvalidBlobKey;

    fn from_str(text: &str) -> Result<Self, InvalidBlobKey> {
        let (digest, text) = match text.strip_prefix(BLAKE3) {
            Some(text) => (DigestKind::Blake3, text),
            None => (DigestKind::Sha256, text),
        };
        // A key has one text: a path must not lead to the same blob by two names.
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(InvalidBlobKey);
        }
        let mut key = [0; 32];
        hex::decode_to_slice(text, &mut key).map_err(|_| InvalidBlobKey)?;
        Ok(Self::new(digest, key))
    }
}

impl TryFrom<String> for BlobKey {
    type Error = InvalidBlobKey;
    fn try_from(text: String) -> Result<Self, InvalidBlobKey> {
        text.parse()
    }
}

impl From<BlobKey> for String {
    fn from(key: BlobKey) -> String {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_plain_positive_decimals_are_call_numbers() {
        assert_eq!("12".parse(), Ok(CallNum(12)));
        for text in ["", "0", "-1", "+1", "0x1", "abc", "99999999999999999999999", "1.0", " 1"] {
            assert!(text.parse::<CallNum>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_blob_key_reads_back_as_itself(value: [u8; 32]) {
            for key in [BlobKey::new(DigestKind::Sha256, value), BlobKey::new(DigestKind::Blake3, value)] {
                prop_assert_eq!(key.to_string().parse(), Ok(key));
                prop_assert_eq!(key.digits().len(), 64);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,70}") {
            let _ = text.parse::<BlobKey>();
            let _ = text.parse::<CallNum>();
        }
    }
}
