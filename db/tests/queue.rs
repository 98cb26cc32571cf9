//! The queue as the database keeps it: order, time, retries, keys, dead letters, retention, under a clock of the test's own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod support;

use faena_db::{Keep, QueueBounds, StoreSettings};
use faena_domain::units::ByteSize;
use faena_domain::{
    BlobKey, BuildFailure, CallError, CallNum, CallStatus, DigestKind, EngineKind, Epoch, ErrorKind, FunctionId, Layer,
    Manifest, Owner, Payload, Timestamp, Version,
};
use faena_protocol::DbError;
use faena_protocol::db::*;
use faena_protocol::records::{
    CallJob, CallRecord, CallSpec, Callback, CompletedBatch, EndedCall, IdempotencyKey, NewCall, Outcome,
};
use support::*;

const DAY: i64 = 24 * 3600 * 1000;

async fn reap(service: &Service) -> Reaped {
    service.ask(Reap {}).await.unwrap()
}

/// How many calls are on record. The service reaps by itself too, so what one reaping has forgotten tells nothing.
async fn kept_calls(service: &Service) -> usize {
    let list = CallList {
        namespace: space(),
        function: None,
        status: None,
        dead: false,
        unreplayed: false,
        before: None,
        limit: 10_000,
    };
    service.ask(list).await.unwrap().len()
}

async fn claim_as(service: &Service, owner: Owner, limit: u32) -> Vec<CallJob> {
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

async fn names(service: &Service, limit: u32) -> Vec<String> {
    let jobs = claim_as(service, owner("a"), limit).await;
    jobs.into_iter().map(|job| job.code.function.to_string()).collect()
}

async fn dead_letters(service: &Service) -> Vec<i64> {
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

fn exit() -> Option<CallError> {
    Some(CallError::new(ErrorKind::Exit, Layer::Run, "exit 1"))
}

async fn status(service: &Service, num: i64) -> CallStatus {
    get(service, num).await.status
}

#[tokio::test]
async fn a_long_queue_delays_no_short_one() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "crowd").await;
    with_built(&service, "single").await;
    for num in 1..=50 {
        accept(&service, spec(num, "crowd")).await;
    }
    accept(&service, spec(51, "single")).await;
    assert!(names(&service, 4).await.contains(&"single".to_owned()));
    accept(&service, spec(52, "single")).await;
    assert!(names(&service, 2).await.contains(&"single".to_owned()));
}

#[tokio::test]
async fn a_higher_priority_goes_first_within_one_function() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    for (num, priority) in [(1, 0), (2, 5), (3, -5), (4, 5)] {
        accept(&service, CallSpec { priority, ..spec(num, "dice") }).await;
    }
    let mut order = Vec::new();
    for _ in 0..4 {
        order.extend(claim_as(&service, owner("a"), 1).await.into_iter().map(|job| job.num.0));
    }
    assert_eq!(order, [2, 4, 1, 3]);
}

#[tokio::test]
async fn no_more_of_a_function_run_than_it_permits() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    service.ask(RuntimePut { namespace: space(), spec: runtime("x") }).await.unwrap();
    let manifest = Manifest::parse("[limits]\nconcurrency = 2").unwrap();
    service.ask(VersionPut { manifest, ..upload("up", "narrow") }).await.unwrap();
    build(&service, Ok(BlobKey::new(DigestKind::Sha256, [9; 32]))).await;
    for num in 1..=4 {
        accept(&service, spec(num, "narrow")).await;
    }
    let jobs = claim_as(&service, owner("a"), 10).await;
    assert_eq!(jobs.len(), 2);
    assert_eq!(claim_as(&service, owner("a"), 10).await.len(), 0);
    service.ask(finish(&jobs[0], None)).await.unwrap();
    assert_eq!(claim_as(&service, owner("a"), 10).await.len(), 1);
}

