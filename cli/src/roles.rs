//! The roles: each is put together, run until a signal comes, and drained.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use faena_api::{Api, ApiConfig, SignInLifetimes};
use faena_blob::BlobStore;
use faena_db::SqliteStore;
use faena_db_client::DbClient;
use faena_domain::{NodeName, Owner};
use faena_front::FrontConfig;
use faena_invoker::Invoker;
use faena_protocol::front::Channel;
use faena_telemetry::Metrics;
use faena_transport::front::{FrontDialer, NodeIdentity};
use faena_transport::{Endpoint, Target};
use faena_worker::front::{FrontBlobs, become_node, forward_internal, identity_in, renew};
use faena_worker::node::{EgressPolicy, Node, Pool, PoolMetrics};
use faena_worker::{DirectSocket, Worker, WorkerConfig};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info};

use crate::folders::{Folders, Lock};
use crate::node;
use crate::settings::{Settings, millis};
use crate::shards::Shards;

/// What a second signal ends the process with (sysexits.h has none for it; shells use 128 and the signal).
const EXIT_FORCED: i32 = 130;

/// How long what a worker holds may take to end whose platform has let it go.
const LET_GO: Duration = Duration::from_secs(5);

/// A role's task, and what tells it to stop.
struct Running {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    fn start(run: impl FnOnce(CancellationToken) -> Spawned) -> Self {
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(run(stop.clone())), stop }
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.task.await.context("a role panicked")?
    }
}

type Spawned = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Waits for SIGTERM or SIGINT; a second one ends the process at once.
async fn stopped() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping; a second signal ends at once");
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(EXIT_FORCED);
    });
    Ok(())
}

/// Waits for a signal, or for a role that ends by itself, which none should.
async fn until_stopped(roles: &mut [&mut Running]) -> anyhow::Result<()> {
    let ended = async {
        let mut check = tokio::time::interval(Duration::from_millis(500));
        loop {
            check.tick().await;
            if roles.iter().any(|role| role.task.is_finished()) {
                return;
            }
        }
    };
    tokio::select! {
        stopped = stopped() => stopped,
        () = ended => {
            error!("a role ended by itself; stopping the others");
            Ok(())
        }
    }
}

fn endpoint(folders: &Folders, name: &str) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::new(folders.run.join(name))?)
}

fn start_db(settings: &Settings, folders: &Folders, metrics: &Metrics) -> anyhow::Result<Running> {
    let metrics = metrics.register(faena_db::metrics::Metrics::register);
    let store = Arc::new(SqliteStore::open(
        &folders.data.join("faena.db"),
        &settings.secret_key_file(),
        settings.store(),
        &metrics,
    )?);
    let endpoint = endpoint(folders, "db.sock")?;
    Ok(Running::start(|stop| Box::pin(async move { Ok(faena_db::serve(store, &endpoint, stop).await?) })))
}

/// What an api is given beside its settings.
struct ApiParts {
    db: DbClient,
    blobs: BlobStore,
    metrics: Metrics,
    /// Cancelled when the workers that stop with us have stopped.
    drained: CancellationToken,
    invoker: Option<Arc<dyn Invoker>>,
    shards: Vec<Handle>,
}

/// Callbacks use no proxy: their addresses are judged here.
fn callback_policy(settings: &Settings) -> anyhow::Result<EgressPolicy> {
    let mut policy = node::egress_policy(settings)?;
    policy.upstream = None;
    Ok(policy)
}

/// Where nodes of other machines come in.
fn front(settings: &Settings, folders: &Folders) -> anyhow::Result<Option<FrontConfig>> {
    let Some(listen) = settings.nodes else { return Ok(None) };
    let (authority_key, authority_certificate) = settings.nodes_authority();
    Ok(Some(FrontConfig {
        listen,
        public: settings.nodes_public(listen),
        authority_key,
        authority_certificate,
        sockets: folders.run.clone(),
        api: endpoint(folders, "api.sock")?,
        db: endpoint(folders, "db.sock")?,
        internal: folders.internal_socket(),
        disk_reserve: settings.disk_reserve,
    }))
}

async fn start_api(settings: &Settings, folders: &Folders, parts: ApiParts) -> anyhow::Result<Running> {
    let ApiParts { db, blobs, metrics, drained, invoker, shards } = parts;
    let config = ApiConfig {
        listen: settings.listen,
        workers: endpoint(folders, "api.sock")?,
        internal: folders.internal_socket(),
        host_names: settings.host_names.iter().map(|name| name.to_ascii_lowercase()).collect(),
        tls: settings.tls()?,
        insecure_http: settings.insecure_http,
        trusted_proxies: settings.trusted_proxies()?,
        operators: settings.operators()?,
        sign_in: SignInLifetimes {
            session_ms: millis(settings.sign_in_lasts),
            keys_ms: millis(settings.sign_in_keys_last),
        },
        audit_file: settings.audit_file.clone(),
        functions_domain: settings.functions_domain.clone(),
        private_headers: settings.private_headers.clone(),
        maximum: settings.maximum(),
        connections: settings.connections,
        grace: settings.grace.duration(),
        disk_reserve: settings.disk_reserve,
        preload: settings.preload.unwrap_or_default(),
        egress: callback_policy(settings)?,
        ca_bundle: settings.ca_bundle.clone(),
        front: front(settings, folders)?,
        invoker: invoker.map(|pool| (settings.name.clone(), pool)),
        shards,
    };
    let api = Api::bind(config, db, blobs, metrics).await?;
    Ok(Running::start(|stop| {
        Box::pin(async move {
            api.serve(stop, drained).await;
            Ok(())
        })
    }))
}

