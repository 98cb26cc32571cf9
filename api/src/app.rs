//! What every handler needs.

use std::sync::Arc;

use faena_blob::BlobStore;
use faena_db_client::DbClient;
use faena_domain::{Limits, Namespace};
use faena_egress::EgressPolicy;
use faena_protocol::direct::DirectRoad;
use faena_telemetry::Metrics as Registry;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::ApiConfig;
use crate::accepts::Accepts;
use crate::dispatcher::DispatcherHandle;
use crate::metrics::Metrics;
use crate::numbers::Numbers;
use crate::recorder::Recorder;
use crate::roads::Roads;
use crate::room::Room;
use crate::versions::Versions;

/// Uploads at once.
const UPLOADS: usize = 8;

/// Who asks. Until there are accounts it is the local operator, who may do everything.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) namespace: Namespace,
}

impl Caller {
    /// The one caller there is on loopback.
    pub(crate) fn local() -> Self {
        Self { namespace: Namespace::default() }
    }
}

/// The state of the api; clones share it.
#[derive(Clone, Debug)]
pub struct App(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    db: DbClient,
    blobs: BlobStore,
    dispatcher: DispatcherHandle,
    recorder: Recorder,
    numbers: Numbers,
    accepts: Accepts,
    registry: Registry,
    metrics: Metrics,
    maximum: Limits,
    host_names: Vec<String>,
    uploads: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    room: Room,
    egress: EgressPolicy,
    draining: CancellationToken,
    versions: Versions,
    roads: Vec<Arc<dyn DirectRoad>>,
    shared: Handle,
}

impl App {
    pub(crate) fn new(
        config: &ApiConfig,
        db: DbClient,
        blobs: BlobStore,
        (dispatcher, draining): (DispatcherHandle, CancellationToken),
        roads: Roads,
        registry: Registry,
    ) -> Self {
        let metrics = registry.register(Metrics::register);
        Self(Arc::new(Inner {
            recorder: dispatcher.recorder().clone(),
            numbers: Numbers::new(db.clone()),
            accepts: Accepts::new(db.clone()),
            versions: Versions::new(db.clone()),
            roads: config.road.iter().cloned().chain([Arc::new(roads) as Arc<dyn DirectRoad>]).collect(),
            shared: Handle::current(),
            egress: config.egress.clone(),
            room: Room::new(blobs.clone(), config.disk_reserve),
            db,
            blobs,
            dispatcher,
            registry,
            metrics,
            maximum: config.maximum,
            host_names: config.host_names.clone(),
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            // Whoever only waits may hold half of all connections.
            followers: Arc::new(Semaphore::new(config.connections / 2)),
            draining,
        }))
    }

    pub(crate) fn db(&self) -> &DbClient {
        &self.0.db
    }

    pub(crate) fn blobs(&self) -> &BlobStore {
        &self.0.blobs
    }

    pub(crate) fn dispatcher(&self) -> &DispatcherHandle {
        &self.0.dispatcher
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        &self.0.recorder
    }

    pub(crate) fn numbers(&self) -> &Numbers {
        &self.0.numbers
    }

    /// What accepts calls durably.
    pub(crate) fn accepts(&self) -> &Accepts {
        &self.0.accepts
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.0.registry
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The most that any runtime or function may ask for.
    pub(crate) fn maximum(&self) -> &Limits {
        &self.0.maximum
    }

    pub(crate) fn host_names(&self) -> &[String] {
        &self.0.host_names
    }

    pub(crate) fn uploads(&self) -> &Arc<Semaphore> {
        &self.0.uploads
    }

    pub(crate) fn followers(&self) -> &Arc<Semaphore> {
        &self.0.followers
    }

    /// Whom callbacks may reach.
    pub(crate) fn egress(&self) -> &EgressPolicy {
        &self.0.egress
    }

    /// What requests may hold between them.
    pub(crate) fn room(&self) -> &Room {
        &self.0.room
    }

    /// The versions that calls run.
    pub(crate) fn versions(&self) -> &Versions {
        &self.0.versions
    }

    /// The ways to instances that answer many calls, the shortest first.
    pub(crate) fn roads(&self) -> &[Arc<dyn DirectRoad>] {
        &self.0.roads
    }

    /// Where whatever takes its time runs, away from the threads that own connections.
    pub(crate) fn shared(&self) -> &Handle {
        &self.0.shared
    }

    /// Cancelled when the api begins to stop: whoever only waits is answered.
    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.0.draining
    }
}
