//! Attempts and builds against an engine that fails wherever it is told to: each ends as it should, and leaves nothing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::BTreeMap;
use std::sync::Arc;

use faena_blob::BlobStore;
use faena_domain::call::StartKind;
use faena_domain::units::ByteSize;
use faena_domain::{
    BlobKey, CallNum, CallStatus, DigestKind, EngineKind, Epoch, ErrorKind, Layer, Limits, Namespace, Payload, Reuse,
    RuntimeSpec,
};
use faena_engine::{Engine, Pull};
use faena_protocol::records::{BuildJob, CallJob, Code, Outcome};
use faena_test_support::{FakeEngine, Trouble, zip};
use faena_worker::node::{
    BuildLimits, CodeStore, EgressPolicy, Gateway, ImageStore, LeaseEnd, LiveLogs, Node, NodeEgress, Pool, PoolConfig,
    PoolMetrics, PoolPolicy, PreloadSetting, Resolvers, StreamBounds, run_attempt, run_build,
};
use tokio_util::sync::CancellationToken;

/// A lease that never ends.
fn lease() -> LeaseEnd {
    tokio::sync::watch::channel(u64::MAX).1
}

/// A node on a folder of its own, with one uploaded archive.
struct Bench {
    node: Arc<Node>,
    pool: Pool,
    engine: FakeEngine,
    archive: BlobKey,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn new(trouble: Trouble) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let blobs = BlobStore::local(&folder.path().join("blobs")).unwrap();
        let archive =
            blobs.of(&Namespace::default()).put_bytes(DigestKind::Sha256, zip(&[("a", b"b")]).into()).await.unwrap();
        let engine = FakeEngine::with(trouble);
        let shared: Arc<dyn Engine> = Arc::new(engine.clone());
        let node = Node {
            worker: "w".into(),
            engines: BTreeMap::from([(EngineKind::Sandbox, shared)]),
            code: CodeStore::open(folder.path().join("code"), blobs.clone(), ByteSize(1 << 30), ByteSize(0)).unwrap(),
            images: ImageStore::new(blobs.clone(), ByteSize(1 << 30), ByteSize(0)),
            blobs,
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
            tasks: tokio_util::task::TaskTracker::new(),
        };
        let node = Arc::new(node);
        let minute = std::time::Duration::from_secs(60);
        let policy = PoolPolicy {
            slots: 4,
            creations: 4,
            instances: 8,
            memory: ByteSize(1 << 30),
            idle: minute,
            freeze_after: minute,
            preload: PreloadSetting::new(Some(faena_domain::Preload::None)),
        };
        let config = PoolConfig { policy, start_timeout: minute, home: tokio::runtime::Handle::current() };
        let pool = Pool::new(Arc::clone(&node), config, PoolMetrics::default());
        Self { node, pool, engine, archive, _folder: folder }
    }

    fn code(&self, run: &str) -> Code {
        let code = faena_test_support::code("f", faena_domain::Serving::default());
        Code { run: run.into(), archive: self.archive, ..code }
    }

    fn job(&self, run: &str) -> CallJob {
        CallJob {
            num: CallNum(1),
            epoch: Epoch(1),
            attempt: 1,
            code: self.code(run),
            params: Payload::Text("{\"n\":1}".into()),
            body: None,
            request: None,
            direct: false,
            timeout_ms: 20_000,
            expires: false,
            deadline_unix_ms: 0,
            queue_ms: 0,
            traceparent: String::new(),
            has_row: true,
            placement: None,
        }
    }

    /// Runs an attempt, waits for what it leaves, and checks that nothing lives but what the pool knows of.
    async fn attempt(&self, job: &CallJob, stop: &CancellationToken) -> Option<Outcome> {
        let mut ended = run_attempt(&self.pool, job, lease(), stop, || {}).await;
        let outcome = ended.outcome.take();
        ended.released().await;
        assert_eq!(self.engine.live() as u64, self.pool.view().instances, "an instance was left behind");
        outcome
    }

    async fn attempt_only(&self, job: &CallJob, stop: &CancellationToken) -> Option<Outcome> {
        run_attempt(&self.pool, job, lease(), stop, || {}).await.outcome
    }

    async fn outcome(&self, run: &str) -> Outcome {
        self.attempt(&self.job(run), &CancellationToken::new()).await.unwrap()
    }
}