#[tokio::test]
async fn full_queues_say_what_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let queue = QueueBounds { function_calls: 2, function_bytes: ByteSize(100), calls: 3, bytes: ByteSize(1000) };
    let settings = StoreSettings { queue, ..StoreSettings::default() };
    let service = Service::start_with(folder.path(), settings, Time::at(DAY));
    with_built(&service, "a").await;
    with_built(&service, "b").await;
    let ask = |num, function: &str, params: &str| {
        let spec = CallSpec { params: Payload::Text(params.into()), ..spec(num, function) };
        try_accept(&service, spec)
    };
    let message = |refused: Result<CallRecord, DbError>| match refused {
        Err(DbError::QueueFull { message }) => message,
        other => panic!("{other:?}"),
    };
    assert!(message(ask(1, "a", &"x".repeat(101)).await).contains("100 B"));
    ask(1, "a", "1").await.unwrap();
    ask(2, "a", "1").await.unwrap();
    assert!(message(ask(3, "a", "1").await).contains("2 calls of a"));
    ask(4, "b", "1").await.unwrap();
    assert!(message(ask(5, "b", "1").await).contains("3 calls wait"));
    claim_as(&service, owner("a"), 1).await;
    ask(5, "b", "1").await.unwrap();
}

#[tokio::test]
async fn calls_that_are_accepted_together_are_judged_alone() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    let key = Some(IdempotencyKey { key: "k".into(), hash: BlobKey::new(DigestKind::Sha256, [1; 32]) });
    let specs = [
        spec(1, "dice"),
        spec(2, "nobody"),
        CallSpec { key: key.clone(), ..spec(3, "dice") },
        CallSpec { key, ..spec(4, "dice") },
        spec(1, "dice"),
    ];
    let calls = specs.clone().map(|spec| NewCall { spec, version: None }).into();
    let answers = service.ask(CallsAccept { calls }).await.unwrap();
    let records = answers.into_iter().zip(specs).map(|(answer, spec)| answer.map(|accepted| accepted.record(spec)));
    let answers: Vec<_> = records.collect();
    let numbers: Vec<_> = answers.iter().map(|answer| answer.as_ref().map(|call| call.num.0)).collect();
    let nobody = DbError::NotFound { what: Resource::Function, name: "nobody".into() };
    assert_eq!(numbers, [Ok(1), Err(&nobody), Ok(3), Ok(3), Ok(1)]);
    assert_eq!(answers[0].as_ref(), Ok(&get(&service, 1).await));
    assert_eq!(claim_as(&service, owner("a"), 10).await.len(), 2);
}

/// What every function queue and all of them together count, beside what there is.
fn counted(folder: &std::path::Path) -> [Vec<(String, [i64; 4])>; 2] {
    let connection = rusqlite::Connection::open(folder.join("db")).unwrap();
    let is_counted = "sum(status = 'PENDING'), sum(iif(status = 'PENDING', bytes, 0))";
    let sums = [
        "SELECT function, pending, bytes, due, running FROM function_queues
         UNION ALL SELECT '', pending, bytes, ended, 0 FROM totals ORDER BY 1".to_owned(),
        format!(
            "SELECT function, {is_counted}, sum(status = 'PENDING' AND due), sum(status = 'RUNNING') FROM calls GROUP BY function
             UNION ALL SELECT '', {is_counted}, sum(ended_at IS NOT NULL), 0 FROM calls ORDER BY 1"
        ),
    ];
    sums.map(|sql| {
        let mut statement = connection.prepare(&sql).unwrap();
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, [row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?]));
        statement.query_map([], row).unwrap().collect::<Result<_, _>>().unwrap()
    })
}

#[tokio::test]
async fn lanes_count_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    with_built(&service, "quiet").await;
    with_function(&service, "broken").await;
    build(&service, Err(BuildFailure { kind: ErrorKind::Build, message: "no".into() })).await;
    with_function(&service, "unbuilt").await;
    let key = Some(IdempotencyKey { key: "k".into(), hash: BlobKey::new(DigestKind::Sha256, [1; 32]) });
    let specs = [
        CallSpec { key: key.clone(), waited: true, ..spec(2, "dice") },
        CallSpec { key, ..spec(3, "dice") },
        CallSpec { params: Payload::Text("[1, 2, 3]".into()), ..spec(4, "dice") },
        CallSpec { run_at: Some(Timestamp(i64::MAX)), ..spec(5, "dice") },
        spec(6, "broken"),
        spec(7, "unbuilt"),
        spec(8, "quiet"),
        spec(9, "dice"),
    ];
    let calls = specs.map(|spec| NewCall { spec, version: None }).into();
    service.ask(CallsAccept { calls }).await.unwrap();
    let [kept, there] = counted(folder.path());
    assert_eq!(kept, there);
    assert_eq!(there.len(), 5, "every function, and all together: {there:?}");
    let mut jobs = claim_as(&service, owner("a"), 3).await;
    service.ask(finish(&jobs.pop().unwrap(), None)).await.unwrap();
    service.ask(finish(&jobs.pop().unwrap(), exit())).await.unwrap();
    service
        .ask(CallReplay {
            num: CallNum(10),
            namespace: space(),
            of: CallNum(4),
            version: None,
            traceparent: String::new(),
            account: None,
        })
        .await
        .unwrap();
    service.ask(CallCancel { namespace: space(), num: CallNum(7) }).await.unwrap();
    let [kept, there] = counted(folder.path());
    assert_eq!(kept, there);
}

