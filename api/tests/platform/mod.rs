//! A platform in this process, with an engine of threads: its router is asked without a connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use faena_api::{Api, ApiConfig};
use faena_blob::BlobStore;
use faena_db::{SqliteStore, StoreSettings};
use faena_db_client::DbClient;
use faena_domain::units::ByteSize;
use faena_domain::{EngineKind, Limits, Owner, Preload};
use faena_egress::{EgressPolicy, Resolvers};
use faena_engine::{Engine, Pull};
use faena_telemetry::Metrics;
use faena_test_support::{FakeEngine, Trouble, zip};
use faena_transport::Endpoint;
use faena_worker::node::{
    BuildLimits, CodeStore, Gateway, ImageStore, LiveLogs, Node, NodeEgress, Pool, PoolConfig, PoolMetrics, PoolPolicy,
    PreloadSetting, StreamBounds,
};
use faena_worker::{Worker, WorkerConfig};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// What a request got.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
}

/// A database, an api and a worker; all of it ends with this.
pub(crate) struct Platform {
    pub(crate) engine: FakeEngine,
    router: Router,
    _stop: DropGuard,
    _folder: tempfile::TempDir,
}

/// The parts that all roles share.
struct Parts<'a> {
    folder: &'a tempfile::TempDir,
    metrics: Metrics,
    blobs: BlobStore,
    stop: CancellationToken,
}

impl Parts<'_> {
    fn endpoint(&self, name: &str) -> Endpoint {
        Endpoint::new(self.folder.path().join(name)).unwrap()
    }

    fn start_db(&self) -> DbClient {
        let metrics = self.metrics.register(faena_db::metrics::Metrics::register);
        let settings = StoreSettings { disk_reserve: ByteSize(0), ..StoreSettings::default() };
        let store = Arc::new(
            SqliteStore::open(
                &self.folder.path().join("faena.db"),
                &self.folder.path().join("secret.key"),
                settings,
                &metrics,
            )
            .unwrap(),
        );
        let (endpoint, stop) = (self.endpoint("db.sock"), self.stop.clone());
        tokio::spawn(async move { faena_db::serve(store, &endpoint, stop).await });
        DbClient::connect(self.endpoint("db.sock"))
    }

    async fn start_api(&self, db: DbClient, pool: Pool) -> Router {
        let config = ApiConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            workers: self.endpoint("api.sock"),
            internal: self.folder.path().join("internal.sock"),
            tls: None,
            insecure_http: false,
            trusted_proxies: Vec::new(),
            operators: faena_api::Operators::default(),
            sign_in: faena_api::SignInLifetimes::default(),
            audit_file: None,
            functions_domain: None,
            private_headers: Vec::new(),
            host_names: Vec::new(),
            maximum: Limits::MAXIMUM,
            connections: 100,
            grace: Duration::ZERO,
            disk_reserve: ByteSize(0),
            egress: EgressPolicy::public(Resolvers::of_host()),
            ca_bundle: None,
            preload: Preload::None,
            front: None,
            invoker: Some(("w".to_owned(), Arc::new(pool))),
            shards: Vec::new(),
        };
        let api = Api::bind(config, db, self.blobs.clone(), self.metrics.clone()).await.unwrap();
        let router = api.router();
        tokio::spawn(api.serve(self.stop.clone(), self.stop.clone()));
        router
    }

    fn node(&self, engine: &FakeEngine) -> Node {
        let engine: Arc<dyn Engine> = Arc::new(engine.clone());
        let code = self.folder.path().join("code");
        Node {
            worker: "w".to_owned(),
            engines: BTreeMap::from([(EngineKind::Sandbox, engine)]),
            code: CodeStore::open(code, self.blobs.clone(), ByteSize(1 << 30), ByteSize(0)).unwrap(),
            images: ImageStore::new(self.blobs.clone(), ByteSize(1 << 30), ByteSize(0)),
            blobs: self.blobs.clone(),
            ca_bundle: None,
            egress: NodeEgress::new(
                EgressPolicy::public(Resolvers::of_host()),
                Gateway::new("/dev/null".into(), tokio::runtime::Handle::current()),
                "/dev/null".into(),
            ),
            pull: Pull::Never,
            build: BuildLimits::default(),
            streams: StreamBounds::default(),
            draining: CancellationToken::new(),
            logs: LiveLogs::default(),
            tasks: TaskTracker::new(),
        }
    }

    fn start_worker(&self, node: &Arc<Node>, pool: Pool, db: DbClient) {
        let config = WorkerConfig {
            owner: Owner { worker: "w".to_owned(), incarnation: "i".to_owned() },
            slots: 4,
            grace: Duration::ZERO,
            stops_when_drained: false,
            version: String::new(),
            api: self.endpoint("api.sock").into(),
            direct: Vec::new(),
        };
        let metrics = self.metrics.register(faena_worker::metrics::Metrics::register);
        let worker = Worker::new(config, (Arc::clone(node), pool), db, metrics);
        tokio::spawn(worker.run(self.stop.clone()));
    }
}

