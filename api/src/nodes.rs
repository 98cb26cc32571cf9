//! The nodes as an api knows them, and the gate before the pool of a worker that shares its process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use faena_db_client::{KnownNodes, NodeDirectory};
use faena_domain::{CallNum, NodeName};
use faena_front::FrontInfo;
use faena_invoker::{Invocation, Invoker};
use faena_protocol::records::Code;

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
        let takes_work = Arc::new(AtomicBool::new(true));
        if let Ok(name) = worker.parse::<NodeName>() {
            tokio::spawn(follow(self.directory.clone(), name, Arc::clone(&takes_work)));
        }
        Arc::new(GatedPool { pool, takes_work })
    }
}

fn takes_work(known: &KnownNodes, name: &NodeName) -> bool {
    known.get(name).is_none_or(|node| !node.is_cordoned && !node.is_draining)
}

/// Keeps whether a node takes work, until its directory is gone.
async fn follow(directory: NodeDirectory, name: NodeName, gate: Arc<AtomicBool>) {
    let mut known = directory.subscribe();
    drop(directory);
    while known.changed().await.is_ok() {
        gate.store(takes_work(&known.borrow_and_update(), &name), Ordering::Relaxed);
    }
}

/// A pool that takes calls only while its node takes work.
#[derive(Debug)]
struct GatedPool {
    pool: Arc<dyn Invoker>,
    takes_work: Arc<AtomicBool>,
}

impl Invoker for GatedPool {
    fn offers(&self, code: &Code) -> bool {
        self.takes_work.load(Ordering::Relaxed) && self.pool.offers(code)
    }

    fn submit(&self, call: Invocation) -> Result<(), Box<Invocation>> {
        self.pool.submit(call)
    }

    fn cancel(&self, num: CallNum) -> bool {
        self.pool.cancel(num)
    }
}