/// A worker that is put together and not yet run.
struct WorkerParts {
    config: WorkerConfig,
    node: Arc<Node>,
    pool: Pool,
    metrics: faena_worker::metrics::Metrics,
}

/// The name of a socket of a worker's thread, short as such paths have to be; no two workers share one.
fn direct_socket(worker: &str, thread: usize) -> String {
    // FNV-1a (Fowler, Noll and Vo).
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = worker.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    format!("w{:08x}-{thread}.sock", hash >> 32)
}

/// Where a worker is, seen from its platform.
struct Situation {
    name: String,
    api: Target,
    direct: Vec<(DirectSocket, Handle)>,
    stops_when_drained: bool,
}

impl Situation {
    /// On the platform's own machine; threads that take direct calls there are none where the api shares the process.
    fn local(settings: &Settings, folders: &Folders, threads: Vec<Handle>) -> anyhow::Result<Self> {
        let stops_when_drained = !threads.is_empty();
        let socket = |(number, thread): (usize, Handle)| {
            let endpoint = endpoint(folders, &direct_socket(&settings.name, number))?;
            Ok((DirectSocket::Local(endpoint), thread))
        };
        let direct = threads.into_iter().enumerate().map(socket).collect::<anyhow::Result<_>>()?;
        let api = endpoint(folders, "api.sock")?.into();
        Ok(Self { name: settings.name.clone(), api, direct, stops_when_drained })
    }

    /// On a machine of its own.
    fn joined(dialer: &FrontDialer, name: String, threads: Vec<Handle>) -> Self {
        let lanes = (0..).zip(threads).map(|(lane, thread)| (DirectSocket::Front(dialer.clone(), lane), thread));
        let api = Target::Front(dialer.clone(), Channel::Api);
        Self { name, api, direct: lanes.collect(), stops_when_drained: true }
    }
}

async fn make_worker(
    settings: &Settings,
    folders: &Folders,
    blobs: BlobStore,
    metrics: &Metrics,
    situation: Situation,
) -> anyhow::Result<WorkerParts> {
    let Situation { name, api, direct, stops_when_drained } = situation;
    let incarnation: String = uuid::Uuid::new_v4().simple().to_string().chars().take(12).collect();
    let owner = Owner { worker: name, incarnation };
    let node = Arc::new(node::node(settings, folders, &owner, blobs).await?);
    let pool = Pool::new(Arc::clone(&node), node::pool(settings), metrics.register(PoolMetrics::register));
    let config = WorkerConfig {
        owner,
        slots: settings.slots,
        grace: settings.grace.duration(),
        stops_when_drained,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api,
        direct,
    };
    let metrics = metrics.register(faena_worker::metrics::Metrics::register);
    Ok(WorkerParts { config, node, pool, metrics })
}

fn start_worker(parts: WorkerParts, db: DbClient, drained: DropGuard) -> Running {
    let worker = Worker::new(parts.config, (parts.node, parts.pool), db, parts.metrics);
    Running::start(|stop| {
        Box::pin(async move {
            worker.run(stop).await;
            drop(drained);
            Ok(())
        })
    })
}

fn lock_all(folders: &Folders) -> anyhow::Result<[Lock; 3]> {
    Ok([folders.lock("db")?, folders.lock("api")?, folders.lock("worker")?])
}

/// Everything in this process.
pub(crate) async fn up(settings: Settings) -> anyhow::Result<()> {
    let folders = Folders::prepare(&settings)?;
    let _locks = lock_all(&folders)?;
    let metrics = Metrics::default();
    let mut db = start_db(&settings, &folders, &metrics)?;
    let client = DbClient::connect(endpoint(&folders, "db.sock")?);
    let blobs = BlobStore::local(&settings.blob_folder())?;
    let drained = CancellationToken::new();
    let shards = Shards::start()?;
    let situation = Situation::local(&settings, &folders, Vec::new())?;
    let parts = make_worker(&settings, &folders, blobs.clone(), &metrics, situation).await?;
    let invoker: Arc<dyn Invoker> = Arc::new(parts.pool.clone());
    let parts_of_api = ApiParts {
        db: client.clone(),
        blobs,
        metrics,
        drained: drained.clone(),
        invoker: Some(invoker),
        shards: shards.handles(),
    };
    let mut api = start_api(&settings, &folders, parts_of_api).await?;
    let mut worker = start_worker(parts, client, drained.drop_guard());
    until_stopped(&mut [&mut db, &mut api, &mut worker]).await?;
    // What runs may finish, and be recorded, before the database goes.
    let (api, worker) = tokio::join!(api.stop(), worker.stop());
    let db = db.stop().await;
    folders.leave();
    api.and(worker).and(db)
}

