//! What a node and the front of a platform tell each other: the token that a node joins by, and the first frame of every
//! connection, which says what the connection is for.
//!
//! ```text
//! node                            front
//!   │ ── TLS 1.3 handshake ───────▶ │   with a certificate, but for `join`
//!   │ ── open: version, channel ──▶ │
//!   │ ◀─ opened, or refused ─────── │
//!   │ ◀─ frames of the channel ───▶ │
//! ```

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use faena_domain::{BlobKey, Fingerprint, Labels, Namespace, NodeName, Timestamp};
use serde::{Deserialize, Serialize};

/// The name that TLS calls the protocol by (RFC 7301).
pub const ALPN: &[u8] = b"faena-node";
/// The name in every front's certificate. Nodes know a platform by its authority, not by an address.
pub const FRONT_NAME: &str = "front.faena.internal";
/// The largest first frame, in bytes: all that who has no certificate may send.
pub const MAX_OPEN: usize = 8 * 1024;
/// The largest frame of a connection that carries messages: a call with its body and what goes with it.
pub const MAX_FRAME: usize = 16 * 1024 * 1024;
/// The largest part of a blob, in bytes.
pub const MAX_BLOB_PART: usize = 256 * 1024;

/// The version of everything that nodes and platforms tell each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProtocolVersion {
    /// Another one is refused.
    pub major: u32,
    /// A platform serves nodes of its own and of the one before it.
    pub minor: u32,
}

/// The version of this program.
pub const PROTOCOL: ProtocolVersion = ProtocolVersion { major: 1, minor: 0 };

impl ProtocolVersion {
    /// Whether a platform of this version serves a node of that one.
    ///
    /// # Errors
    /// A sentence that says which side is to be updated.
    pub fn serve(self, node: Self) -> Result<(), String> {
        if node.major == self.major && node.minor <= self.minor && node.minor + 1 >= self.minor {
            return Ok(());
        }
        let older = if node < self { "update the node" } else { "update the platform before its nodes" };
        Err(format!(
            "the node speaks protocol {node} and the platform {self}, which serves one minor version back: {older}"
        ))
    }
}

impl std::fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The first frame of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Open {
    /// What the node speaks.
    pub protocol: ProtocolVersion,
    /// What the connection is for.
    pub channel: Channel,
}

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Channel {
    /// A machine becomes a node. The only channel without a certificate.
    Join {
        /// The id of its token.
        id: String,
        /// The secret of its token.
        secret: String,
        /// The name that it wants.
        name: NodeName,
        /// The key that its certificate is for: a point of P-256, uncompressed (SEC 1, 2.3.3), in base64.
        public_key: String,
    },
    /// A node needs a new certificate before its own ends.
    Renew {
        /// As in [`Self::Join`].
        public_key: String,
    },
    /// Messages of [`crate::node`]; each frame is one.
    Api,
    /// Requests to db; each frame is one.
    Db,
    /// Messages of [`crate::direct::wire`] to and from one thread of the worker; each frame begins with a [`LaneFrame`].
    Direct {
        /// The thread.
        lane: u16,
    },
    /// A blob, from the platform. Its bytes follow in frames of at most [`MAX_BLOB_PART`].
    BlobGet {
        /// Whose it is.
        namespace: Namespace,
        /// Its name.
        key: BlobKey,
        /// How many of its bytes the node has already.
        offset: u64,
    },
    /// A blob, to the platform. Its bytes follow in frames of at most [`MAX_BLOB_PART`], and an empty frame behind them.
    BlobPut {
        /// Whose it is.
        namespace: Namespace,
        /// Its name.
        key: BlobKey,
        /// How many bytes it has.
        bytes: u64,
    },
    /// A connection of a function that calls another one: the bytes of [`crate::internal`], without frames.
    Internal,
}

/// The reply to [`Open`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Opened {
    /// The channel is open.
    Ready,
    /// To [`Channel::Join`] and [`Channel::Renew`].
    Certificate {
        /// The node's certificate and the authority's, as PEM.
        chain: String,
        /// When it was issued, by the platform's clock.
        issued_at: Timestamp,
        /// When it ends.
        ends_at: Timestamp,
    },
    /// To [`Channel::BlobGet`]: the bytes follow.
    Blob {
        /// How many the blob has, those before the offset included.
        bytes: u64,
    },
    /// To [`Channel::BlobPut`], after its last byte.
    Stored,
    /// It is not opened.
    Refused {
        /// What the node does about it.
        reason: Refusal,
        /// A sentence for people.
        message: String,
    },
}