async fn kind_of(run: &str) -> ErrorKind {
    Bench::new(Trouble::None).await.outcome(run).await.error.unwrap().kind
}

#[tokio::test]
async fn what_is_put_out_is_the_result() {
    let bench = Bench::new(Trouble::None).await;
    let outcome = bench.outcome("echo").await;
    assert_eq!((outcome.status, outcome.result), (CallStatus::Done, Payload::Text("{\"n\":1}".into())));
    let outcome = bench.outcome(r#"output '{"output": [1, 2]}'"#).await;
    assert_eq!(outcome.result, Payload::Text("[1,2]".into()));
}

#[tokio::test]
async fn every_failure_has_its_kind() {
    assert_eq!(kind_of("exit 3").await, ErrorKind::Exit);
    assert_eq!(kind_of("signal 11").await, ErrorKind::Signal);
    assert_eq!(kind_of("oom").await, ErrorKind::Oom);
    assert_eq!(kind_of("flood").await, ErrorKind::Output);
    assert_eq!(kind_of("output nonsense").await, ErrorKind::Output);
    assert_eq!(kind_of("refuse").await, ErrorKind::Start);
    assert_eq!(kind_of("vanish").await, ErrorKind::Infrastructure);
    assert_eq!(kind_of("babble").await, ErrorKind::Infrastructure);
}

#[tokio::test]
async fn every_step_before_the_process_can_fail() {
    for (trouble, kind) in [(Trouble::Unavailable, ErrorKind::Infrastructure), (Trouble::Create, ErrorKind::Start)] {
        let error = Bench::new(trouble).await.outcome("echo").await.error.unwrap();
        assert_eq!((error.kind, error.layer), (kind, Layer::Start), "{trouble:?}");
    }
    let bench = Bench::new(Trouble::None).await;
    let mut job = bench.job("echo");
    job.code.archive = BlobKey::new(DigestKind::Sha256, [1; 32]);
    let error = bench.attempt(&job, &CancellationToken::new()).await.unwrap().error.unwrap();
    assert_eq!(error.kind, ErrorKind::Start, "another delivery would not find it either");
    job = bench.job("echo");
    job.code.engine = Some(EngineKind::Docker);
    let error = bench.attempt(&job, &CancellationToken::new()).await.unwrap().error.unwrap();
    assert_eq!(error.kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_process_that_hangs_is_ended_on_time_and_the_status_says_whose_time_it_was() {
    let bench = Bench::new(Trouble::None).await;
    let mut job = bench.job("hang");
    job.timeout_ms = 100;
    let outcome = bench.attempt(&job, &CancellationToken::new()).await.unwrap();
    assert_eq!((outcome.status, outcome.error.unwrap().kind), (CallStatus::Timeout, ErrorKind::Timeout));
    job.expires = true;
    let outcome = bench.attempt(&job, &CancellationToken::new()).await.unwrap();
    assert_eq!((outcome.status, outcome.error.unwrap().kind), (CallStatus::Expired, ErrorKind::Expired));
}

#[tokio::test]
async fn a_node_that_stops_gives_the_attempt_back() {
    let bench = Bench::new(Trouble::None).await;
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    let job = bench.job("hang");
    let ended = run_attempt(&bench.pool, &job, lease(), &stop, move || cancel.cancel()).await;
    assert!(ended.outcome.is_none());
    ended.released().await;
    assert_eq!(bench.engine.live(), 0);
}

fn start(outcome: &Outcome) -> StartKind {
    outcome.attempt.start
}

#[tokio::test]
async fn an_instance_serves_the_same_version_again_and_no_other() {
    let bench = Bench::new(Trouble::None).await;
    let none = CancellationToken::new();
    let mut job = bench.job("echo");
    let starts = [bench.attempt(&job, &none).await.unwrap(), bench.attempt(&job, &none).await.unwrap()];
    assert_eq!(starts.each_ref().map(start), [StartKind::Cold, StartKind::Warm]);
    // The same name and number, of a function that was deleted and came again.
    job.code.since += 1;
    assert_eq!(start(&bench.attempt(&job, &none).await.unwrap()), StartKind::Cold);
    assert_eq!(bench.engine.live(), 2);
    bench.pool.drain(std::time::Duration::ZERO).await;
    assert_eq!(bench.engine.live(), 0);
}

#[tokio::test]
async fn what_is_never_used_again_is_destroyed() {
    let bench = Bench::new(Trouble::None).await;
    let mut job = bench.job("echo");
    job.code.serving.reuse = Reuse::Never;
    for _ in 0..2 {
        let outcome = bench.attempt(&job, &CancellationToken::new()).await.unwrap();
        assert_eq!((start(&outcome), bench.engine.live()), (StartKind::Cold, 0));
    }
}

#[tokio::test]
async fn what_was_killed_does_not_serve_again() {
    let bench = Bench::new(Trouble::None).await;
    for run in ["hang", "oom", "flood"] {
        let mut job = bench.job(run);
        job.timeout_ms = 500;
        bench.attempt(&job, &CancellationToken::new()).await.unwrap();
        assert_eq!(bench.engine.live(), 0, "{run}");
    }
}

#[tokio::test]
async fn the_cheapest_to_lose_makes_room() {
    let bench = Bench::new(Trouble::None).await;
    for since in 0..12 {
        let mut job = bench.job("echo");
        job.code.since = since;
        let outcome = bench.attempt(&job, &CancellationToken::new()).await.unwrap();
        assert_eq!(outcome.status, CallStatus::Done);
    }
    // An eviction is done by a task of its own.
    while bench.engine.live() > 8 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.pool.view().instances, 8);
}

#[tokio::test]
async fn more_calls_than_slots_wait_their_turn() {
    let bench = Bench::new(Trouble::None).await;
    let job = bench.job("echo");
    let none = CancellationToken::new();
    let calls = (0..20).map(|_| bench.attempt_only(&job, &none));
    let outcomes = futures_util::future::join_all(calls).await;
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().is_some_and(|o| o.status == CallStatus::Done)));
    assert!(bench.engine.live() <= 4);
}

