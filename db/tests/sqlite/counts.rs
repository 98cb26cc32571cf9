//! The counts that triggers keep.

use faena_domain::{BlobKey, BuildFailure, CallNum, DigestKind, ErrorKind, Payload, Timestamp};
use faena_protocol::db::*;
use faena_protocol::records::{CallSpec, IdempotencyKey, NewCall};

use crate::conformance::support::*;

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
async fn queues_count_what_there_is() {
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
