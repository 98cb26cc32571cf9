//! Nodes.

use faena_domain::{Fingerprint, Labels, NodeName, Timestamp};
use serde::{Deserialize, Serialize};

/// A node as db knows it: what an administrator says of it, and when it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// What an administrator says of it.
    pub labels: Labels,
    /// It takes no new work until an administrator lets it.
    pub is_cordoned: bool,
    /// Why, where the platform itself did that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordon_reason: Option<String>,
    /// It finishes what it has, and stops.
    pub is_draining: bool,
    /// Its last run has ended by itself.
    pub is_stopped: bool,
    /// Its last run; empty before the first.
    #[serde(default)]
    pub incarnation: String,
    /// Its certificate; none of a worker on the platform's own machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<NodeCertificate>,
    /// When it was first seen.
    pub joined_at: Timestamp,
    /// When it was seen last, at most some seconds before it really was.
    pub seen_at: Timestamp,
}

/// What a node shows on each connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCertificate {
    /// The newest one.
    pub fingerprint: Fingerprint,
    /// The one before it, which is still taken: a node that was away when it was renewed has only that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Fingerprint>,
    /// When the newest one ends.
    pub ends_at: Timestamp,
}

/// The token of a machine that is to become a node, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeTokenRecord {
    /// Names it.
    pub id: String,
    /// The SHA-256 of its secret, in hexadecimal digits.
    pub secret_sha256: String,
    /// What the node will have.
    pub labels: Labels,
    /// Until when it is taken.
    pub expires_at: Timestamp,
}
