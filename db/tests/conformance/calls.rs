//! Calls from their acceptance to their end: keys, bounds of queues, dead letters, replays, callbacks.

use faena_db::{Keep, QueueBounds, StoreSettings};
use faena_domain::units::ByteSize;
use faena_domain::{BlobKey, BuildFailure, CallNum, CallStatus, DigestKind, Payload, Version};
use faena_protocol::DbError;
use faena_protocol::db::*;
use faena_protocol::records::{Accepted, CallRecord, CallSpec, Callback, IdempotencyKey, NewCall};

use super::support::*;

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
    assert!(message(ask(5, "b", "1").await).contains("3 calls are waiting"));
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
async fn a_call_whose_version_cannot_run_takes_no_place_in_its_queue() {
    let folder = tempfile::tempdir().unwrap();
    let queue = QueueBounds { function_calls: 1, ..QueueBounds::default() };
    let settings = StoreSettings { queue, ..StoreSettings::default() };
    let service = Service::start_with(folder.path(), settings, Time::at(DAY));
    with_function(&service, "broken").await;
    let failure = BuildFailure { kind: faena_domain::ErrorKind::Build, message: "no".into() };
    build(&service, Err(failure)).await;
    let calls = (1..4).map(|num| NewCall { spec: spec(num, "broken"), version: None }).collect();
    for answer in service.ask(CallsAccept { calls }).await.unwrap() {
        let Ok(Accepted::Known(call)) = answer else { panic!("{answer:?}") };
        assert_eq!(call.status, CallStatus::Failed);
    }
}
