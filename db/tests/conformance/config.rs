//! Configuration and secrets: values, their history, what versions get of them, and another key.

use faena_domain::Manifest;
use faena_domain::config::ConfigProblem;
use faena_protocol::DbError;
use faena_protocol::db::*;
use serde_json::{Value, json};

use super::support::*;

async fn put(service: &Service, path: &str, value: Value, secret: bool) -> Result<bool, DbError> {
    let path = path.parse().unwrap();
    let account = "ada".to_owned();
    service.ask(ConfigPut { namespace: space(), path, value: ConfigValue(value), secret, account }).await
}

async fn get(service: &Service, path: Option<&str>) -> Result<Value, DbError> {
    service.ask(ConfigGet { namespace: space(), path: path.map(|path| path.parse().unwrap()) }).await
}

#[tokio::test]
async fn values_are_merged_and_secrets_are_never_seen() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    assert!(put(&service, "db", json!({"host": "a", "port": 1}), false).await.unwrap());
    assert!(!put(&service, "db", json!({"port": 2}), false).await.unwrap());
    assert!(put(&service, "db.password", json!("canary"), true).await.unwrap());
    let shown = json!({"db": {"host": "a", "port": 2, "password": "[secret]"}});
    assert_eq!(get(&service, None).await.unwrap(), shown);
    assert!(matches!(put(&service, "db.password", json!("x"), false).await, Err(DbError::Conflict { .. })));
    assert!(matches!(put(&service, "a", json!("[secret]"), false).await, Err(DbError::Conflict { .. })));
    // A value replaces an object at its path, with what was below it.
    put(&service, "db.port", json!({"of": {"main": 3}}), false).await.unwrap();
    assert_eq!(get(&service, Some("db.port")).await.unwrap(), json!({"of": {"main": 3}}));
    put(&service, "db.port", json!(4), false).await.unwrap();
    assert_eq!(get(&service, Some("db.port")).await.unwrap(), json!(4));
    let history = |path: &str| service.ask(ConfigHistory { namespace: space(), path: path.parse().unwrap() });
    let ports: Vec<Option<Value>> = history("db.port").await.unwrap().into_iter().map(|change| change.old).collect();
    assert!(ports.contains(&Some(json!(1))) && ports.contains(&Some(json!(3))));
    // What becomes a secret may have been the same text before: its history shows it no more.
    put(&service, "db.host", json!("a"), true).await.unwrap();
    assert!(history("db.host").await.unwrap().iter().all(|change| change.old.is_none()));
    let delete = || ConfigDelete { namespace: space(), path: "db".parse().unwrap(), account: "ada".into() };
    service.ask(delete()).await.unwrap();
    assert!(matches!(service.ask(delete()).await, Err(DbError::NotFound { .. })));
    assert_eq!(get(&service, None).await.unwrap(), json!({}));
}

#[tokio::test]
async fn a_version_gets_what_it_asks_for_under_the_key_of_the_day() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    service.ask(RuntimePut { namespace: space(), spec: runtime("python3 test.py") }).await.unwrap();
    let manifest = Manifest::parse("[env]\nPASSWORD = { config = \"db.password\" }").unwrap();
    service.ask(VersionPut { manifest, ..upload("up", "dice") }).await.unwrap();
    let bound = || async {
        let resolve = VersionResolve { namespace: space(), function: name("dice"), version: None };
        service.ask(resolve).await.unwrap().code.config.unwrap()
    };
    let path: faena_domain::config::ConfigPath = "db.password".parse().unwrap();
    assert_eq!(bound().await.problem, Some(ConfigProblem::Missing(path)));
    let seen = service.ask(FunctionChanges { since: FunctionsSeen(0) }).await.unwrap().at;
    put(&service, "db.password", json!("canary"), true).await.unwrap();
    let changed = service.ask(FunctionChanges { since: seen }).await.unwrap();
    assert!(
        matches!(changed.what, Changed::Functions(functions) if functions.len() == 1),
        "its instances are replaced"
    );
    let first = bound().await;
    assert_eq!((first.env["PASSWORD"].0.as_str(), first.problem), ("canary", None));
    assert_eq!(service.ask(SecretsRotate {}).await.unwrap(), 1);
    assert_eq!(bound().await.env["PASSWORD"].0, "canary");
    // Another start reads the keys of the folder.
    service.stop().await;
    let service = Service::start(folder.path());
    let resolve = VersionResolve { namespace: space(), function: name("dice"), version: None };
    assert_eq!(service.ask(resolve).await.unwrap().code.config.unwrap().env["PASSWORD"].0, "canary");
}