#[tokio::test]
async fn a_key_is_one_call_whatever_else_happens() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(DAY);
    let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
    with_built(&service, "dice").await;
    let ask = |num, hash: u8| {
        let key = Some(IdempotencyKey { key: "k".into(), hash: BlobKey::new(DigestKind::Sha256, [hash; 32]) });
        try_accept(&service, CallSpec { key, ..spec(num, "dice") })
    };
    assert_eq!(ask(1, 1).await.unwrap().num, CallNum(1));
    assert_eq!(ask(2, 1).await.unwrap().num, CallNum(1));
    assert_eq!(ask(3, 2).await, Err(DbError::KeyReused { key: "k".into() }));
    let job = claim(&service, "c").await.pop().unwrap();
    service.ask(finish(&job, None)).await.unwrap();
    assert_eq!(ask(4, 1).await.unwrap().status, CallStatus::Done);
    time.pass(DAY + 1);
    reap(&service).await;
    assert_eq!(ask(5, 2).await.unwrap().num, CallNum(5), "a day later the key is free");
}

#[tokio::test]
async fn what_is_lost_is_delivered_again_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(DAY);
    let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
    with_built(&service, "dice").await;
    accept(&service, spec(1, "dice")).await;
    let lost = claim(&service, "c").await.pop().unwrap();
    service.ask(CallsStarted { owner: owner("a"), calls: vec![(lost.num, lost.epoch)] }).await.unwrap();
    time.pass(4000);
    assert_eq!(reap(&service).await.lost, 0);
    // In steps shorter than a stall of the service itself.
    for _ in 0..7 {
        time.pass(4000);
        reap(&service).await;
    }
    assert_eq!(status(&service, 1).await, CallStatus::Pending);
    assert_eq!(service.ask(finish(&lost, None)).await, Err(DbError::Stale));
    let again = claim(&service, "d").await.pop().unwrap();
    assert_eq!((again.attempt, again.epoch), (2, lost.epoch.next()));
    service.ask(finish(&again, None)).await.unwrap();
    let call = get(&service, 1).await;
    assert_eq!((call.status, call.attempts.len()), (CallStatus::Done, 2));
    assert_eq!(dead_letters(&service).await, Vec::<i64>::new());
}

#[tokio::test]
async fn a_renewal_names_what_is_anothers() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(DAY);
    let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
    with_built(&service, "dice").await;
    accept(&service, spec(1, "dice")).await;
    let job = claim(&service, "c").await.pop().unwrap();
    let renew = |epoch| LeaseRenew { owner: owner("a"), calls: vec![(job.num, epoch)], builds: Vec::new() };
    for _ in 0..10 {
        time.pass(4000);
        assert_eq!(service.ask(renew(job.epoch)).await.unwrap(), Renewed::default());
        assert_eq!(reap(&service).await.lost, 0);
    }
    let other = Epoch(7);
    assert_eq!(service.ask(renew(other)).await.unwrap().stale_calls, [(job.num, other)]);
    service.ask(CallCancel { namespace: space(), num: job.num }).await.unwrap();
    assert_eq!(service.ask(renew(job.epoch)).await.unwrap().stale_calls, [(job.num, job.epoch)]);
}

#[tokio::test]
async fn a_service_that_was_stopped_grants_every_lease_anew() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(DAY);
    let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
    with_built(&service, "dice").await;
    accept(&service, spec(1, "dice")).await;
    claim(&service, "c").await;
    time.pass(10 * 60_000);
    assert_eq!(reap(&service).await.lost, 0, "nobody could renew meanwhile");
    for _ in 0..8 {
        time.pass(4000);
        reap(&service).await;
    }
    assert_eq!(status(&service, 1).await, CallStatus::Pending);
}

