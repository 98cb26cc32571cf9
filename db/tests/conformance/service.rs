//! The service as its clients see it: over its socket, across restarts.

use faena_domain::{
    BlobKey, BuildFailure, CallError, CallNum, CallStatus, DigestKind, EngineKind, ErrorKind, Layer, Payload, Version,
};
use faena_protocol::db::*;
use faena_protocol::records::{BuildOutcome, CallJob, CallRecord, CallSpec};
use faena_protocol::{DbError, DbRequest};

use super::support::*;

#[tokio::test]
async fn a_runtime_has_revisions_and_the_same_object_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    let put = |run: &str| RuntimePut { namespace: space(), spec: runtime(run) };
    let first = service.ask(put("a")).await.unwrap();
    let same = service.ask(put("a")).await.unwrap();
    let other = service.ask(put("b")).await.unwrap();
    assert_eq!((first.created, first.record.revision.0), (true, 1));
    assert_eq!((same.created, same.record.revision.0), (false, 1));
    assert_eq!((other.created, other.record.revision.0), (false, 2));
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    let num = service.ask(CallNumReserve { count: 10 }).await.unwrap();
    accept(&service, spec(num.0, "dice")).await;
    let job = claim(&service, "c").await.pop().unwrap();
    service.ask(finish(&job, None)).await.unwrap();
    let before = get(&service, num.0).await;
    service.stop().await;

    let service = Service::start(folder.path());
    assert_eq!(get(&service, num.0).await, before);
    assert_eq!(service.ask(FunctionList { namespace: space() }).await.unwrap(), [name("dice")]);
    let next = service.ask(CallNumReserve { count: 1 }).await.unwrap();
    assert!(next > num, "a number is never given twice");
}

#[tokio::test]
async fn writes_that_are_sent_again_change_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    let again = service.ask(upload("up-dice", "dice")).await.unwrap();
    assert_eq!(again.record.newest.version, Version(1));

    accept(&service, spec(1, "dice")).await;
    accept(&service, spec(1, "dice")).await;
    let first = claim(&service, "same").await;
    let ids = |jobs: &[CallJob]| jobs.iter().map(|job| (job.num, job.epoch)).collect::<Vec<_>>();
    assert_eq!(ids(&claim(&service, "same").await), ids(&first));
    assert_eq!(claim(&service, "another").await, []);

    let end = finish(&first[0], None);
    assert_eq!(service.ask(end.clone()).await, Ok(CallStatus::Done));
    assert_eq!(service.ask(end).await, Ok(CallStatus::Done));
    assert_eq!(get(&service, 1).await.attempts.len(), 1);
}

#[tokio::test]
async fn a_late_result_of_another_epoch_or_owner_is_stale() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    accept(&service, spec(1, "dice")).await;
    let old = claim(&service, "one").await.pop().unwrap();
    let back = CallFinish { num: old.num, epoch: old.epoch, owner: owner("a"), outcome: None };
    assert_eq!(service.ask(back).await, Ok(CallStatus::Pending));
    let new = claim(&service, "two").await.pop().unwrap();
    assert!(new.epoch > old.epoch);
    assert_eq!(service.ask(finish(&old, None)).await, Err(DbError::Stale));
    let foreign = CallFinish { owner: owner("b"), ..finish(&new, None) };
    assert_eq!(service.ask(foreign).await, Err(DbError::Stale));
    assert_eq!(service.ask(finish(&new, None)).await, Ok(CallStatus::Done));
}

#[tokio::test]
async fn a_functions_failure_is_tried_again_and_a_start_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    accept(&service, CallSpec { retries: Some(1), ..spec(1, "dice") }).await;
    accept(&service, CallSpec { retries: Some(1), ..spec(2, "dice") }).await;
    let jobs = claim(&service, "c").await;
    let exit = CallError::new(ErrorKind::Exit, Layer::Run, "exit 1");
    let start = CallError::new(ErrorKind::Start, Layer::Start, "no such program");
    assert_eq!(service.ask(finish(&jobs[0], Some(exit))).await, Ok(CallStatus::Pending));
    assert_eq!(service.ask(finish(&jobs[1], Some(start))).await, Ok(CallStatus::Failed));
    assert_eq!(get(&service, 1).await.attempts.len(), 1);
}

#[tokio::test]
async fn calls_of_a_version_that_cannot_be_built_fail_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_function(&service, "dice").await;
    accept(&service, spec(1, "dice")).await;
    assert_eq!(claim(&service, "c").await, []);
    let failure = BuildFailure { kind: ErrorKind::Build, message: "pip exited with 1".into() };
    build(&service, Err(failure)).await;
    let late = accept(&service, spec(2, "dice")).await;
    for call in [get(&service, 1).await, late] {
        assert_eq!(call.status, CallStatus::Failed);
        assert_eq!(call.error.unwrap().kind, ErrorKind::Build);
    }
}

#[tokio::test]
async fn a_new_incarnation_ends_what_its_predecessor_held() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    service.ask(upload("second", "dice")).await.unwrap();
    service
        .ask(BuildsClaim {
            request: "b".into(),
            owner: owner("a"),
            engines: vec![EngineKind::Sandbox],
            slots: SlotsView::unused(1),
        })
        .await
        .unwrap();
    accept(&service, spec(1, "dice")).await;
    claim(&service, "c").await;
    service.ask(WorkerJoin { owner: owner("b"), is_member: false }).await.unwrap();
    let call = get(&service, 1).await;
    assert_eq!(call.status, CallStatus::Pending, "the call is delivered again");
    assert_eq!(call.attempts[0].error.as_ref().unwrap().kind, ErrorKind::Infrastructure);
    let again = service
        .ask(BuildsClaim {
            request: "d".into(),
            owner: owner("b"),
            engines: vec![EngineKind::Sandbox],
            slots: SlotsView::unused(1),
        })
        .await
        .unwrap();
    assert_eq!(again.len(), 1, "the interrupted build is pending again");
}

