//! Credentials: `fna_a_…` is an access token, `fna_k_…` a key, `fna_r_…` a token that is exchanged for new ones,
//! `fna_s_…` the cookie of a browser's session.
//!
//! A credential is `fna_`, its kind, its id and its secret. The id finds the record, which has a hash of the secret: secrets of
//! 256 random bits need no slow hash.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Random bytes of a secret.
pub const SECRET_BYTES: usize = 32;
/// Random bytes of an id.
const ID_BYTES: usize = 8;
/// What every credential begins with.
const PREFIX: &str = "fna_";

/// What a credential is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CredentialKind {
    /// A token of a session, for a quarter of an hour.
    Access,
    /// Exchanged once for new tokens.
    Refresh,
    /// A key, until it is deleted or ends.
    Key,
    /// The cookie of a browser, until its session ends.
    Cookie,
}

impl CredentialKind {
    const ALL: [Self; 4] = [Self::Access, Self::Refresh, Self::Key, Self::Cookie];

    const fn letter(self) -> &'static str {
        match self {
            Self::Access => "a",
            Self::Refresh => "r",
            Self::Key => "k",
            Self::Cookie => "s",
        }
    }
}

/// Finds the record of a credential. It is no secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CredentialId([u8; ID_BYTES]);

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for CredentialId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; ID_BYTES];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for CredentialId {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CredentialId> for String {
    fn from(id: CredentialId) -> Self {
        id.to_string()
    }
}

/// What the record of a credential has in place of its secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialHash(String);

impl fmt::Debug for CredentialHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialHash")
    }
}

impl CredentialHash {
    fn of(secret: &[u8]) -> Self {
        Self(hex::encode(Sha256::digest(secret)))
    }

    /// Whether a secret is the one, in constant time.
    pub fn admits(&self, secret: &[u8; SECRET_BYTES]) -> bool {
        Self::of(secret).0.as_bytes().ct_eq(self.0.as_bytes()).into()
    }
}

/// A credential as a client sends it. It is not shown: its secret is none of any log's business.
#[derive(Clone, Copy)]
pub struct Credential {
    /// What it is for.
    pub kind: CredentialKind,
    /// Finds its record.
    pub id: CredentialId,
    /// What proves that it is the client's.
    pub secret: [u8; SECRET_BYTES],
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.id)
    }
}

/// The text is no credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no credential of the platform")]
pub struct NoCredential;

impl FromStr for Credential {
    type Err = NoCredential;

    fn from_str(text: &str) -> Result<Self, NoCredential> {
        let mut parts = text.strip_prefix(PREFIX).ok_or(NoCredential)?.split('_');
        let (letter, id, secret) = (parts.next(), parts.next(), parts.next());
        let kind = CredentialKind::ALL.into_iter().find(|kind| Some(kind.letter()) == letter).ok_or(NoCredential)?;
        let id = id.and_then(|id| id.parse().ok()).ok_or(NoCredential)?;
        let mut bytes = [0; SECRET_BYTES];
        hex::decode_to_slice(secret.ok_or(NoCredential)?, &mut bytes).map_err(|_| NoCredential)?;
        if parts.next().is_some() {
            return Err(NoCredential);
        }
        Ok(Self { kind, id, secret: bytes })
    }
}

/// A credential that was just made.
pub struct NewCredential {
    /// Finds its record.
    pub id: CredentialId,
    /// For its record.
    pub hash: CredentialHash,
    /// What its owner gets, this once.
    pub text: String,
}

impl fmt::Debug for NewCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a new credential {}", self.id)
    }
}

impl NewCredential {
    /// One of random bytes.
    pub fn new(kind: CredentialKind, id: [u8; ID_BYTES], secret: [u8; SECRET_BYTES]) -> Self {
        let id = CredentialId(id);
        let text = format!("{PREFIX}{}_{id}_{}", kind.letter(), hex::encode(secret));
        Self { id, hash: CredentialHash::of(&secret), text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_read_as_it_was_made() {
        for kind in CredentialKind::ALL {
            let made = NewCredential::new(kind, [7; 8], [9; 32]);
            let read: Credential = made.text.parse().unwrap();
            assert_eq!((read.kind, read.id), (kind, made.id));
            assert!(made.hash.admits(&read.secret) && !made.hash.admits(&[8; 32]));
            assert!(!format!("{made:?} {read:?} {:?}", made.hash).contains("0909"), "no secret is shown");
        }
    }

    #[test]
    fn what_is_not_whole_is_no_credential() {
        let NewCredential { text, .. } = NewCredential::new(CredentialKind::Key, [7; 8], [9; 32]);
        for end in 0..text.len() {
            assert_eq!(text[..end].parse::<Credential>().err(), Some(NoCredential));
        }
        for wrong in ["", "fna_", "fna_x_07_09", &format!("{text}_"), &format!("{text}0"), &format!(" {text}")] {
            assert!(wrong.parse::<Credential>().is_err(), "{wrong}");
        }
    }
}