/// Why a channel is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Refusal {
    /// The node is no part of the platform, or may not join: its process ends.
    NotAdmitted,
    /// The node speaks another version: its process ends.
    Version,
    /// The node may not have what it asks for.
    NotPermitted,
    /// What it asks for is not there.
    NotFound,
    /// Not now; it tries again.
    Busy,
}

impl Refusal {
    /// Whether trying again changes nothing.
    pub fn is_final(self) -> bool {
        matches!(self, Self::NotAdmitted | Self::Version)
    }
}

/// What a frame of [`Channel::Direct`] begins with: the connection of an api that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneFrame {
    /// The connection, by a number that the front gave it.
    pub peer: u32,
    /// Whether this is the end of that connection; no message follows then.
    pub is_end: bool,
}

impl LaneFrame {
    /// The bytes that it has.
    pub const LENGTH: usize = 5;

    /// As bytes.
    pub fn encode(self) -> [u8; Self::LENGTH] {
        let [a, b, c, d] = self.peer.to_le_bytes();
        [u8::from(self.is_end), a, b, c, d]
    }

    /// Reads what a frame begins with; none where it is too short.
    pub fn decode(frame: &[u8]) -> Option<Self> {
        let ([end, peer @ ..], _) = frame.split_first_chunk::<{ Self::LENGTH }>()?;
        (*end <= 1).then(|| Self { peer: u32::from_le_bytes(*peer), is_end: *end == 1 })
    }
}

/// What a machine joins by: as text it begins with `fnj_`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinToken {
    /// Names it; no secret.
    pub id: String,
    /// Known to who joins alone; the platform keeps its hash.
    pub secret: String,
    /// The platform's authority: the first connection is verified too.
    pub authority: Fingerprint,
    /// What the certificate is for; `node`.
    pub role: String,
    /// What the node will have; the platform keeps its own copy, which counts.
    #[serde(default)]
    pub labels: Labels,
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no token for joining: it begins with fnj_, and POST /node/token (or `faena node token`) makes one")]
pub struct InvalidToken;

/// What every token begins with.
const TOKEN: &str = "fnj_";

impl JoinToken {
    /// As text.
    pub fn encode(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{TOKEN}{}", URL_SAFE_NO_PAD.encode(json))
    }

    /// Reads a text.
    ///
    /// # Errors
    /// A text that is no token.
    pub fn decode(text: &str) -> Result<Self, InvalidToken> {
        let coded = text.trim().strip_prefix(TOKEN).ok_or(InvalidToken)?;
        let json = URL_SAFE_NO_PAD.decode(coded).map_err(|_| InvalidToken)?;
        serde_json::from_slice(&json).map_err(|_| InvalidToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(major: u32, minor: u32) -> ProtocolVersion {
        ProtocolVersion { major, minor }
    }

    #[test]
    fn one_minor_version_back_is_served() {
        assert!(version(1, 4).serve(version(1, 4)).is_ok() && version(1, 4).serve(version(1, 3)).is_ok());
        let refused = |node: ProtocolVersion| version(1, 4).serve(node).expect_err("another version");
        assert!(refused(version(1, 2)).ends_with("update the node"));
        assert!(refused(version(1, 5)).ends_with("update the platform before its nodes"));
        assert!(refused(version(0, 4)).ends_with("update the node"));
        assert!(refused(version(2, 0)).ends_with("update the platform before its nodes"));
    }

    #[test]
    fn a_token_reads_back_as_itself() {
        let token = JoinToken {
            id: "a1".to_owned(),
            secret: "s3".to_owned(),
            authority: Fingerprint([9; 32]),
            role: "node".to_owned(),
            labels: Labels::default(),
        };
        assert_eq!(JoinToken::decode(&format!(" {}\n", token.encode())), Ok(token));
        for text in ["", "fnj_", "fnj_!!!", "fna_k_x", "fnj_e30"] {
            assert_eq!(JoinToken::decode(text), Err(InvalidToken), "{text:?}");
        }
    }

    #[test]
    fn the_beginning_of_a_frame_reads_back_as_itself() {
        let begin = LaneFrame { peer: 70_000, is_end: true };
        assert_eq!(LaneFrame::decode(&begin.encode()), Some(begin));
        assert_eq!(LaneFrame::decode(&[2, 0, 0, 0, 0]), None);
        assert_eq!(LaneFrame::decode(&[0, 0, 0, 0]), None);
    }
}
