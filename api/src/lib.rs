//! The HTTP edge.
//!
//! A handler extracts, converts, calls and converts back; it knows nothing of SQL and nothing of sockets. What a call
//! needs lies in [`faena_scheduler`], which knows every worker and every call that has no row yet.

mod accept_batcher;
mod access;
mod actions;
mod admission;
mod app;
mod authorize;
mod body;
mod call_ids;
mod callbacks;
mod calling;
mod entrance;
mod guard;
mod handed;
mod http_call;
mod idempotency;
mod internal;
mod logs;
pub mod metrics;
mod nodes;
mod path;
mod preference;
mod presence;
mod problem;
mod providers;
mod routes;
mod server;
mod shares;
mod stall;
mod sweeper;
mod tls;
mod trace;
mod versions;
mod view;

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use faena_blob::BlobStore;
use faena_db_client::{DbClient, NodeDirectory};
use faena_domain::units::ByteSize;
use faena_domain::{Limits, Preload};
use faena_egress::EgressPolicy;
use faena_front::{Front, FrontConfig, FrontError};
use faena_invoker::Invoker;
use faena_scheduler::{Scheduler, WorkerConnections};
use faena_telemetry::Metrics as Registry;
use faena_transport::{Endpoint, Server};
use internal::InternalListener;
use ipnet::IpNet;
use nodes::Nodes;
use tls::Tls;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

pub use access::{Operators, setup_hash};
pub use app::App;
pub use routes::{description, router};
pub use tls::TlsFiles;

/// How long after its grace a worker may still give calls back.
const GIVE_BACK: Duration = Duration::from_secs(5);

/// How an api is set up.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Where it listens for people.
    pub listen: SocketAddr,
    /// Where it listens for workers.
    pub workers: Endpoint,
    /// Where it listens for connections of functions that call others, which workers open.
    pub internal: PathBuf,
    /// Names besides `localhost` by which people may call it.
    pub host_names: Vec<String>,
    /// A certificate for clients; without one they speak plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Whether plain HTTP is spoken beyond this machine.
    pub insecure_http: bool,
    /// Proxies that are believed when they tell where a request comes from.
    pub trusted_proxies: Vec<IpNet>,
    /// Whom an open platform is for.
    pub operators: Operators,
    /// How long sign-ins with an identity provider count.
    pub sign_in: SignInLifetimes,
    /// Where each line of the audit log is appended too.
    pub audit_file: Option<PathBuf>,
    /// The domain below which functions have origins of their own, besides `localhost`.
    pub functions_domain: Option<String>,
    /// Headers of requests that functions get and no record keeps, besides credentials.
    pub private_headers: Vec<String>,
    /// The most that any runtime or function may ask for.
    pub maximum: Limits,
    /// Connections at once.
    pub connections: usize,
    /// How long running requests may take to finish at a stop.
    pub grace: Duration,
    /// What must stay free on the disk of the blobs; below it no new work is taken.
    pub disk_reserve: ByteSize,
    /// What workers keep waiting for calls, where neither function nor runtime nor node says so.
    pub preload: Preload,
    /// Whom callbacks may reach; an upstream proxy is not asked.
    pub egress: EgressPolicy,
    /// Certificate authorities for callbacks to https.
    pub ca_bundle: Option<PathBuf>,
    /// Where nodes of other machines come in; none keeps the platform to this one.
    pub front: Option<FrontConfig>,
    /// The way to a worker that shares our process, and its name.
    pub invoker: Option<(String, Arc<dyn Invoker>)>,
    /// Runtimes of one thread each, which own connections; none leaves them where we are called.
    pub shards: Vec<Handle>,
}

/// How long a sign-in with an identity provider counts, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct SignInLifetimes {
    /// For the session that it begins.
    pub session_ms: i64,
    /// For keys that the account makes: after that they need another sign-in.
    pub keys_ms: i64,
}

impl Default for SignInLifetimes {
    fn default() -> Self {
        const HOUR_MS: i64 = 3600 * 1000;
        Self { session_ms: 12 * HOUR_MS, keys_ms: 30 * 24 * HOUR_MS }
    }
}

impl ApiConfig {
    /// Whether it is reached from this machine alone, and by no name of its own: then it may be open.
    fn may_be_open(&self) -> bool {
        let has_names = !self.host_names.is_empty() || self.functions_domain.is_some();
        self.listen.ip().is_loopback() && !has_names && self.trusted_proxies.is_empty()
    }
}

