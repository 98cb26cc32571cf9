//! A service on a folder of its own, under a clock of its own, and the requests that tests need.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use faena_db::{KernelTime, StoreSettings, TimeSource};
use faena_db_client::DbClient;
use faena_domain::units::Millis;
use faena_domain::{
    Attempt, BlobKey, BuildFailure, CallError, CallNum, CallStatus, DigestKind, EngineKind, ErrorKind, Exit,
    FunctionName, Layer, Limits, Manifest, Namespace, Owner, Payload, RuntimeSpec, call::StartKind,
};
use faena_protocol::db::*;
use faena_protocol::records::{BuildOutcome, CallJob, CallRecord, CallSpec, NewCall, Outcome};
use faena_protocol::{DbError, DbRequest};
use faena_transport::Endpoint;
use tokio_util::sync::CancellationToken;

/// Time that moves when it is told to, and wall time that may be set.
#[derive(Debug)]
pub(crate) struct Time {
    boot_ms: AtomicI64,
    wall_ms: AtomicI64,
}

impl Time {
    /// Wall time begins here.
    pub(crate) fn at(wall_ms: i64) -> Arc<Self> {
        Arc::new(Self { boot_ms: AtomicI64::new(1000), wall_ms: AtomicI64::new(wall_ms) })
    }

    /// Time goes on, by every clock.
    pub(crate) fn pass(&self, millis: i64) {
        self.boot_ms.fetch_add(millis, Ordering::SeqCst);
        self.wall_ms.fetch_add(millis, Ordering::SeqCst);
    }

