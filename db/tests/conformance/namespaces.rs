//! Several namespaces: their turns, weights and quotas.

use faena_auth::{Mapping, Scopes};
use faena_domain::{
    BlobKey, DigestKind, EngineKind, FunctionId, Grants, GrantsChange, Namespace, NodeSelector, Payload, Quota,
    QuotaChange, Timestamp,
};
use faena_protocol::DbError;
use faena_protocol::db::*;
use faena_protocol::records::{BuildOutcome, CallSpec, Code, ProviderRecord};

use super::support::*;

fn namespace(name: &str) -> Namespace {
    name.parse().unwrap()
}

async fn make(service: &Service, name: &str, weight: u32, quota: Quota) {
    let put = NamespacePut {
        name: namespace(name),
        allow: Grants::default(),
        quota,
        weight,
        node_selector: NodeSelector::default(),
    };
    assert!(service.ask(put).await.unwrap().created);
    service.ask(RuntimePut { namespace: namespace(name), spec: runtime("x") }).await.unwrap();
}

fn upload_in(of: &str, function: &str) -> VersionPut {
    VersionPut { namespace: namespace(of), ..upload(&uuid(), function) }
}

/// Finishes every build that waits.
async fn build_all(service: &Service) {
    loop {
        let engines = vec![EngineKind::Sandbox];
        let claim = BuildsClaim { request: uuid(), owner: owner("a"), engines, slots: SlotsView::unused(1) };
        let jobs = service.ask(claim).await.unwrap();
        if jobs.is_empty() {
            return;
        }
        for job in jobs {
            let outcome = BuildOutcome {
                engine: Some(EngineKind::Sandbox),
                image_id: Some("host".into()),
                result: Ok(BlobKey::new(DigestKind::Sha256, [9; 32])),
                log: Payload::Text("built".into()),
                log_tail: "built".into(),
            };
            let Code { namespace, function, version, .. } = job.code;
            let (epoch, owner) = (job.epoch, owner("a"));
            let finish = BuildFinish { namespace, function, version, epoch, owner, outcome: Some(outcome) };
            service.ask(finish).await.unwrap();
        }
    }
}

fn call(num: i64, of: &str, function: &str) -> CallSpec {
    CallSpec { namespace: namespace(of), ..spec(num, function) }
}

/// Claims so many calls for a worker; how many of each namespace.
async fn claimed(service: &Service, slots: SlotsView) -> Vec<String> {
    let engines = vec![EngineKind::Sandbox];
    let claim = CallsClaim { request: uuid(), owner: owner("a"), engines, limit: 16, slots, spare: Vec::new() };
    let jobs = service.ask(claim).await.unwrap();
    jobs.into_iter().map(|job| job.code.namespace.to_string()).collect()
}

fn count(claimed: &[String], of: &str) -> usize {
    claimed.iter().filter(|name| *name == of).count()
}

#[tokio::test]
async fn a_namespace_with_many_functions_gets_no_more_than_one_with_a_single_one() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    make(&service, "loud", 1, Quota::default()).await;
    make(&service, "quiet", 1, Quota::default()).await;
    let mut num = 0;
    for function in ["a", "b", "c", "d", "e", "f", "g"] {
        service.ask(upload_in("loud", function)).await.unwrap();
    }
    service.ask(upload_in("quiet", "only")).await.unwrap();
    build_all(&service).await;
    for _ in 0..4 {
        for function in ["a", "b", "c", "d", "e", "f", "g"] {
            num += 1;
            accept(&service, call(num, "loud", function)).await;
        }
        num += 1;
        accept(&service, call(num, "quiet", "only")).await;
    }
    let first = claimed(&service, SlotsView::unused(6)).await;
    assert_eq!((count(&first, "loud"), count(&first, "quiet")), (3, 3), "{first:?}");
    // What it holds counts: the other one has less, so the next is its own.
    let held = |of: &str, function: &str, slots| HeldSlots {
        function: FunctionId { namespace: namespace(of), name: name(function) },
        slots,
    };
    let view = SlotsView { total: 4, held: vec![held("loud", "a", 1), held("loud", "b", 1), held("loud", "c", 1)] };
    assert_eq!(claimed(&service, view).await, ["quiet"]);
    // It holds all slots with two functions: the reserve is for the other namespace.
    accept(&service, call(100, "quiet", "only")).await;
    let view = SlotsView { total: 2, held: vec![held("loud", "a", 1), held("loud", "b", 1)] };
    assert_eq!(claimed(&service, view).await, ["quiet"]);
}

#[tokio::test]
async fn weights_are_the_ratio_of_what_is_claimed() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    make(&service, "heavy", 3, Quota::default()).await;
    make(&service, "light", 1, Quota::default()).await;
    for of in ["heavy", "light"] {
        service.ask(upload_in(of, "f")).await.unwrap();
    }
    build_all(&service).await;
    for num in 1..=16 {
        accept(&service, call(num, "heavy", "f")).await;
        accept(&service, call(100 + num, "light", "f")).await;
    }
    let first = claimed(&service, SlotsView::unused(8)).await;
    assert_eq!((count(&first, "heavy"), count(&first, "light")), (6, 2), "{first:?}");
    let patch = NamespacePatch {
        name: namespace("light"),
        allow: GrantsChange::default(),
        quota: QuotaChange::default(),
        weight: Some(3),
        node_selector: None,
    };
    assert_eq!(service.ask(patch).await.unwrap().weight, 3);
    let second = claimed(&service, SlotsView::unused(8)).await;
    assert_eq!((count(&second, "heavy"), count(&second, "light")), (4, 4), "{second:?}");
}