#[tokio::test]
async fn a_wall_clock_that_is_set_moves_no_lease_no_age_and_no_pause() {
    for step in [365 * DAY, -365 * DAY] {
        let folder = tempfile::tempdir().unwrap();
        let time = Time::at(1000 * DAY);
        let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
        with_built(&service, "dice").await;
        accept(&service, CallSpec { retries: Some(1), ..spec(1, "dice") }).await;
        accept(&service, spec(2, "dice")).await;
        let jobs = claim(&service, "c").await;
        service.ask(finish(&jobs[0], exit())).await.unwrap();
        time.set_wall(step);
        assert_eq!(reap(&service).await, Reaped::default());
        assert_eq!(status(&service, 2).await, CallStatus::Running);
        assert_eq!(service.ask(Ping {}).await.unwrap().clock_step_ms, Some(step));
        service.stop().await;
        // Across a restart a clock that was set forward takes a day at most, one that was set back takes nothing.
        let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
        accept(&service, spec(3, "dice")).await;
        let (before, after) = (get(&service, 2).await.created_at, get(&service, 3).await.created_at);
        assert!((before..=before + DAY + 60_000).contains(&after), "{step}: {before} {after}");
    }
}

#[tokio::test]
async fn run_at_is_wall_time_and_age_begins_then() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(1000 * DAY);
    let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
    with_built(&service, "dice").await;
    let run_at = Some(Timestamp(1000 * DAY + DAY));
    accept(&service, CallSpec { run_at, max_age_ms: 60_000, ..spec(1, "dice") }).await;
    time.pass(DAY - 1000);
    reap(&service).await;
    assert_eq!((claim(&service, "c").await.len(), get(&service, 1).await.run_at), (0, run_at));
    time.pass(1000);
    let job = claim(&service, "d").await.pop().unwrap();
    assert!(job.queue_ms < 1000 && job.timeout_ms == 60_000, "{} {}", job.queue_ms, job.timeout_ms);
}

#[tokio::test]
async fn what_was_promised_and_given_up_is_a_dead_letter_once() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    accept(&service, spec(1, "dice")).await;
    accept(&service, CallSpec { waited: true, ..spec(2, "dice") }).await;
    accept(&service, CallSpec { waited: true, ..spec(3, "dice") }).await;
    accept(&service, spec(4, "dice")).await;
    service.ask(CallCancel { namespace: space(), num: CallNum(4) }).await.unwrap();
    for job in claim(&service, "c").await {
        let end = finish(&job, exit());
        assert_eq!(service.ask(end.clone()).await, Ok(CallStatus::Failed));
        assert_eq!(service.ask(end).await, Ok(CallStatus::Failed));
    }
    service.ask(CallAcknowledge { num: CallNum(3) }).await.unwrap();
    assert_eq!(dead_letters(&service).await, [3, 1]);
}

#[tokio::test]
async fn a_replay_is_a_new_call_of_the_version_that_runs_now() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    accept(&service, CallSpec { params: Payload::Text("[1]".into()), ..spec(1, "dice") }).await;
    let job = claim(&service, "c").await.pop().unwrap();
    service.ask(finish(&job, exit())).await.unwrap();
    let before = get(&service, 1).await;
    service.ask(upload("second", "dice")).await.unwrap();
    build(&service, Ok(BlobKey::new(DigestKind::Sha256, [8; 32]))).await;
    let replay = |num, version| CallReplay {
        num: CallNum(num),
        namespace: space(),
        of: CallNum(1),
        version,
        traceparent: String::new(),
        account: None,
    };
    let made = service.ask(replay(2, None)).await.unwrap();
    assert_eq!(service.ask(replay(2, None)).await.unwrap(), made, "sent again it is the same call");
    assert_eq!((made.version, made.replay_of, &made.params), (Version(2), Some(CallNum(1)), &before.params));
    assert_eq!(service.ask(replay(3, Some(Version(1)))).await.unwrap().version, Version(1));
    let marked = faena_protocol::records::CallRecord { replayed_as: Some(CallNum(3)), ..before };
    assert_eq!(get(&service, 1).await, marked);
    let unreplayed = CallList {
        namespace: space(),
        function: Some(name("dice")),
        status: None,
        dead: true,
        unreplayed: true,
        before: None,
        limit: 10,
    };
    assert_eq!(service.ask(unreplayed).await.unwrap(), []);
    let forget = || DeadLetterForget { namespace: space(), num: CallNum(1) };
    service.ask(forget()).await.unwrap();
    assert!(service.ask(forget()).await.is_err(), "it is none any more");
}