fn pool_config() -> PoolConfig {
    let minute = Duration::from_secs(60);
    let policy = PoolPolicy {
        slots: 4,
        creations: 4,
        instances: 8,
        memory: ByteSize(1 << 30),
        idle: minute,
        freeze_after: minute,
        preload: PreloadSetting::new(Some(Preload::None)),
    };
    PoolConfig { policy, start_timeout: minute, home: Handle::current() }
}

impl Platform {
    /// Starts it; its engine has this trouble.
    pub(crate) async fn start(trouble: Trouble) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let blobs = BlobStore::local(&folder.path().join("blobs")).unwrap();
        let (stop, engine) = (CancellationToken::new(), FakeEngine::with(trouble));
        let parts = Parts { folder: &folder, metrics: Metrics::default(), blobs, stop: stop.clone() };
        let db = parts.start_db();
        let node = Arc::new(parts.node(&engine));
        let pool = Pool::new(Arc::clone(&node), pool_config(), PoolMetrics::default());
        let router = parts.start_api(db.clone(), pool.clone()).await;
        parts.start_worker(&node, pool, db);
        Self { engine, router, _stop: stop.drop_guard(), _folder: folder }
    }

    /// Asks the router.
    pub(crate) async fn ask(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Reply { status, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.ask(request("GET", path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.ask(request("DELETE", path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        let request = request("POST", path).header("content-type", "application/json");
        self.ask(request.body(Body::from(body.to_string())).unwrap()).await
    }

    /// Registers a runtime whose command is this one of the engine's, and a function of the same name.
    pub(crate) async fn deploy(&self, name: &str, run: &str) -> Reply {
        let runtime = json!({"name": name, "image": "fake", "path": "/ws", "dependencies": "", "run": run});
        assert_eq!(self.post("/registerRuntime", &runtime).await.status, StatusCode::CREATED);
        self.upload(&format!("/registerFunction/{name}/{name}"), &zip(&[("a", b"b")])).await
    }

    /// Uploads another archive to a function that is there.
    pub(crate) async fn deploy_again(&self, name: &str) -> Reply {
        self.upload(&format!("/registerFunction/{name}/{name}"), &zip(&[("a", b"c")])).await
    }

    pub(crate) async fn upload(&self, path: &str, archive: &[u8]) -> Reply {
        const BOUNDARY: &str = "between-the-parts";
        let head =
            format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"module\"; filename=\"m.zip\"\r\n\r\n");
        let body = [head.as_bytes(), archive, format!("\r\n--{BOUNDARY}--\r\n").as_bytes()].concat();
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        self.ask(request("POST", path).header("content-type", kind).body(Body::from(body)).unwrap()).await
    }

    /// Calls a function and waits for its end.
    pub(crate) async fn invoke(&self, name: &str, params: &Value) -> Reply {
        let body = json!({"funcName": name, "params": params});
        let request = request("POST", "/invokeFunction").header("content-type", "application/json");
        self.ask(request.header("prefer", "wait=20").body(Body::from(body.to_string())).unwrap()).await
    }
}

/// A request as a client on this machine sends it.
pub(crate) fn request(method: &str, path: &str) -> axum::http::request::Builder {
    Request::builder().method(method).uri(path).header("host", "localhost")
}