#[tokio::test]
async fn large_and_binary_results_go_by_the_blob_store() {
    let bench = Bench::new(Trouble::None).await;
    let mut job = bench.job("echo");
    job.params = bench.node.blobs.of(&Namespace::default()).payload(vec![b'7'; 100_000]).await.unwrap();
    let outcome = bench.attempt(&job, &CancellationToken::new()).await.unwrap();
    assert!(matches!(outcome.result, Payload::Blob { bytes: 100_000, utf8: true, .. }));
    job.body = Some(bench.node.blobs.of(&Namespace::default()).payload(vec![0xff, 0xfe]).await.unwrap());
    let outcome = bench.attempt(&job, &CancellationToken::new()).await.unwrap();
    assert_eq!(outcome.error.unwrap().kind, ErrorKind::Output);
    job.direct = true;
    let outcome = bench.attempt(&job, &CancellationToken::new()).await.unwrap();
    assert!(matches!(outcome.result, Payload::Blob { bytes: 2, utf8: false, .. }));
}

fn build(bench: &Bench, dependencies: &str) -> BuildJob {
    let body = serde_json::json!({"image": "fake", "path": "/ws", "dependencies": dependencies, "run": "echo"});
    let runtime = RuntimeSpec::parse(body.to_string().as_bytes(), &Limits::MAXIMUM).unwrap();
    BuildJob { epoch: Epoch(1), runtime, code: bench.code("echo"), env: BTreeMap::new(), config: None }
}

#[tokio::test]
async fn nothing_to_build_makes_the_source_the_artifact() {
    let bench = Bench::new(Trouble::None).await;
    let outcome = run_build(&bench.node, &build(&bench, ""), lease(), &CancellationToken::new()).await.unwrap();
    assert_eq!((outcome.engine, outcome.result), (Some(EngineKind::Sandbox), Ok(bench.archive)));
}

#[tokio::test]
async fn builds_fail_with_their_reason_and_leave_nothing() {
    for (trouble, dependencies, kind) in [
        (Trouble::None, "exit 9", ErrorKind::Build),
        (Trouble::None, "refuse", ErrorKind::Build),
        (Trouble::None, "vanish", ErrorKind::Infrastructure),
        (Trouble::Image, "echo", ErrorKind::Image),
        (Trouble::Unavailable, "echo", ErrorKind::Infrastructure),
        (Trouble::Create, "echo", ErrorKind::Build),
    ] {
        let bench = Bench::new(trouble).await;
        let outcome =
            run_build(&bench.node, &build(&bench, dependencies), lease(), &CancellationToken::new()).await.unwrap();
        assert_eq!(outcome.result.unwrap_err().kind, kind, "{trouble:?} {dependencies}");
        assert_eq!(bench.engine.live(), 0);
    }
}