#[tokio::test]
async fn an_ended_call_cannot_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    accept(&service, spec(1, "dice")).await;
    let job = claim(&service, "c").await.pop().unwrap();
    let cancel = || service.ask(CallCancel { namespace: space(), num: CallNum(1) });
    let cancelled = cancel().await.unwrap();
    assert_eq!((cancelled.record.status, cancelled.running), (CallStatus::Cancelled, Some((owner("a"), job.epoch))));
    assert_eq!(cancel().await, Err(DbError::Ended { status: CallStatus::Cancelled }));
    assert_eq!(service.ask(finish(&job, None)).await, Err(DbError::Stale));
    assert_eq!(status(&service, 1).await, CallStatus::Cancelled);
}

#[tokio::test]
async fn ended_calls_are_forgotten_by_age_and_by_number_and_their_blobs_released() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(1000 * DAY);
    let keep = Keep { calls: 3, calls_for_ms: DAY, dead_letters_for_ms: 3 * DAY, ..Keep::default() };
    let service = Service::start_with(folder.path(), StoreSettings { keep, ..StoreSettings::default() }, time.clone());
    with_built(&service, "dice").await;
    let blob = BlobKey::new(DigestKind::Sha256, [3; 32]);
    accept(&service, CallSpec { params: Payload::Blob { key: blob, bytes: 70_000, utf8: true }, ..spec(1, "dice") })
        .await;
    for num in 2..=6 {
        accept(&service, spec(num, "dice")).await;
    }
    for job in claim(&service, "c").await {
        let failed = (job.num == CallNum(6)).then(exit).flatten();
        service.ask(finish(&job, failed)).await.unwrap();
    }
    let unused = || service.ask(BlobsUnused { keys: vec![blob, BlobKey::new(DigestKind::Sha256, [9; 32])] });
    assert_eq!(unused().await.unwrap(), []);
    reap(&service).await;
    assert_eq!(kept_calls(&service).await, 3, "only three are kept");
    assert_eq!(unused().await.unwrap(), [blob], "the artifact stays");
    time.pass(DAY + 1);
    reap(&service).await;
    assert_eq!(kept_calls(&service).await, 1);
    assert_eq!(dead_letters(&service).await, [6]);
    time.pass(2 * DAY);
    reap(&service).await;
    assert_eq!(kept_calls(&service).await, 0);
    assert_eq!(dead_letters(&service).await, Vec::<i64>::new());
}

/// A call that ends with a log in the blob store and a result of this many bytes.
async fn end_with(service: &Service, num: i64, function: &str, result: usize, log: u64) {
    accept(service, spec(num, function)).await;
    let job = claim(service, &uuid()).await.pop().expect("the call");
    let key = BlobKey::new(DigestKind::Sha256, [u8::try_from(num).unwrap(); 32]);
    let logs = Payload::Blob { key, bytes: log, utf8: true };
    let outcome = Outcome { result: Payload::Text("r".repeat(result)), logs, ..outcome(&job, None) };
    service.ask(CallFinish { outcome: Some(outcome), ..finish(&job, None) }).await.unwrap();
}

#[tokio::test]
async fn a_function_that_holds_too_much_loses_its_oldest_logs_and_then_its_oldest_calls() {
    let folder = tempfile::tempdir().unwrap();
    let keep = Keep { bytes: ByteSize(400_000), ..Keep::default() };
    let time = Time::at(1000 * DAY);
    let service = Service::start_with(folder.path(), StoreSettings { keep, ..StoreSettings::default() }, time);
    with_built(&service, "noisy").await;
    with_built(&service, "calm").await;
    end_with(&service, 1, "calm", 10, 40_000).await;
    for num in 2..=4 {
        end_with(&service, num, "noisy", 20_000, 40_000).await;
    }
    // 180,000 bytes, of which a quarter of 400,000 may stay: two logs go.
    reap(&service).await;
    assert_eq!(kept_calls(&service).await, 4, "no call goes while there are logs");
    for num in 2..=3 {
        let Payload::Text(log) = get(&service, num).await.logs else { panic!("the log of {num} is there") };
        assert!(log.contains("was forgotten"), "{log}");
    }
    assert!(matches!(get(&service, 4).await.logs, Payload::Blob { bytes: 40_000, .. }));
    assert!(matches!(get(&service, 1).await.logs, Payload::Blob { .. }), "others keep theirs");
    let released = service.ask(BlobsReleased { limit: 9 }).await.unwrap();
    assert_eq!(released.len(), 2, "they are removed from the store");
    service.ask(BlobsRemoved { keys: released }).await.unwrap();
    assert_eq!(service.ask(BlobsReleased { limit: 9 }).await.unwrap(), []);
    for num in 5..=7 {
        end_with(&service, num, "noisy", 19_000, 0).await;
    }
    // The last log and one of the results have to go now.
    reap(&service).await;
    assert_eq!(kept_calls(&service).await, 6);
    let gone = service.ask(CallGet { namespace: space(), num: CallNum(2) }).await;
    assert!(matches!(gone, Err(DbError::NotFound { .. })), "the oldest");
    reap(&service).await;
    assert_eq!(kept_calls(&service).await, 6, "enough has gone");
}

