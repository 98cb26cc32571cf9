//! The nodes that are connected, and what is known of each beside its record.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use faena_db_client::KnownNodes;
use faena_domain::{NodeName, Timestamp};
use faena_protocol::records::NodeRecord;
use faena_transport::SILENCE;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::grants::Grants;

/// What a node may store at once.
const UPLOADS: usize = 8;
/// How long two runs of one node may be connected at once: one that has vanished is noticed within this.
pub(crate) const TWO_RUNS: Duration = Duration::from_secs(SILENCE.as_secs() * 2);

/// A node, as long as the front runs.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its name, as its record has it.
    pub(crate) name: NodeName,
    /// When it joined: a node that joins again under the same name is another.
    joined_at: Timestamp,
    /// What it may store at once.
    pub(crate) uploads: Arc<Semaphore>,
    /// A number for its sockets, which have short names.
    pub(crate) number: u64,
    /// What it was sent.
    pub(crate) grants: Grants,
    sessions: Mutex<HashMap<u64, String>>,
    next: AtomicU64,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    nodes: Mutex<HashMap<NodeName, Arc<Node>>>,
    next: AtomicU64,
}

/// A run of a worker that is connected to the api, until it is dropped.
pub(crate) struct Run {
    node: Arc<Node>,
    number: u64,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.node.sessions.lock().remove(&self.number);
    }
}

impl Nodes {
    /// The node of a record.
    pub(crate) fn get(&self, record: &NodeRecord) -> Arc<Node> {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get(&record.name).filter(|node| node.joined_at == record.joined_at) {
            return Arc::clone(node);
        }
        let node = Arc::new(Node {
            name: record.name.clone(),
            joined_at: record.joined_at,
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            number: self.next.fetch_add(1, Ordering::Relaxed),
            grants: Grants::default(),
            sessions: Mutex::default(),
            next: AtomicU64::new(0),
        });
        nodes.insert(record.name.clone(), Arc::clone(&node));
        node
    }

    /// Forgets a node that was removed.
    pub(crate) fn forget(&self, node: &Arc<Node>) {
        let mut nodes = self.nodes.lock();
        if nodes.get(&node.name).is_some_and(|known| Arc::ptr_eq(known, node)) {
            nodes.remove(&node.name);
        }
    }
}

impl Node {
    /// Whether it is still part of the platform.
    pub(crate) fn is_known(&self, known: &KnownNodes) -> bool {
        known.get(&self.name).is_some_and(|record| record.joined_at == self.joined_at)
    }

    /// A run of it is connected.
    pub(crate) fn begin_run(self: &Arc<Self>, incarnation: &str) -> Run {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.sessions.lock().insert(number, incarnation.to_owned());
        Run { node: Arc::clone(self), number }
    }

    /// Whether another run than this one is connected too.
    pub(crate) fn has_other_run(&self, incarnation: &str) -> bool {
        self.sessions.lock().values().any(|other| other != incarnation)
    }
}