    /// Somebody sets the wall clock.
    pub(crate) fn set_wall(&self, by_ms: i64) {
        self.wall_ms.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl TimeSource for Time {
    fn wall_ms(&self) -> i64 {
        self.wall_ms.load(Ordering::SeqCst)
    }

    fn boot_ms(&self) -> i64 {
        self.boot_ms.load(Ordering::SeqCst)
    }
}

/// One service on a folder of its own; dropping it is a crash.
pub(crate) struct Service {
    pub(crate) client: DbClient,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Service {
    /// Under the kernel's clock.
    pub(crate) fn start(folder: &Path) -> Self {
        Self::start_with(folder, StoreSettings::default(), Arc::new(KernelTime))
    }

    /// Under a clock of the test's own.
    pub(crate) fn start_with(folder: &Path, settings: StoreSettings, time: Arc<dyn TimeSource>) -> Self {
        let store = crate::open(folder, settings, time);
        let endpoint = Endpoint::new(folder.join("s")).unwrap();
        let stop = CancellationToken::new();
        let client = DbClient::connect(endpoint.clone());
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { faena_db::serve(store, &endpoint, stop).await.unwrap() }
        });
        Self { client, stop, task }
    }

    pub(crate) async fn ask<R: DbRequest>(&self, request: R) -> Result<R::Reply, DbError> {
        self.client.ask(&request).await
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

pub(crate) fn space() -> Namespace {
    Namespace::default()
}

pub(crate) fn name(text: &str) -> FunctionName {
    text.parse().unwrap()
}

pub(crate) fn owner(incarnation: &str) -> Owner {
    Owner { worker: "w1".into(), incarnation: incarnation.into() }
}

pub(crate) fn runtime(run: &str) -> RuntimeSpec {
    let body = serde_json::json!({"image": "pythonruntime", "path": "/ws", "dependencies": "true", "run": run});
    RuntimeSpec::parse(body.to_string().as_bytes(), &Limits::MAXIMUM).unwrap()
}

pub(crate) fn upload(request: &str, function: &str) -> VersionPut {
    VersionPut {
        request: request.into(),
        namespace: space(),
        runtime: "pythonruntime".parse().unwrap(),
        function: name(function),
        source: BlobKey::new(DigestKind::Sha256, [7; 32]),
        source_bytes: 10,
        root: String::new(),
        manifest: Manifest::default(),
        limits: Limits::DEFAULT,
        nodes: faena_domain::NodeSelector::default(),
        secret: "whsec_c2VjcmV0".into(),
    }
}

pub(crate) async fn with_function(service: &Service, function: &str) {
    service.ask(RuntimePut { namespace: space(), spec: runtime("python3 test.py") }).await.unwrap();
    service.ask(upload(&format!("up-{function}"), function)).await.unwrap();
}

pub(crate) async fn build(service: &Service, result: Result<BlobKey, BuildFailure>) {
    let claim = BuildsClaim {
        request: uuid(),
        owner: owner("a"),
        engines: vec![EngineKind::Sandbox],
        slots: SlotsView::unused(1),
    };
    let job = service.ask(claim).await.unwrap().pop().unwrap();
    service
        .ask(BuildFinish {
            namespace: space(),
            function: job.code.function,
            version: job.code.version,
            epoch: job.epoch,
            owner: owner("a"),
            outcome: Some(BuildOutcome {
                engine: Some(EngineKind::Sandbox),
                image_id: Some("host".into()),
                result,
                log: Payload::Text("built".into()),
                log_tail: "built".into(),
            }),
        })
        .await
        .unwrap();
}

pub(crate) async fn with_built(service: &Service, function: &str) {
    with_function(service, function).await;
    build(service, Ok(BlobKey::new(DigestKind::Sha256, [9; 32]))).await;
}

pub(crate) fn uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

pub(crate) fn spec(num: i64, function: &str) -> CallSpec {
    CallSpec {
        num: CallNum(num),
        namespace: space(),
        function: name(function),
        params: Payload::Text("{}".into()),
        body: None,
        request: None,
        private_headers: Vec::new(),
        direct: false,
        timeout_ms: None,
        max_age_ms: 3_600_000,
        retries: Some(0),
        run_at: None,
        priority: 0,
        key: None,
        waited: false,
        replay_of: None,
        callback: None,
        account: None,
        traceparent: String::new(),
    }
}

pub(crate) async fn try_accept(service: &Service, spec: CallSpec) -> Result<CallRecord, DbError> {
    let calls = vec![NewCall { spec: spec.clone(), version: None }];
    let accepted = service.ask(CallsAccept { calls }).await?.pop().expect("one answer");
    accepted.map(|accepted| accepted.record(spec))
}

pub(crate) async fn accept(service: &Service, spec: CallSpec) -> CallRecord {
    try_accept(service, spec).await.unwrap()
}

pub(crate) async fn claim(service: &Service, request: &str) -> Vec<CallJob> {
    let engines = vec![EngineKind::Sandbox];
    service
        .ask(CallsClaim {
            request: request.into(),
            owner: owner("a"),
            engines,
            limit: 10,
            slots: SlotsView::unused(10),
            spare: Vec::new(),
        })
        .await
        .unwrap()
}

pub(crate) fn outcome(job: &CallJob, error: Option<CallError>) -> Outcome {
    Outcome {
        head: None,
        status: if error.is_some() { CallStatus::Failed } else { CallStatus::Done },
        result: Payload::Text("out".into()),
        error,
        logs: Payload::empty(),
        attempt: Attempt {
            attempt: job.attempt,
            worker: "w1".into(),
            engine: EngineKind::Sandbox,
            start: StartKind::Cold,
            epoch: job.epoch,
            placement: job.placement,
            queue_ms: Millis::from_millis(job.queue_ms),
            start_ms: Millis::from_millis(1),
            run_ms: Millis::from_millis(1),
            exit: Some(Exit::Code(0)),
            peak_memory_bytes: None,
            cpu_ms: None,
            missing_layers: vec![],
            egress: None,
            error: None,
        },
    }
}

pub(crate) fn finish(job: &CallJob, error: Option<CallError>) -> CallFinish {
    CallFinish { num: job.num, epoch: job.epoch, owner: owner("a"), outcome: Some(outcome(job, error)) }
}

pub(crate) async fn get(service: &Service, num: i64) -> CallRecord {
    service.ask(CallGet { namespace: space(), num: CallNum(num) }).await.unwrap()
}

pub(crate) const DAY: i64 = 24 * 3600 * 1000;

pub(crate) async fn reap(service: &Service) -> Reaped {
    service.ask(Reap {}).await.unwrap()
}

/// A list of the newest calls.
pub(crate) fn newest(limit: u32) -> CallList {
    CallList { namespace: space(), function: None, status: None, dead: false, unreplayed: false, before: None, limit }
}

/// How many calls are on record. The service reaps by itself too, so what one reaping has forgotten tells nothing.
pub(crate) async fn kept_calls(service: &Service) -> usize {
    service.ask(newest(10_000)).await.unwrap().len()
}

pub(crate) async fn claim_as(service: &Service, owner: Owner, limit: u32) -> Vec<CallJob> {
    let claim = CallsClaim {
        request: uuid(),
        owner,
        engines: vec![EngineKind::Sandbox],
        limit,
        slots: SlotsView::unused(limit),
        spare: Vec::new(),
    };
    service.ask(claim).await.unwrap()
}

pub(crate) async fn names(service: &Service, limit: u32) -> Vec<String> {
    let jobs = claim_as(service, owner("a"), limit).await;
    jobs.into_iter().map(|job| job.code.function.to_string()).collect()
}

pub(crate) async fn dead_letters(service: &Service) -> Vec<i64> {
    let list = CallList {
        namespace: space(),
        function: None,
        status: None,
        dead: true,
        unreplayed: false,
        before: None,
        limit: 10,
    };
    service.ask(list).await.unwrap().into_iter().map(|call| call.num.0).collect()
}

pub(crate) fn exit() -> Option<CallError> {
    Some(CallError::new(ErrorKind::Exit, Layer::Run, "exit 1"))
}

pub(crate) async fn status(service: &Service, num: i64) -> CallStatus {
    get(service, num).await.status
}