#[tokio::test]
async fn logs_of_a_function_are_found_whatever_they_lie_in() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start_with(folder.path(), StoreSettings::default(), Time::at(1000 * DAY));
    with_built(&service, "dice").await;
    end_with(&service, 1, "dice", 1, 100).await;
    accept(&service, spec(2, "dice")).await;
    let job = claim(&service, "silent").await.pop().unwrap();
    service.ask(finish(&job, None)).await.unwrap();
    let written = CallRecord {
        num: CallNum(3),
        logs: Payload::Text("1 e hello\n".into()),
        status: CallStatus::Done,
        ended_at: Some(1000 * DAY),
        ..get(&service, 2).await
    };
    let ended = EndedCall { namespace: space(), call: written, direct: true, timeout_ms: None };
    let batch = CompletedBatch {
        first: CallNum(3),
        namespace: space(),
        function: name("dice"),
        ended_at: 1000 * DAY,
        count: 1,
        records: serde_json::value::to_raw_value(&[&ended]).unwrap(),
    };
    service.ask(CallsRecord { calls: Vec::new(), batches: vec![batch] }).await.unwrap();
    let asked = FunctionLogs {
        namespace: space(),
        function: name("dice"),
        version: None,
        status: None,
        since: None,
        before: None,
        calls: None,
    };
    let nums = |page: LogPage| page.logs.iter().map(|log| log.num.0).collect::<Vec<_>>();
    assert_eq!(nums(service.ask(asked.clone()).await.unwrap()), [3, 1]);
    let failed = FunctionLogs { status: Some(CallStatus::Failed), ..asked.clone() };
    assert_eq!(nums(service.ask(failed).await.unwrap()), Vec::<i64>::new());
    let older = FunctionLogs { before: Some(CallNum(3)), ..asked.clone() };
    assert_eq!(nums(service.ask(older).await.unwrap()), [1]);
    let later = FunctionLogs { since: Some(1001 * DAY), ..asked };
    assert_eq!(nums(service.ask(later).await.unwrap()), Vec::<i64>::new());
}

#[tokio::test]
async fn what_ended_first_is_forgotten_first_however_it_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(1000 * DAY);
    let keep = Keep { calls: 100, calls_for_ms: DAY, dead_letters_for_ms: DAY, ..Keep::default() };
    let service = Service::start_with(folder.path(), StoreSettings { keep, ..StoreSettings::default() }, time.clone());
    with_built(&service, "dice").await;
    for num in 1..=300 {
        time.pass(10);
        let accepted = accept(&service, spec(num, "dice")).await;
        if num % 3 == 0 {
            let job = claim(&service, &uuid()).await.pop().unwrap();
            service.ask(finish(&job, None)).await.unwrap();
        } else {
            // As the api writes a waited call that went well.
            service.ask(CallCancel { namespace: space(), num: CallNum(num) }).await.unwrap();
            let call = CallRecord {
                num: CallNum(1000 + num),
                status: CallStatus::Done,
                ended_at: Some(1000 * DAY + 10 * num),
                ..accepted
            };
            let ended = EndedCall { namespace: space(), call, direct: true, timeout_ms: None };
            let batch = CompletedBatch {
                first: ended.call.num,
                namespace: space(),
                function: name("dice"),
                ended_at: ended.call.ended_at.unwrap(),
                count: 1,
                records: serde_json::value::to_raw_value(&[&ended]).unwrap(),
            };
            service.ask(CallsRecord { calls: Vec::new(), batches: vec![batch] }).await.unwrap();
        }
        if num % 50 == 0 {
            reap(&service).await;
        }
    }
    // 300 calls with rows ended, and 200 in batches.
    assert_eq!(kept_calls(&service).await, 100);
    for (num, is_kept) in
        [(1, false), (231, false), (297, true), (300, true), (1001, false), (1231, false), (1298, true)]
    {
        let found = service.ask(CallGet { namespace: space(), num: CallNum(num) }).await;
        assert_eq!(found.is_ok(), is_kept, "{num}");
    }
}