/// Why an api could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Credentials would cross a network in clear.
    #[error(
        "{0} is no loopback address, and credentials would cross the network in clear: set tls_cert and tls_key, or name the proxy that adds TLS in trusted_proxies, or say --insecure-http"
    )]
    NotSecure(SocketAddr),
    /// The file of the audit log cannot be opened.
    #[error("cannot open the audit file {path}: {source}")]
    Audit {
        /// Where.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The certificate cannot be used.
    #[error("cannot use the certificate: {0}")]
    Tls(#[source] std::io::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; is something else there? choose another with --listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The socket for calls from functions cannot be bound.
    #[error("cannot bind the socket for calls from functions at {path}")]
    Internal {
        /// Where.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The workers' socket cannot be bound.
    #[error("cannot bind the workers' socket")]
    Workers(#[source] std::io::Error),
    /// Nodes of other machines cannot be served.
    #[error(transparent)]
    Front(#[from] FrontError),
}

/// An api that is bound and not yet served.
#[derive(Debug)]
pub struct Api {
    listener: TcpListener,
    tls: Option<Tls>,
    app: App,
    scheduler: Scheduler,
    workers: Server,
    internal: InternalListener,
    front: Option<Front>,
    config: ApiConfig,
}

/// Tells the operator how the first account is made, where nobody is let in without one.
async fn offer_setup(app: App) {
    match app.access().offer_setup().await {
        Ok(Some(token)) => warn!(
            token,
            "there is no account yet, and without one nobody is let in: make the first with POST /setup and this token"
        ),
        Ok(None) => {}
        Err(problem) => warn!(?problem, "the token of the set-up is not known; `faena setup` prints one"),
    }
}

impl Api {
    /// Binds both sides.
    ///
    /// # Errors
    /// [`ApiError`] says which side and why.
    pub async fn bind(config: ApiConfig, db: DbClient, blobs: BlobStore, registry: Registry) -> Result<Self, ApiError> {
        let is_secure = config.tls.is_some() || config.insecure_http || !config.trusted_proxies.is_empty();
        if !config.listen.ip().is_loopback() && !is_secure {
            return Err(ApiError::NotSecure(config.listen));
        }
        let tls = config.tls.as_ref().map(Tls::new).transpose().map_err(ApiError::Tls)?;
        let listen = |source| ApiError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let workers = Server::bind(&config.workers).await.map_err(ApiError::Workers)?;
        let internal = InternalListener::bind(&config.internal)
            .map_err(|source| ApiError::Internal { path: config.internal.clone(), source })?;
        let draining = CancellationToken::new();
        let connections = WorkerConnections::new(config.shards.clone());
        let directory = NodeDirectory::new(db.clone());
        let front = match config.front.clone() {
            Some(front) => Some(Front::bind(front, db.clone(), directory.clone(), blobs.clone()).await?),
            None => None,
        };
        let nodes = Nodes { directory: directory.clone(), front: front.as_ref().map(Front::info) };
        let (scheduler, handle) = Scheduler::new(
            (db.clone(), directory),
            workers.handle(),
            connections.clone(),
            (config.preload, draining.clone()),
        );
        let open = |path: &PathBuf| {
            let opened = File::options().append(true).create(true).mode(0o600).open(path);
            opened.map_err(|source| ApiError::Audit { path: path.clone(), source })
        };
        let audit_file = config.audit_file.as_ref().map(open).transpose()?;
        let app = App::new(&config, (db, nodes), blobs, (handle, draining), audit_file, connections, registry);
        Ok(Self { listener, tls, app, scheduler, workers, internal, front, config })
    }

    /// What answers every request but those of functions (`/f/`), for tests that need no connection.
    pub fn router(&self) -> Router {
        routes::router(self.app.clone())
    }

    /// Serves until told to stop, then lets what runs finish within the grace. Workers that stop with us are listened to
    /// until they have: `drained` is cancelled then.
    pub async fn serve(self, stop: CancellationToken, drained: CancellationToken) {
        info!(address = %self.config.listen, "listening");
        tokio::spawn(offer_setup(self.app.clone()));
        let following = AbortOnDropHandle::new(tokio::spawn(self.app.nodes().directory.clone().follow()));
        let _seeing = AbortOnDropHandle::new(tokio::spawn(presence::keep(self.app.clone())));
        let scheduling = tokio::spawn(self.scheduler.run(self.workers));
        tokio::spawn(callbacks::run(self.app.clone(), self.config.ca_bundle.clone(), stop.clone()));
        tokio::spawn(sweeper::run(self.app.db().clone(), self.app.blobs().clone(), stop.clone()));
        // Functions that still run may call others; they end with the workers.
        let internal_ends = CancellationToken::new();
        tokio::spawn(self.internal.serve(self.app.clone(), internal_ends.clone()));
        if let Some(front) = self.front {
            tokio::spawn(front.serve(internal_ends.clone()));
        }
        if let (Some(tls), Some(files)) = (self.tls.clone(), self.config.tls.clone()) {
            tokio::spawn(tls.follow(files, stop.clone()));
        }
        let listening = (self.listener, self.tls);
        let served = server::serve(listening, routes::router(self.app.clone()), &self.config, &stop, &self.app).await;
        if let Err(error) = served {
            tracing::error!(%error, "connections could not be served");
        }
        // Workers give back what they cut off at the end of their own grace.
        self.app.completions().flush(self.config.grace + GIVE_BACK).await;
        drained.cancelled().await;
        internal_ends.cancel();
        scheduling.abort();
        drop(following);
    }
}
