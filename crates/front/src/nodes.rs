//! The nodes that are connected, and what is known of each beside its record.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use faena_domain::NodeName;
use faena_transport::SILENCE;
use parking_lot::Mutex;

use crate::grants::Grants;

/// How long two runs of one node may be connected at once: one that has vanished is noticed within this.
pub(crate) const TWO_RUNS: Duration = Duration::from_secs(SILENCE.as_secs() * 2);

/// A node, as long as the front runs.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its name, as its record has it.
    pub(crate) name: NodeName,
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
    /// The node of a name.
    pub(crate) fn get(&self, name: &NodeName) -> Arc<Node> {
        let make = || {
            let (number, name) = (self.next.fetch_add(1, Ordering::Relaxed), name.clone());
            let (grants, sessions, next) = (Grants::default(), Mutex::default(), AtomicU64::new(0));
            Arc::new(Node { name, number, grants, sessions, next })
        };
        Arc::clone(self.nodes.lock().entry(name.clone()).or_insert_with(make))
    }

    /// What was known of a node that is removed.
    pub(crate) fn forget(&self, name: &NodeName) {
        self.nodes.lock().remove(name);
    }
}

impl Node {
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