/// The database service alone.
pub(crate) async fn db(settings: Settings) -> anyhow::Result<()> {
    let folders = Folders::prepare(&settings)?;
    let _lock = folders.lock("db")?;
    let mut db = start_db(&settings, &folders, &Metrics::default())?;
    info!("the database service is ready");
    until_stopped(&mut [&mut db]).await?;
    db.stop().await
}

/// The HTTP edge alone.
pub(crate) async fn api(settings: Settings) -> anyhow::Result<()> {
    let folders = Folders::prepare(&settings)?;
    let _lock = folders.lock("api")?;
    let client = DbClient::connect(endpoint(&folders, "db.sock")?);
    let blobs = BlobStore::local(&settings.blob_folder())?;
    // Workers in other processes go on, and find the next api.
    let drained = CancellationToken::new();
    drained.cancel();
    let shards = Shards::start()?;
    let metrics = Metrics::default();
    let parts = ApiParts { db: client, blobs, metrics, drained, invoker: None, shards: shards.handles() };
    let mut api = start_api(&settings, &folders, parts).await?;
    until_stopped(&mut [&mut api]).await?;
    api.stop().await
}

/// A worker alone: on the platform's own machine, or as a node of a platform on another one.
pub(crate) async fn worker(settings: Settings, name_is_given: bool) -> anyhow::Result<()> {
    let folders = Folders::prepare(&settings)?;
    let _lock = folders.lock("worker")?;
    let shards = Shards::start()?;
    match settings.platform.clone() {
        None => {
            let client = DbClient::connect(endpoint(&folders, "db.sock")?);
            let blobs = BlobStore::shared(&settings.blob_folder(), &folders.spool())?;
            let situation = Situation::local(&settings, &folders, shards.handles())?;
            serve_worker(&settings, &folders, client, blobs, situation, std::future::pending()).await
        }
        Some(address) => {
            let identity = tokio::select! {
                identity = joined(&settings, &folders, &address, name_is_given) => identity?,
                stopped = stopped() => return stopped,
            };
            let dialer = FrontDialer::new(&address, &identity)?;
            let _renewing =
                AbortOnDropHandle::new(tokio::spawn(renew(folders.data.clone(), dialer.clone(), identity.clone())));
            let forward = forward_internal(&folders.internal_socket(), dialer.clone());
            let forward = forward.context("cannot bind the socket for calls from functions")?;
            let _forwarding = AbortOnDropHandle::new(tokio::spawn(forward));
            let client = DbClient::connect(Target::Front(dialer.clone(), Channel::Db));
            let blobs = BlobStore::remote(Arc::new(FrontBlobs::new(dialer.clone())), &folders.spool())?;
            let situation = Situation::joined(&dialer, identity.name.to_string(), shards.handles());
            let ended = async { dialer.ended().await };
            serve_worker(&settings, &folders, client, blobs, situation, ended).await
        }
    }
}

async fn joined(
    settings: &Settings,
    folders: &Folders,
    address: &str,
    name_is_given: bool,
) -> anyhow::Result<NodeIdentity> {
    let name: NodeName = settings.name.parse()?;
    if let Some(identity) = identity_in(&folders.data, name_is_given.then_some(&name))? {
        // A token that it was given too is spent, or of no use.
        return Ok(identity);
    }
    let token = settings.join_token()?.context(
        "this machine is no node yet: make a token with `faena node token`, and start faena worker --join TOKEN --api HOST:PORT",
    )?;
    Ok(become_node(&folders.data, address, &token, &name).await?)
}

/// Runs a worker until it is told to stop, has drained, or its platform has let it go, which `ended` says.
async fn serve_worker(
    settings: &Settings,
    folders: &Folders,
    db: DbClient,
    blobs: BlobStore,
    situation: Situation,
    ended: impl Future<Output = String>,
) -> anyhow::Result<()> {
    let (drained, metrics) = (CancellationToken::new().drop_guard(), Metrics::default());
    tokio::pin!(ended);
    let parts = tokio::select! {
        parts = make_worker(settings, folders, blobs, &metrics, situation) => parts?,
        message = &mut ended => bail!("{message}"),
    };
    let mut worker = start_worker(parts, db, drained);
    tokio::select! {
        stopped = stopped() => {
            stopped?;
            worker.stop().await
        }
        // An administrator has drained the node.
        ended = &mut worker.task => ended.context("the worker panicked")?,
        message = &mut ended => {
            // The platform refuses its results from now on, so its calls end here and are redelivered to other nodes.
            worker.stop.cancel();
            let _ = tokio::time::timeout(LET_GO, &mut worker.task).await;
            bail!("{message}")
        }
    }
}