#[tokio::test]
async fn current_moves_when_a_version_is_ready_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    service.ask(upload("second", "dice")).await.unwrap();
    let call = accept(&service, spec(1, "dice")).await;
    assert_eq!(call.version, Version(1), "the old version serves while the new one builds");
    build(&service, Ok(BlobKey::new(DigestKind::Sha256, [8; 32]))).await;
    assert_eq!(accept(&service, spec(2, "dice")).await.version, Version(2));
}

#[tokio::test]
async fn what_waits_whether_or_not_calls_come_is_of_versions_that_calls_run() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "other").await;
    let upload_with = |request: &str, minimum: u32| {
        let mut put = upload(request, "dice");
        put.manifest.serving.minimum = minimum;
        put
    };
    let waiting = async || {
        let codes = service.ask(VersionsMinimum { owner: owner("a") }).await.unwrap();
        codes.iter().map(|code| (code.function.to_string(), code.version.0, code.serving.minimum)).collect::<Vec<_>>()
    };
    service.ask(upload_with("first", 2)).await.unwrap();
    assert_eq!(waiting().await, [], "nothing of it can be called");
    build(&service, Ok(BlobKey::new(DigestKind::Sha256, [8; 32]))).await;
    assert_eq!(waiting().await, [("dice".to_owned(), 1, 2)]);
    service.ask(upload_with("second", 0)).await.unwrap();
    assert_eq!(waiting().await, [("dice".to_owned(), 1, 2)]);
    build(&service, Ok(BlobKey::new(DigestKind::Sha256, [9; 32]))).await;
    assert_eq!(waiting().await, []);
}

#[tokio::test]
async fn an_old_call_expires_and_names_what_it_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_function(&service, "dice").await;
    accept(&service, CallSpec { max_age_ms: 0, ..spec(1, "dice") }).await;
    service.ask(Reap {}).await.unwrap();
    let call = get(&service, 1).await;
    assert_eq!((call.status, call.error.unwrap().layer), (CallStatus::Expired, Layer::Build));
}

#[tokio::test]
async fn lists_are_paged_and_filtered() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    with_built(&service, "hello").await;
    for num in 1..=6 {
        accept(&service, spec(num, if num % 2 == 0 { "dice" } else { "hello" })).await;
    }
    let list = |function: Option<&str>, before: Option<i64>| CallList {
        namespace: space(),
        function: function.map(name),
        status: Some(CallStatus::Pending),
        dead: false,
        unreplayed: false,
        before: before.map(CallNum),
        limit: 2,
    };
    let nums = |calls: Vec<CallRecord>| calls.iter().map(|call| call.num.0).collect::<Vec<_>>();
    assert_eq!(nums(service.ask(list(None, None)).await.unwrap()), [6, 5]);
    assert_eq!(nums(service.ask(list(Some("dice"), Some(6))).await.unwrap()), [4, 2]);
}

#[tokio::test]
async fn names_that_differ_only_by_case_are_one() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_function(&service, "dice").await;
    let twin = service.ask(upload("twin", "DICE")).await;
    assert!(matches!(twin, Err(DbError::Conflict { .. })));
}

#[tokio::test]
async fn a_request_nobody_knows_is_refused() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Teleport {}
    impl DbRequest for Teleport {
        type Reply = ();
        const TYPE: &'static str = "teleport";
        const ACCESS: Access = Access::Read;
    }
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    assert!(matches!(service.ask(Teleport {}).await, Err(DbError::Invalid { .. })));
}

#[tokio::test]
async fn a_build_of_a_deleted_function_is_not_its_successors() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_function(&service, "dice").await;
    let claim = || BuildsClaim {
        request: uuid(),
        owner: owner("a"),
        engines: vec![EngineKind::Sandbox],
        slots: SlotsView::unused(1),
    };
    let old = service.ask(claim()).await.unwrap().pop().unwrap();
    service.ask(FunctionDelete { namespace: space(), name: name("dice") }).await.unwrap();
    // Db time is in milliseconds, and two uploads by one person are further apart.
    while service.ask(upload(&uuid(), "other")).await.unwrap().record.newest.created_at.0 <= old.epoch.0 {}
    service.ask(upload("again", "dice")).await.unwrap();
    let outcome = BuildOutcome {
        engine: Some(EngineKind::Sandbox),
        image_id: None,
        result: Ok(BlobKey::new(DigestKind::Sha256, [3; 32])),
        log: Payload::empty(),
        log_tail: String::new(),
    };
    let late = BuildFinish {
        namespace: space(),
        function: name("dice"),
        version: Version(1),
        epoch: old.epoch,
        owner: owner("a"),
        outcome: Some(outcome),
    };
    assert_eq!(service.ask(late).await, Err(DbError::Stale));
}

#[tokio::test]
async fn a_list_of_large_calls_is_cut_and_still_answered() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_built(&service, "dice").await;
    for num in 1..=200 {
        accept(
            &service,
            CallSpec { params: Payload::Text(format!("\"{}\"", "ñ".repeat(30_000))), ..spec(num, "dice") },
        )
        .await;
    }
    let calls = service.ask(newest(200)).await.unwrap();
    assert_eq!(calls.len(), 200);
    assert!(calls.iter().all(|call| (1025..1030).contains(&call.params.len())));
}
