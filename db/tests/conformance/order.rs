//! Which calls are claimed: the turns of functions, priorities, bounds and slots.

use faena_domain::{BlobKey, DigestKind, EngineKind, FunctionId, Manifest, Payload, Version};
use faena_protocol::db::*;
use faena_protocol::records::CallSpec;

use super::support::*;

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