#[tokio::test]
async fn no_more_queued_calls_run_than_the_quota_says() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    make(&service, "small", 1, Quota { concurrent_calls: Some(3), ..Quota::default() }).await;
    for function in ["a", "b"] {
        service.ask(upload_in("small", function)).await.unwrap();
    }
    build_all(&service).await;
    for num in 1..=4 {
        accept(&service, call(num, "small", "a")).await;
        accept(&service, call(10 + num, "small", "b")).await;
    }
    assert_eq!(claimed(&service, SlotsView::unused(8)).await.len(), 3);
    assert!(claimed(&service, SlotsView::unused(8)).await.is_empty());
    let usage = service.ask(NamespaceGet { name: namespace("small") }).await.unwrap().usage;
    assert_eq!((usage.functions, usage.queued_calls, usage.stored_bytes), (2, 3, 20));
}

#[tokio::test]
async fn archives_and_builds_have_quotas() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(1_700_000_000_000);
    let service = Service::start_with(folder.path(), faena_db::StoreSettings::default(), time.clone());
    make(&service, "small", 1, Quota { stored_bytes: Some(25), ..Quota::default() }).await;
    service.ask(upload_in("small", "f")).await.unwrap();
    service.ask(upload_in("small", "f")).await.unwrap();
    let over = |result: Result<Put<_>, DbError>| match result {
        Err(DbError::OverQuota { message }) => message,
        other => panic!("{other:?}"),
    };
    assert!(over(service.ask(upload_in("small", "f")).await).contains("storedBytes"));
    build_all(&service).await;

    let quota = Quota { build_minutes_per_day: Some(2), ..Quota::default() };
    make(&service, "slow", 1, quota).await;
    service.ask(upload_in("slow", "f")).await.unwrap();
    let engines = vec![EngineKind::Sandbox];
    let claim = BuildsClaim { request: uuid(), owner: owner("a"), engines, slots: SlotsView::unused(1) };
    let job = service.ask(claim).await.unwrap().pop().unwrap();
    time.pass(2 * 60_000);
    let (function, version) = (job.code.function, job.code.version);
    let given_back = BuildFinish {
        namespace: namespace("slow"),
        function,
        version,
        epoch: job.epoch,
        owner: owner("a"),
        outcome: None,
    };
    service.ask(given_back).await.unwrap();
    let usage = service.ask(NamespaceGet { name: namespace("slow") }).await.unwrap().usage;
    assert_eq!(usage.build_minutes_per_day, 2);
    assert!(over(service.ask(upload_in("slow", "f")).await).contains("buildMinutesPerDay"));
    let again = service.ask(BuildRetry { namespace: namespace("slow"), function: name("f") }).await;
    assert!(matches!(again, Err(DbError::OverQuota { .. })), "{again:?}");
    time.pass(24 * 3_600_000);
    service.ask(upload_in("slow", "f")).await.unwrap();
}

#[tokio::test]
async fn many_builds_of_one_namespace_leave_turns_to_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    make(&service, "loud", 1, Quota::default()).await;
    make(&service, "quiet", 1, Quota::default()).await;
    for number in 0..6 {
        service.ask(upload_in("loud", &format!("f{number}"))).await.unwrap();
    }
    service.ask(upload_in("quiet", "f")).await.unwrap();
    let engines = vec![EngineKind::Sandbox];
    let claim = BuildsClaim { request: uuid(), owner: owner("a"), engines, slots: SlotsView::unused(2) };
    let mut namespaces: Vec<String> =
        service.ask(claim).await.unwrap().iter().map(|job| job.code.namespace.to_string()).collect();
    namespaces.sort_unstable();
    assert_eq!(namespaces, ["loud", "quiet"]);
}

#[tokio::test]
async fn a_deleted_namespace_leaves_no_mapping_behind() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    make(&service, "red", 1, Quota::default()).await;
    service.ask(upload_in("red", "f")).await.unwrap();
    let mapping = |of: &str| Mapping {
        claim: "groups".to_owned(),
        value: "crew".to_owned(),
        namespace: namespace(of),
        scopes: Scopes::parse(&["read"]).unwrap(),
    };
    let provider = ProviderRecord {
        name: "corp".parse().unwrap(),
        issuer: "https://issuer.example".to_owned(),
        client_id: "faena".to_owned(),
        scopes: Vec::new(),
        mappings: vec![mapping("red"), mapping("default")],
        ca: None,
        created_at: Timestamp(1),
    };
    service.ask(ProviderPut { provider, client_secret: None }).await.unwrap();
    let delete = |force| NamespaceDelete { name: namespace("red"), force };
    assert!(matches!(service.ask(delete(false)).await, Err(DbError::Conflict { .. })), "it has a function");
    assert_eq!(service.ask(delete(true)).await.unwrap(), [name("f")]);
    // The first mapping that applies decides, so a mapping to a deleted namespace would refuse everyone it applies to.
    let there = service.ask(ProviderGet { name: "corp".parse().unwrap() }).await.unwrap();
    assert_eq!(there.provider.mappings, [mapping("default")]);
}