#[tokio::test]
async fn a_disk_that_is_nearly_full_takes_no_new_work_and_ends_what_runs() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(DAY);
    let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
    with_built(&service, "dice").await;
    accept(&service, spec(1, "dice")).await;
    service.stop().await;
    let settings = StoreSettings { disk_reserve: ByteSize(u64::MAX / 4), ..StoreSettings::default() };
    let service = Service::start_with(folder.path(), settings, time);
    assert!(service.ask(Ping {}).await.unwrap().disk_low);
    let refused = try_accept(&service, spec(2, "dice")).await;
    assert_eq!(refused, Err(DbError::DiskLow));
    assert_eq!(service.ask(upload("second", "dice")).await.map(|_| ()), Err(DbError::DiskLow));
    let job = claim(&service, "c").await.pop().unwrap();
    assert_eq!(service.ask(finish(&job, None)).await, Ok(CallStatus::Done));
}

#[tokio::test]
async fn a_claim_of_large_calls_fits_into_its_message() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    // Six bytes each, once they are escaped.
    let body = || Some(Payload::Text("\u{1}".repeat(60_000)));
    for num in 1..=16 {
        accept(&service, CallSpec { body: body(), ..spec(num, "dice") }).await;
    }
    let mut claimed = 0;
    while claimed < 16 {
        let jobs = claim_as(&service, owner("a"), 16).await;
        assert!(!jobs.is_empty() && jobs.len() < 16, "{}", jobs.len());
        claimed += jobs.len();
    }
}

#[tokio::test]
async fn a_key_outlives_its_day_while_its_call_has_not_ended() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(1000 * DAY);
    let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
    with_built(&service, "dice").await;
    let key = || Some(IdempotencyKey { key: "k".into(), hash: BlobKey::new(DigestKind::Sha256, [1; 32]) });
    let run_at = Some(Timestamp(1003 * DAY));
    accept(&service, CallSpec { key: key(), run_at, ..spec(1, "dice") }).await;
    time.pass(2 * DAY);
    reap(&service).await;
    assert_eq!(accept(&service, CallSpec { key: key(), run_at, ..spec(2, "dice") }).await.num, CallNum(1));
}

#[tokio::test]
async fn a_call_for_later_expires_although_no_worker_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(1000 * DAY);
    let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
    with_built(&service, "dice").await;
    let run_at = Some(Timestamp(1001 * DAY));
    accept(&service, CallSpec { run_at, max_age_ms: 60_000, ..spec(1, "dice") }).await;
    time.pass(DAY + 61_000);
    reap(&service).await;
    assert_eq!(status(&service, 1).await, CallStatus::Expired);
}

#[tokio::test]
async fn what_runs_of_a_deleted_function_never_runs_its_successor() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    accept(&service, spec(1, "dice")).await;
    claim(&service, "c").await;
    service.ask(FunctionDelete { namespace: space(), name: name("dice") }).await.unwrap();
    service.ask(upload("again", "dice")).await.unwrap();
    build(&service, Ok(BlobKey::new(DigestKind::Sha256, [8; 32]))).await;
    service.ask(WorkerJoin { owner: owner("b"), is_member: false }).await.unwrap();
    assert_eq!(claim_as(&service, owner("b"), 10).await.len(), 0);
    reap(&service).await;
    assert_eq!(status(&service, 1).await, CallStatus::Expired);
}

#[tokio::test]
async fn a_callback_is_taken_once_at_a_time_and_given_up_after_eight_tries() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(1000 * DAY);
    let keep = Keep { calls: 0, ..Keep::default() };
    let service = Service::start_with(folder.path(), StoreSettings { keep, ..StoreSettings::default() }, time.clone());
    with_built(&service, "dice").await;
    let callback = Some(Callback { url: "http://a.example/".into(), depth: 0 });
    accept(&service, CallSpec { callback, ..spec(1, "dice") }).await;
    assert!(!service.ask(CallbacksDue {}).await.unwrap());
    let job = claim(&service, "c").await.pop().unwrap();
    service.ask(finish(&job, None)).await.unwrap();
    service.ask(FunctionDelete { namespace: space(), name: name("dice") }).await.unwrap();
    for tries in 1..=8 {
        let taken = service.ask(CallbacksTake { limit: 10 }).await.unwrap();
        assert_eq!((taken.len(), taken[0].tries, taken[0].secret.as_str()), (1, tries, "whsec_c2VjcmV0"));
        assert!(service.ask(CallbacksTake { limit: 10 }).await.unwrap().is_empty(), "it is taken");
        reap(&service).await;
        assert_eq!(kept_calls(&service).await, 1, "its callback is not delivered yet");
        let error = Some("it answers 500".to_owned());
        service.ask(CallbackFinish { num: CallNum(1), tries, error }).await.unwrap();
        time.pass(10 * 60_000);
    }
    assert_eq!(get(&service, 1).await.callback.unwrap().status, "UNDELIVERED");
    assert!(service.ask(CallbacksTake { limit: 10 }).await.unwrap().is_empty());
    reap(&service).await;
    assert_eq!(kept_calls(&service).await, 0);
}

