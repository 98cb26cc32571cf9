//! Nodes: their tokens, what an administrator says of them, and which work is theirs.

use faena_domain::{
    BlobKey, DigestKind, EngineKind, Fingerprint, Labels, NodeName, NodeSelector, Owner, Payload, Timestamp,
};
use faena_protocol::DbError;
use faena_protocol::db::{
    BuildFinish, BuildsClaim, CallsClaim, Cordon, NodeChange, NodeDelete, NodeJoin, NodeList, NodeRenew, NodeTokenMake,
    SlotsView, VersionPut, VersionsMinimum, WorkerJoin, WorkerStopped,
};
use faena_protocol::records::{BuildOutcome, NodeRecord, NodeTokenRecord};

use super::support::*;

fn labels(text: &str) -> Labels {
    serde_json::from_str(text).unwrap()
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

async fn token(service: &Service, id: &str, text: &str) {
    let (labels, expires_at) = (labels(text), Timestamp(4_000_000_000_000));
    let token = NodeTokenRecord { id: id.to_owned(), secret_sha256: "hash".to_owned(), labels, expires_at };
    service.ask(NodeTokenMake { token }).await.unwrap();
}

fn join(token: &str, name: &str, key: u8) -> NodeJoin {
    NodeJoin {
        token: token.to_owned(),
        secret_sha256: "hash".to_owned(),
        name: node(name),
        key: Fingerprint([key; 32]),
        fingerprint: Fingerprint([key + 100; 32]),
        ends_at: Timestamp(1),
    }
}

fn owner_of(worker: &str, incarnation: &str) -> Owner {
    Owner { worker: worker.to_owned(), incarnation: incarnation.to_owned() }
}

async fn nodes(service: &Service) -> Vec<NodeRecord> {
    service.ask(NodeList { since: 0 }).await.unwrap().nodes.unwrap()
}

#[tokio::test]
async fn a_token_is_spent_by_one_machine() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    token(&service, "t", r#"{"gpu":"true"}"#).await;
    let record = service.ask(join("t", "a", 1)).await.unwrap();
    assert_eq!(
        (record.labels, record.certificate.unwrap().fingerprint),
        (labels(r#"{"gpu":"true"}"#), Fingerprint([101; 32]))
    );
    service.ask(join("t", "a", 1)).await.expect("whose reply was lost asks again");
    let as_other = service.ask(join("t", "b", 1)).await.unwrap_err();
    assert!(matches!(as_other, DbError::NotAdmitted { .. }), "its token is for one name: {as_other}");
    for (another, words) in [
        (join("t", "b", 2), "used already"),
        (join("none", "b", 2), "does not know"),
        (NodeJoin { secret_sha256: "other".to_owned(), ..join("t", "b", 2) }, "does not know"),
    ] {
        let error = service.ask(another).await.unwrap_err();
        assert!(matches!(&error, DbError::NotAdmitted { message } if message.contains(words)), "{error}");
    }
    // Once its worker has run, the node is there for good.
    service.ask(WorkerJoin { owner: owner_of("a", "1"), is_member: false }).await.unwrap();
    assert!(matches!(service.ask(join("t", "a", 1)).await, Err(DbError::NotAdmitted { .. })));
    service.ask(NodeDelete { name: node("A") }).await.unwrap();
    assert!(nodes(&service).await.is_empty());
    assert!(service.ask(join("t", "a", 1)).await.is_err(), "a node that was removed needs another token");
    assert!(service.ask(WorkerJoin { owner: owner_of("a", "2"), is_member: true }).await.is_err());
    assert!(nodes(&service).await.is_empty(), "nor does its worker bring it back");
}

#[tokio::test]
async fn changes_of_nodes_are_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    service.ask(WorkerJoin { owner: owner_of("a", "1"), is_member: false }).await.unwrap();
    let seen = service.ask(NodeList { since: 0 }).await.unwrap();
    assert_eq!(service.ask(NodeList { since: seen.changes }).await.unwrap().nodes, None);
    let cordon = Some(Cordon { is_on: true, reason: None });
    let change = NodeChange { name: node("a"), cordon, drain: Some(true), labels: Some(labels(r#"{"zone":"x"}"#)) };
    let record = service.ask(change).await.unwrap();
    assert!(record.is_cordoned && record.is_draining && record.labels == labels(r#"{"zone":"x"}"#));
    let after = service.ask(NodeList { since: seen.changes }).await.unwrap();
    assert_eq!(after.nodes.unwrap(), [record]);
    // A drain, and the stop of an earlier run, do not apply to a new run.
    service.ask(WorkerJoin { owner: owner_of("a", "2"), is_member: false }).await.unwrap();
    service.ask(WorkerStopped { owner: owner_of("a", "1") }).await.unwrap();
    let record = nodes(&service).await.remove(0);
    assert!(record.is_cordoned && !record.is_draining && !record.is_stopped && record.incarnation == "2");
    service.ask(WorkerStopped { owner: owner_of("a", "2") }).await.unwrap();
    assert!(nodes(&service).await.remove(0).is_stopped);
}

#[tokio::test]
async fn a_renewed_certificate_replaces_the_one_before_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    token(&service, "t", "{}").await;
    service.ask(join("t", "a", 1)).await.unwrap();
    let of = |number: u8| Fingerprint([number; 32]);
    let renew = |from: u8, to: u8| NodeRenew { name: node("a"), from: of(from), to: of(to), ends_at: Timestamp(2) };
    service.ask(renew(101, 7)).await.unwrap();
    service.ask(renew(101, 8)).await.expect("the one before is taken too");
    assert!(service.ask(renew(7, 9)).await.is_err(), "it was replaced");
    let certificate = nodes(&service).await.remove(0).certificate.unwrap();
    assert_eq!((certificate.fingerprint, certificate.previous), (of(8), Some(of(101))));
}

#[tokio::test]
async fn work_goes_to_nodes_that_its_selectors_permit() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    with_function(&service, "free").await;
    let selector: NodeSelector = serde_json::from_str(r#"{"gpu":"true"}"#).unwrap();
    let mut bound = VersionPut { nodes: selector, ..upload("bound", "bound") };
    bound.manifest.serving.minimum = 1;
    service.ask(bound).await.unwrap();
    for (worker, text) in [("plain", "{}"), ("strong", r#"{"gpu":"true","zone":"a"}"#)] {
        service.ask(WorkerJoin { owner: owner_of(worker, "1"), is_member: false }).await.unwrap();
        let change = NodeChange { name: node(worker), cordon: None, drain: None, labels: Some(labels(text)) };
        service.ask(change).await.unwrap();
    }
    let builds = |worker: &str| BuildsClaim {
        request: format!("b-{worker}"),
        owner: owner_of(worker, "1"),
        engines: vec![EngineKind::Sandbox],
        slots: SlotsView::unused(9),
    };
    let of_plain = service.ask(builds("plain")).await.unwrap();
    assert_eq!(of_plain.iter().map(|job| job.code.function.as_str()).collect::<Vec<_>>(), ["free"]);
    let of_strong = service.ask(builds("strong")).await.unwrap();
    assert_eq!(of_strong.iter().map(|job| job.code.function.as_str()).collect::<Vec<_>>(), ["bound"]);
    for (job, worker) in of_plain.iter().map(|job| (job, "plain")).chain(of_strong.iter().map(|job| (job, "strong"))) {
        let finished = BuildFinish {
            namespace: space(),
            function: job.code.function.clone(),
            version: job.code.version,
            epoch: job.epoch,
            owner: owner_of(worker, "1"),
            outcome: Some(BuildOutcome {
                engine: Some(EngineKind::Sandbox),
                image_id: None,
                result: Ok(BlobKey::new(DigestKind::Sha256, [9; 32])),
                log: Payload::empty(),
                log_tail: String::new(),
            }),
        };
        service.ask(finished).await.unwrap();
    }
    for (num, function) in [(1, "bound"), (2, "free"), (3, "bound")] {
        accept(&service, spec(num, function)).await;
    }
    let claim = |worker: &str| CallsClaim {
        request: uuid(),
        owner: owner_of(worker, "1"),
        engines: vec![EngineKind::Sandbox],
        limit: 9,
        slots: SlotsView::unused(9),
        spare: Vec::new(),
    };
    let numbers = |jobs: Vec<faena_protocol::records::CallJob>| jobs.iter().map(|job| job.num.0).collect::<Vec<_>>();
    assert_eq!(numbers(service.ask(claim("plain")).await.unwrap()), [2]);
    assert_eq!(numbers(service.ask(claim("strong")).await.unwrap()), [1, 3]);
    let minimum = |worker: &str| VersionsMinimum { owner: owner_of(worker, "1") };
    assert!(service.ask(minimum("plain")).await.unwrap().is_empty(), "a node is told of nothing that it may not run");
    assert_eq!(service.ask(minimum("strong")).await.unwrap().len(), 1);
}
