//! Nodes: who may be one, what an administrator says of them, and when they were seen.

use faena_domain::{Labels, NodeName, Owner};
use faena_protocol::DbError;
use faena_protocol::db::{
    NodeChange, NodeDelete, NodeJoin, NodeList, NodeRenew, NodeTokenMake, NodesConnected, NodesSeen, Resource,
    WorkerStopped,
};
use faena_protocol::records::NodeRecord;
use subtle::ConstantTimeEq;

use super::{Read, Request, RequestContext, RuleResult, Write, not_found, read, refuse, write};
use crate::tx::{StoredNodeToken, Tx};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    write::<NodeTokenMake>(),
    write::<NodeJoin>(),
    write::<NodeRenew>(),
    read::<NodeList>(),
    write::<NodeChange>(),
    write::<NodeDelete>(),
    write::<NodesConnected>(),
    write::<WorkerStopped>(),
];

/// The most tokens that wait for their nodes.
const MAX_TOKENS: u64 = 1000;
/// The most nodes.
const MAX_NODES: u64 = 10_000;
/// How long a token is remembered that is spent or has expired, so that a machine is told so: a week.
const REMEMBERED_MS: i64 = 7 * 24 * 3600 * 1000;
/// The refusal of a token that another node was admitted by.
const SPENT: &str = "this token was used already: each is for one node; make another with `faena node token`";

fn node(tx: &dyn Tx, name: &NodeName) -> RuleResult<NodeRecord> {
    Ok(tx.node(name)?.ok_or_else(|| not_found(Resource::Node, name.as_str()))?)
}

fn not_admitted<T>(message: impl Into<String>) -> RuleResult<T> {
    refuse(DbError::NotAdmitted { message: message.into() })
}

impl Write for NodeTokenMake {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        tx.forget_node_tokens(context.wall - REMEMBERED_MS)?;
        if tx.count_waiting_node_tokens(context.wall, &self.token.id)? >= MAX_TOKENS {
            let message = format!("{MAX_TOKENS} tokens wait for their nodes already, which is the most");
            return refuse(DbError::TooMuch { message });
        }
        Ok(tx.insert_node_token(&self.token)?)
    }
}

/// The labels of a token that the joining node may use, and whether it has used it already.
fn admitted(join: &NodeJoin, tx: &dyn Tx, wall: i64) -> RuleResult<(Labels, bool)> {
    let is_proven =
        |found: &StoredNodeToken| bool::from(found.token.secret_sha256.as_bytes().ct_eq(join.secret_sha256.as_bytes()));
    let Some(StoredNodeToken { token, spent }) = tx.node_token(&join.token)?.filter(is_proven) else {
        return not_admitted("the platform does not know this token; make one with `faena node token`");
    };
    let has_expired = token.expires_at.0 <= wall;
    match spent {
        Some((by, of)) if by == join.key.to_string() && of == join.name.key() && !has_expired => {
            Ok((token.labels, true))
        }
        Some(_) => not_admitted(SPENT),
        None if has_expired => not_admitted("this token has expired; make another with `faena node token`"),
        None => Ok((token.labels, false)),
    }
}

impl Write for NodeJoin {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<NodeRecord> {
        let (labels, is_spent) = admitted(self, tx, context.wall)?;
        if tx.count_nodes()? >= MAX_NODES {
            return not_admitted(format!("there are {MAX_NODES} nodes, which is the most"));
        }
        // A node whose reply was lost exists already, unless it was removed meanwhile.
        if is_spent && !tx.rejoin_node(self, &labels, context.wall)? {
            return not_admitted(SPENT);
        }
        if !is_spent && !tx.insert_node(self, &labels, context.wall)? {
            let found = node(tx, &self.name)?.name;
            return not_admitted(format!(
                "there is a node {found} already; choose another name with --name, or remove that node first (`faena node rm {found}`)"
            ));
        }
        tx.spend_node_token(self)?;
        tx.count_node_change()?;
        node(tx, &self.name)
    }
}

impl Write for NodeRenew {
    fn write(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<()> {
        if !tx.renew_certificate(&self.name, &self.from, &self.to, self.ends_at.0)? {
            return not_admitted(format!("the certificate of the node {} is no longer accepted", self.name));
        }
        Ok(tx.count_node_change()?)
    }
}

impl Read for NodeList {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<NodesSeen> {
        // 0 means that the asker has seen nothing.
        let changes = tx.node_changes()? + 1;
        let nodes = if changes == self.since { None } else { Some(tx.nodes()?) };
        Ok(NodesSeen { changes, nodes })
    }
}

impl Write for NodeChange {
    fn write(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<NodeRecord> {
        let mut changed = node(tx, &self.name)?;
        if let Some(cordon) = &self.cordon {
            (changed.is_cordoned, changed.cordon_reason) = (cordon.is_on, cordon.reason.clone());
        }
        if let Some(drain) = self.drain {
            changed.is_draining = drain;
        }
        if let Some(labels) = &self.labels {
            changed.labels = labels.clone();
        }
        tx.update_node(&changed)?;
        tx.count_node_change()?;
        Ok(changed)
    }
}

impl Write for NodeDelete {
    fn write(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<()> {
        if !tx.delete_node(&self.name)? {
            return refuse(not_found(Resource::Node, self.name.as_str()));
        }
        // The node cannot join again with the token that it has spent.
        tx.delete_node_tokens_of(&self.name)?;
        Ok(tx.count_node_change()?)
    }
}

impl Write for NodesConnected {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        Ok(tx.see_nodes(&self.names, context.wall)?)
    }
}

impl Write for WorkerStopped {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        if tx.stop_run(&self.owner, context.wall)? {
            tx.count_node_change()?;
        }
        Ok(())
    }
}

/// Records that a run of a worker begins. Its node takes work unless it is cordoned.
///
/// # Errors
/// The node joined by a token and was removed: its row is not inserted again.
pub(super) fn begin_run(tx: &dyn Tx, owner: &Owner, is_member: bool, wall: i64) -> RuleResult<()> {
    if is_member && !tx.has_node(&owner.worker)? {
        return not_admitted(format!("the node {} was removed from the platform", owner.worker));
    }
    tx.begin_run(owner, wall)?;
    Ok(tx.count_node_change()?)
}