/// Slots of which functions hold some.
fn slots(total: u32, held: &[(&str, u32)]) -> SlotsView {
    let held = held.iter();
    let held = held.map(|(function, slots)| HeldSlots { function: id(function), slots: *slots });
    SlotsView { total, held: held.collect() }
}

fn id(name: &str) -> FunctionId {
    FunctionId::new(&space(), &name.parse().unwrap())
}

async fn claim_with(service: &Service, slots: SlotsView, spare: Vec<SparePlaces>) -> Vec<String> {
    let engines = vec![EngineKind::Sandbox];
    let claim = CallsClaim { request: uuid(), owner: owner("a"), engines, limit: 16, slots, spare };
    let jobs = service.ask(claim).await.unwrap();
    jobs.into_iter().map(|job| job.code.function.to_string()).collect()
}

#[tokio::test]
async fn no_function_takes_the_last_slot_while_another_waits() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "long").await;
    with_built(&service, "short").await;
    for num in 1..=8 {
        accept(&service, spec(num, "long")).await;
    }
    accept(&service, spec(9, "short")).await;
    assert_eq!(claim_with(&service, slots(4, &[("long", 3)]), Vec::new()).await, ["short"]);
    assert_eq!(claim_with(&service, slots(4, &[("long", 3)]), Vec::new()).await, ["long"], "nobody else waits");
    accept(&service, spec(10, "short")).await;
    accept(&service, spec(11, "short")).await;
    assert_eq!(claim_with(&service, slots(4, &[("long", 4)]), Vec::new()).await, ["short"], "the reserve");
    assert!(claim_with(&service, slots(4, &[("long", 4), ("short", 1)]), Vec::new()).await.is_empty());
}

#[tokio::test]
async fn calls_that_share_an_instance_share_its_slot() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    service.ask(RuntimePut { namespace: space(), spec: runtime("x") }).await.unwrap();
    let manifest = Manifest::parse("contract = \"http\"\nparallel = 4").unwrap();
    service.ask(VersionPut { manifest, ..upload("up", "server") }).await.unwrap();
    build(&service, Ok(BlobKey::new(DigestKind::Sha256, [9; 32]))).await;
    for num in 1..=10 {
        accept(&service, spec(num, "server")).await;
    }
    assert_eq!(claim_with(&service, slots(1, &[]), Vec::new()).await.len(), 4);
    let spare = |calls| vec![SparePlaces { function: id("server"), version: Version(1), calls }];
    assert_eq!(claim_with(&service, slots(1, &[("server", 1)]), spare(3)).await.len(), 3);
    assert!(claim_with(&service, slots(1, &[("server", 1)]), Vec::new()).await.is_empty());
    assert_eq!(claim_with(&service, slots(2, &[("server", 1)]), spare(1)).await.len(), 3);
}

#[tokio::test]
async fn builds_of_one_function_leave_a_slot_to_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    service.ask(RuntimePut { namespace: space(), spec: runtime("x") }).await.unwrap();
    for (request, function) in [("1", "long"), ("2", "long"), ("3", "long"), ("4", "short")] {
        service.ask(upload(request, function)).await.unwrap();
    }
    let claim = async |slots| {
        let claim = BuildsClaim { request: uuid(), owner: owner("a"), engines: vec![EngineKind::Sandbox], slots };
        let jobs = service.ask(claim).await.unwrap();
        jobs.into_iter().map(|job| job.code.function.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(claim(slots(2, &[])).await, ["long", "short"]);
    assert_eq!(claim(slots(1, &[("short", 1)])).await, ["long"], "the reserve");
    assert_eq!(claim(slots(2, &[("long", 1)])).await, ["long"], "nobody else waits");
}
