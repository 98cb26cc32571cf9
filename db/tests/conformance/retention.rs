//! What is forgotten, when, and what stays.

use faena_db::{Keep, StoreSettings};
use faena_domain::units::ByteSize;
use faena_domain::{BlobKey, CallNum, CallStatus, DigestKind, Payload, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::*;
use faena_protocol::records::{CallRecord, CallSpec, CompletedBatch, EndedCall, IdempotencyKey, Outcome};

use super::support::*;

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
