//! The nodes as an api knows them, and the gate before the pool of a worker that shares its process.

use std::sync::Arc;

use faena_db_client::{KnownNodes, NodeDirectory};
use faena_domain::{CallNum, Labels, NodeName};
use faena_front::FrontInfo;
use faena_invoker::{Invocation, Invoker};
use faena_protocol::records::Code;
use parking_lot::RwLock;

/// The nodes, and where they come in.
#[derive(Clone, Debug)]
pub(crate) struct Nodes {
    pub(crate) directory: NodeDirectory,
    /// None where nodes of other machines are not served.
    pub(crate) front: Option<FrontInfo>,
}

impl Nodes {
    /// The pool of a worker, as long as an administrator lets its node take work.
    pub(crate) fn gated(&self, worker: &str, pool: Arc<dyn Invoker>) -> Arc<dyn Invoker> {
        let gate = Arc::new(RwLock::new(Gate { takes_work: false, labels: Labels::default() }));
        if let Ok(name) = worker.parse::<NodeName>() {
            tokio::spawn(follow(self.directory.clone(), name, Arc::clone(&gate)));
        }
        Arc::new(GatedPool { pool, gate })
    }
}

/// What an administrator says of the node of this process.
#[derive(Debug)]
struct Gate {
    takes_work: bool,
    labels: Labels,
}

impl Gate {
    fn of(known: &KnownNodes, name: &NodeName) -> Self {
        let node = known.get(name);
        Self {
            takes_work: node.is_some_and(|node| !node.is_cordoned && !node.is_draining),
            labels: node.map(|node| node.labels.clone()).unwrap_or_default(),
        }
    }
}

/// Keeps whether a node takes work, until its directory is gone.
async fn follow(directory: NodeDirectory, name: NodeName, gate: Arc<RwLock<Gate>>) {
    let mut known = directory.subscribe();
    drop(directory);
    loop {
        let now = Gate::of(&known.borrow_and_update(), &name);
        *gate.write() = now;
        if known.changed().await.is_err() {
            return;
        }
    }
}

/// A pool that takes calls only while its node takes work.
#[derive(Debug)]
struct GatedPool {
    pool: Arc<dyn Invoker>,
    gate: Arc<RwLock<Gate>>,
}

impl Invoker for GatedPool {
    fn offers(&self, code: &Code) -> bool {
        let gate = self.gate.read();
        gate.takes_work && code.is_permitted_on(&gate.labels) && self.pool.offers(code)
    }

    fn submit(&self, call: Invocation) -> Result<(), Box<Invocation>> {
        self.pool.submit(call)
    }

    fn cancel(&self, num: CallNum) -> bool {
        self.pool.cancel(num)
    }
}
