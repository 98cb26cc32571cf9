//! What every handler needs.

use std::fs::File;
use std::sync::Arc;

use faena_blob::{BlobStore, NamespaceBlobs};
use faena_db_client::DbClient;
use faena_domain::{FunctionName, Limits, Namespace};
use faena_egress::EgressPolicy;
use faena_invoker::Invoker;
use faena_telemetry::Metrics as Registry;
use ipnet::IpNet;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept_batcher::AcceptBatcher;
use crate::access::Access;
use crate::admission::AdmissionControl;
use crate::call_ids::CallIdAllocator;
use crate::entrance::Hosts;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::providers::Providers;
use crate::shares::{Share, Shares};
use crate::versions::Versions;
use crate::{ApiConfig, SignInLifetimes};
use faena_scheduler::CompletionWriter;
use faena_scheduler::InFlight;
use faena_scheduler::SchedulerHandle;
use faena_scheduler::WorkerConnections;

/// Uploads at once.
const UPLOADS: usize = 8;

/// The state of the api; clones share it.
#[derive(Clone, Debug)]
pub struct App {
    inner: Arc<Inner>,
    accepts: AcceptBatcher,
}

#[derive(Debug)]
struct Inner {
    db: DbClient,
    nodes: Nodes,
    access: Arc<Access>,
    blobs: BlobStore,
    scheduler: SchedulerHandle,
    completions: CompletionWriter,
    in_flight: InFlight,
    call_ids: CallIdAllocator,
    registry: Registry,
    metrics: Metrics,
    maximum: Limits,
    host_names: Vec<String>,
    /// Whether clients speak to it by its address, from other machines.
    is_beyond_loopback: bool,
    trusted_proxies: Vec<IpNet>,
    hosts: Hosts,
    providers: Providers,
    sign_in_lifetimes: SignInLifetimes,
    private_headers: Vec<String>,
    tunnels: TaskTracker,
    uploads: Arc<Semaphore>,
    followers: Shares,
    admission: AdmissionControl,
    egress: EgressPolicy,
    draining: CancellationToken,
    versions: Arc<Versions>,
    invokers: Vec<Arc<dyn Invoker>>,
    shared: Handle,
}

impl App {
    pub(crate) fn new(
        config: &ApiConfig,
        (db, nodes): (DbClient, Nodes),
        blobs: BlobStore,
        (scheduler, draining): (SchedulerHandle, CancellationToken),
        audit_file: Option<File>,
        connections: WorkerConnections,
        registry: Registry,
    ) -> Self {
        let metrics = registry.register(|registry| Metrics::register(registry, scheduler.statistics().clone()));
        let accepts = AcceptBatcher::new(db.clone());
        let local = config.invoker.clone().map(|(worker, pool)| nodes.gated(&worker, pool));
        let inner = Arc::new(Inner {
            completions: scheduler.completions().clone(),
            in_flight: scheduler.in_flight().clone(),
            call_ids: CallIdAllocator::new(db.clone()),
            access: Access::new(db.clone(), config.may_be_open().then(|| config.operators.clone()), audit_file),
            versions: Versions::new(db.clone()),
            invokers: local.into_iter().chain([Arc::new(connections) as Arc<dyn Invoker>]).collect(),
            shared: Handle::current(),
            egress: config.egress.clone(),
            admission: AdmissionControl::new(blobs.clone(), config.disk_reserve),
            db,
            nodes,
            blobs,
            scheduler,
            registry,
            metrics,
            maximum: config.maximum,
            host_names: config.host_names.clone(),
            is_beyond_loopback: !config.listen.ip().is_loopback(),
            trusted_proxies: config.trusted_proxies.clone(),
            hosts: Hosts::new(config.functions_domain.as_deref()),
            private_headers: config.private_headers.iter().map(|name| name.to_ascii_lowercase()).collect(),
            providers: Providers::default(),
            sign_in_lifetimes: config.sign_in,
            tunnels: TaskTracker::new(),
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            // Clients that only wait may hold half of all connections.
            followers: Shares::new(config.connections as u64 / 2),
            draining,
        });
        Self { inner, accepts }
    }

