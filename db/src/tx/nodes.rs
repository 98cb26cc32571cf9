//! Nodes, and the tokens that they join by.

use faena_domain::{Fingerprint, Labels, NodeName, Owner};
use faena_protocol::db::NodeJoin;
use faena_protocol::records::{NodeRecord, NodeTokenRecord};

use super::StoreResult;

/// A token that a node joins by.
#[derive(Debug)]
pub(crate) struct StoredNodeToken {
    pub(crate) token: NodeTokenRecord,
    /// The fingerprint of the key, and the name in lower case, of the node that it was spent for.
    pub(crate) spent: Option<(String, String)>,
}

/// Rows of nodes and their tokens.
pub(crate) trait NodeRows {
    /// A node.
    fn node(&self, name: &NodeName) -> StoreResult<Option<NodeRecord>>;

    /// All nodes, by name.
    fn nodes(&self) -> StoreResult<Vec<NodeRecord>>;

    /// How many nodes there are.
    fn count_nodes(&self) -> StoreResult<u64>;

    /// How often the nodes have changed.
    fn node_changes(&self) -> StoreResult<u64>;

    /// Counts a change.
    fn count_node_change(&self) -> StoreResult<()>;

    /// Adds the node of a request that joins with these labels; false where its name is taken.
    fn insert_node(&self, join: &NodeJoin, labels: &Labels, now: i64) -> StoreResult<bool>;

    /// Updates the row of a node that has joined but not run yet; false where there is none.
    fn rejoin_node(&self, join: &NodeJoin, labels: &Labels, now: i64) -> StoreResult<bool>;

    /// Replaces the certificate of a node, where it has this one or had it before; false where it has another.
    fn renew_certificate(
        &self,
        name: &NodeName,
        from: &Fingerprint,
        to: &Fingerprint,
        ends_at: i64,
    ) -> StoreResult<bool>;

    /// Writes what administrators say of a node: cordon, drain, labels.
    fn update_node(&self, node: &NodeRecord) -> StoreResult<()>;

    /// Removes a node; false where there is none.
    fn delete_node(&self, name: &NodeName) -> StoreResult<bool>;

    /// Notes that nodes were connected at an instant.
    fn see_nodes(&self, names: &[NodeName], at: i64) -> StoreResult<()>;

    /// Whether a worker has a node.
    fn has_node(&self, worker: &str) -> StoreResult<bool>;

    /// Notes that a run of a worker begins: its node is neither stopped nor drained.
    fn begin_run(&self, owner: &Owner, now: i64) -> StoreResult<()>;

    /// Notes that a run has stopped; false where it is not the node's last one.
    fn stop_run(&self, owner: &Owner, now: i64) -> StoreResult<bool>;

    /// The labels of a worker's node; none where it has no node.
    fn labels_of(&self, worker: &str) -> StoreResult<Labels>;

    /// Whether any version or namespace is bound to nodes.
    fn are_any_bound_to_nodes(&self) -> StoreResult<bool>;

    /// A token.
    fn node_token(&self, id: &str) -> StoreResult<Option<StoredNodeToken>>;

    /// How many tokens wait for their nodes, this one aside.
    fn count_waiting_node_tokens(&self, now: i64, without: &str) -> StoreResult<u64>;

    /// Adds a token, unless it is there already.
    fn insert_node_token(&self, token: &NodeTokenRecord) -> StoreResult<()>;

    /// Notes the node that a token was spent for.
    fn spend_node_token(&self, join: &NodeJoin) -> StoreResult<()>;

    /// Removes the tokens that were spent for a node.
    fn delete_node_tokens_of(&self, name: &NodeName) -> StoreResult<()>;

    /// Removes tokens that expired before an instant.
    fn forget_node_tokens(&self, before: i64) -> StoreResult<()>;
}
