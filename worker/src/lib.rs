//! A node: it joins an api, runs what it is sent in slots of its own, and tells how it ended.
//!
//! One task owns the truth about what the node holds ([`Worker::run`]). Each attempt and each build is a task of its
//! own, which owns its instance; its end is written to db until db has it, or refuses it as stale.

mod attempt;
mod direct;
pub mod front;
mod lease;
pub mod metrics;
mod session;

use std::sync::Arc;
use std::time::Duration;

use faena_db_client::DbClient;
use faena_domain::{BlobKey, Owner};
use faena_engine::Engine;
use faena_miniworker::Node;
use faena_pool::Pool;
use faena_protocol::db::{WorkerJoin, WorkerStopped};
use faena_protocol::node::{EgressWay, EngineInfo, NodeInfo};
use faena_transport::front::FrontDialer;
use faena_transport::{Endpoint, Link, Target};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use metrics::Metrics;
use session::Session;

/// How many builds run at once.
pub const BUILD_SLOTS: u32 = 2;
/// How long db is waited for when a worker says that it stops.
const FAREWELL: Duration = Duration::from_secs(2);
/// The pause before db is asked again.
pub(crate) const RETRY: Duration = Duration::from_millis(250);

/// How a worker is set up.
#[derive(Debug)]
pub struct WorkerConfig {
    /// Who it is, and which run of it.
    pub owner: Owner,
    /// Calls at once.
    pub slots: u32,
    /// How long running work may take to finish at a stop.
    pub grace: Duration,
    /// Whether it stops when an administrator drains its node, rather than go on without work.
    pub stops_when_drained: bool,
    /// The version of its program.
    pub version: String,
    /// Where the api listens for workers.
    pub api: Target,
    /// Where calls of the direct path come in, and on which thread; none where the api shares our process.
    pub direct: Vec<(DirectSocket, Handle)>,
}

/// Where calls of the direct path come in.
#[derive(Clone, Debug)]
pub enum DirectSocket {
    /// A socket of this machine.
    Local(Endpoint),
    /// A socket of the platform's machine, by the number of the thread that it is for.
    Front(FrontDialer, u16),
}

impl DirectSocket {
    /// What the api is told.
    fn address(&self) -> String {
        match self {
            Self::Local(endpoint) => endpoint.path().display().to_string(),
            Self::Front(_, lane) => lane.to_string(),
        }
    }
}

/// A worker that has its node and waits to be run.
#[derive(Debug)]
pub struct Worker {
    config: WorkerConfig,
    node: Arc<Node>,
    pool: Pool,
    db: DbClient,
    metrics: Metrics,
}

/// Memory of this machine, in bytes (proc_meminfo(5)).
pub fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes: u64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    kilobytes * 1024
}

impl Worker {
    /// Puts a worker together; nothing runs yet.
    pub fn new(config: WorkerConfig, (node, pool): (Arc<Node>, Pool), db: DbClient, metrics: Metrics) -> Self {
        Self { config, node, pool, db, metrics }
    }

    fn info(&self) -> NodeInfo {
        NodeInfo {
            owner: self.config.owner.clone(),
            engines: self.node.engines.values().map(|engine| engine_info(engine.as_ref(), Vec::new())).collect(),
            slots: self.config.slots,
            build_slots: BUILD_SLOTS,
            memory_bytes: memory_bytes(),
            version: self.config.version.clone(),
            direct: self.config.direct.iter().map(|(socket, _)| socket.address()).collect(),
        }
    }

    /// Takes calls of the direct path until what it returns is dropped.
    fn open(&self) -> Vec<AbortOnDropHandle<()>> {
        let serve = |(socket, thread): &(DirectSocket, Handle)| {
            let (socket, pool, worker) = (socket.clone(), self.pool.clone(), self.config.owner.worker.clone());
            AbortOnDropHandle::new(thread.spawn(direct::serve(socket, pool, worker)))
        };
        self.config.direct.iter().map(serve).collect()
    }

    /// Joins, works, and drains when told to stop: no new work, then a grace, then what is left goes back unspent.
    pub async fn run(self, stop: CancellationToken) {
        // What an earlier run of this worker left has to be gone before its calls are anybody else's.
        let first = async {
            remove_orphans(&self.node).await;
            self.join().await;
        };
        if stop.run_until_cancelled(first).await.is_none() {
            return;
        }
        let link = Link::connect(self.config.api.clone());
        let info = self.info();
        let _direct = self.open();
        info!(worker = info.owner.worker, slots = info.slots, "the worker is ready");
        let (db, owner) = (self.db.clone(), self.config.owner.clone());
        if Session::new(self, info, link.handle(), &stop).run(link, stop).await {
            // Nobody takes it to be lost. Where db does not hear it, it is.
            let _ = db.ask_within(&WorkerStopped { owner }, FAREWELL).await;
        }
    }

    /// Ends what an earlier incarnation of this worker held; it is dead, since we hold its lock.
    async fn join(&self) {
        let request = WorkerJoin { owner: self.config.owner.clone(), is_member: false };
        while let Err(error) = self.db.ask(&request).await {
            warn!(%error, "the database service does not take us yet");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// An engine as the api hears of it.
pub(crate) fn engine_info(engine: &dyn Engine, images: Vec<BlobKey>) -> EngineInfo {
    EngineInfo {
        engine: engine.kind(),
        version: engine.version(),
        missing_layers: engine.missing_layers(),
        egress: if engine.no_device().is_none() { EgressWay::Sockets } else { EgressWay::Proxy },
        images,
    }
}

async fn remove_orphans(node: &Node) {
    for engine in node.engines.values() {
        engine.remove_orphans().await;
    }
}

/// What a node is made of.
pub mod node {
    pub use faena_miniworker::{
        BuildLimits, CodeStore, EgressPolicy, Gateway, ImageStore, LeaseEnd, LiveLogs, Node, NodeEgress, Ports,
        Resolvers, StreamBounds, Upstream, run_build, unpack_image,
    };
    pub use faena_pool::{Metrics as PoolMetrics, Pool, PoolConfig, PoolPolicy, PreloadSetting};

    pub use crate::attempt::{FinishedAttempt, run_attempt};
}