    /// The same api, whose accepts are gathered on the thread that this is called on: all who ask there are answered by one
    /// message, and wake each other without the kernel.
    pub(crate) fn on_this_thread(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), accepts: AcceptBatcher::new(self.db().clone()) }
    }

    pub(crate) fn db(&self) -> &DbClient {
        &self.inner.db
    }

    /// The nodes, and where they come in.
    pub(crate) fn nodes(&self) -> &Nodes {
        &self.inner.nodes
    }

    /// Who is let in.
    pub(crate) fn access(&self) -> &Arc<Access> {
        &self.inner.access
    }

    pub(crate) fn blobs(&self) -> &BlobStore {
        &self.inner.blobs
    }

    /// The blobs of a namespace.
    pub(crate) fn blobs_of(&self, namespace: &Namespace) -> NamespaceBlobs {
        self.inner.blobs.of(namespace)
    }

    pub(crate) fn scheduler(&self) -> &SchedulerHandle {
        &self.inner.scheduler
    }

    /// What writes completed calls.
    pub(crate) fn completions(&self) -> &CompletionWriter {
        &self.inner.completions
    }

    /// The calls that have no row.
    pub(crate) fn in_flight(&self) -> &InFlight {
        &self.inner.in_flight
    }

    pub(crate) fn call_ids(&self) -> &CallIdAllocator {
        &self.inner.call_ids
    }

    /// What accepts calls durably.
    pub(crate) fn accepts(&self) -> &AcceptBatcher {
        &self.accepts
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// The most that any runtime or function may ask for.
    pub(crate) fn maximum(&self) -> &Limits {
        &self.inner.maximum
    }

    pub(crate) fn host_names(&self) -> &[String] {
        &self.inner.host_names
    }

    /// Whether clients speak to it by its address, from other machines.
    pub(crate) fn is_beyond_loopback(&self) -> bool {
        self.inner.is_beyond_loopback
    }

    /// Proxies that are believed when they tell where a request comes from.
    pub(crate) fn trusted_proxies(&self) -> &[IpNet] {
        &self.inner.trusted_proxies
    }

    /// The hosts of functions.
    pub(crate) fn hosts(&self) -> &Hosts {
        &self.inner.hosts
    }

    /// Asks identity providers.
    pub(crate) fn providers(&self) -> &Providers {
        &self.inner.providers
    }

    /// How long sign-ins with them count.
    pub(crate) fn sign_in_lifetimes(&self) -> SignInLifetimes {
        self.inner.sign_in_lifetimes
    }

    /// Headers of requests that no record keeps, in lower case.
    pub(crate) fn private_headers(&self) -> &[String] {
        &self.inner.private_headers
    }

    /// The WebSockets that are open; each lives on the thread of its connection.
    pub(crate) fn tunnels(&self) -> &TaskTracker {
        &self.inner.tunnels
    }

    pub(crate) fn uploads(&self) -> &Arc<Semaphore> {
        &self.inner.uploads
    }

    /// A place among the clients that wait for something of a function.
    pub(crate) fn follow(&self, namespace: &Namespace, function: &FunctionName) -> Reply<Share> {
        self.inner.followers.take(Some((namespace, function)), 1).ok_or_else(|| {
            let busy = "too many clients wait, or too many of them for this function";
            Problem::new(ErrorCode::Busy, busy).retry_after(1)
        })
    }

    /// Whom callbacks may reach.
    pub(crate) fn egress(&self) -> &EgressPolicy {
        &self.inner.egress
    }

    /// What requests may hold between them.
    pub(crate) fn admission(&self) -> &AdmissionControl {
        &self.inner.admission
    }

    /// The versions that calls run.
    pub(crate) fn versions(&self) -> &Versions {
        &self.inner.versions
    }

    /// The ways to instances that answer many calls, the shortest first.
    pub(crate) fn invokers(&self) -> &[Arc<dyn Invoker>] {
        &self.inner.invokers
    }

    /// Where whatever takes its time runs, away from the threads that own connections.
    pub(crate) fn shared(&self) -> &Handle {
        &self.inner.shared
    }

    /// Cancelled when the api begins to stop: clients that only wait get a reply.
    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.inner.draining
    }
}
