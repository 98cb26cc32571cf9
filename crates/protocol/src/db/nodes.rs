//! Nodes, and the tokens that they join by.

use faena_domain::{Fingerprint, Labels, NodeName, Owner, Timestamp};
use serde::{Deserialize, Serialize};

use super::requests;
use crate::records::{NodeRecord, NodeTokenRecord};

requests! {
    /// Keeps a token for one node.
    Write NodeTokenMake = "node.token" by [Api] -> () {
        /// The token.
        token: NodeTokenRecord,
    }
    /// A machine becomes a node: its token is spent.
    Write NodeJoin = "node.join" by [Api] -> NodeRecord {
        /// The id of its token.
        token: String,
        /// The SHA-256 of the token's secret, in hexadecimal digits.
        secret_sha256: String,
        /// The name that it wants.
        name: NodeName,
        /// The SHA-256 of its key: whose reply was lost asks again with the same.
        key: Fingerprint,
        /// Its certificate.
        fingerprint: Fingerprint,
        /// When that ends.
        ends_at: Timestamp,
    }
    /// A node has a new certificate. The one that it was asked for with is taken until the next renewal.
    Write NodeRenew = "node.renew" by [Api] -> () {
        /// The node.
        name: NodeName,
        /// The certificate that it has.
        from: Fingerprint,
        /// The new one.
        to: Fingerprint,
        /// When the new one ends.
        ends_at: Timestamp,
    }
    /// All nodes, where they have changed since the asker looked.
    Read NodeList = "node.list" by [Api] -> NodesSeen {
        /// What the last reply said; 0 before the first.
        since: u64,
    }
    /// Changes cordon, drain or labels of a node. Members that are absent do not change.
    Write NodeChange = "node.change" by [Api] -> NodeRecord {
        /// Its name.
        name: NodeName,
        /// Whether it takes new work, and why not, where the platform itself decides.
        cordon: Option<Cordon>,
        /// Whether it finishes what it has and stops.
        drain: Option<bool>,
        /// Its labels.
        labels: Option<Labels>,
    }
    /// Forgets a node: its certificate is taken no longer, and its name is free.
    Write NodeDelete = "node.delete" by [Api] -> () {
        /// Its name.
        name: NodeName,
    }
    /// These nodes are connected.
    Write NodesConnected = "node.connected" by [Api] -> () {
        /// Their names.
        names: Vec<NodeName>,
    }
    /// A worker ends by itself, with nothing left.
    Write WorkerStopped = "worker.stopped" by [Worker] -> () {
        /// The worker.
        owner: Owner,
    }
}

/// Whether a node takes new work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cordon {
    /// It takes none.
    pub is_on: bool,
    /// Why, where the platform itself decides.
    pub reason: Option<String>,
}

/// The nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodesSeen {
    /// Rises with every change, but for when nodes were seen.
    pub changes: u64,
    /// All of them, by name; none where nothing has changed.
    pub nodes: Option<Vec<NodeRecord>>,
}
