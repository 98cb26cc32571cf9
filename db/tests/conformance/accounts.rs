//! Accounts, their sessions and keys, rules, the audit log, and people who sign in with a provider.

use faena_auth::{AccountId, AccountKind, CredentialId, CredentialKind, Mapping, NewCredential, Rule, Scope, Scopes};
use faena_domain::{Namespace, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::*;
use faena_protocol::records::{AccountRecord, AuditRecord, KeyRecord, ProviderRecord, SecretHash, TokenRecord};

use super::support::*;

const HOUR: i64 = 3_600_000;

fn account(name: &str, scopes: Scopes) -> AccountRecord {
    AccountRecord {
        id: AccountId(format!("id-{name}").into()),
        name: name.parse().unwrap(),
        namespace: space(),
        kind: AccountKind::User,
        scopes,
        metadata: serde_json::Map::new(),
        created_at: Timestamp(1),
    }
}

fn hash(text: &str) -> SecretHash {
    SecretHash(text.to_owned())
}

async fn make(service: &Service, name: &str, scopes: Scopes) -> AccountRecord {
    let account = account(name, scopes);
    service.ask(AccountPut { account, secret: hash(name), first: false }).await.unwrap()
}

/// A token of which the number tells the id.
fn token(kind: CredentialKind, number: u8, expires_at: i64) -> TokenRecord {
    let made = NewCredential::new(kind, [number; 8], [number; 32]);
    TokenRecord { id: made.id, hash: made.hash, expires_at: Timestamp(expires_at) }
}

fn begin(of: &AccountRecord, proven: &str, number: u8) -> SessionBegin {
    SessionBegin {
        session: format!("s{number}"),
        account: of.id.clone(),
        proven: hash(proven),
        ends_at: Timestamp(DAY + 30 * HOUR),
        access: token(CredentialKind::Access, number, DAY + HOUR),
        refresh: token(CredentialKind::Refresh, number + 1, DAY + 30 * HOUR),
    }
}

async fn credential(service: &Service, number: u8) -> Option<CredentialKind> {
    let id: CredentialId = hex_of(number).parse().unwrap();
    match service.ask(CredentialGet { id }).await {
        Ok(found) => Some(found.record.kind),
        Err(DbError::NotFound { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

fn hex_of(number: u8) -> String {
    format!("{number:02x}").repeat(8)
}

#[tokio::test]
async fn the_first_account_locks_the_platform_and_the_last_administrator_stays() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    service.ask(SetupPut { hash: "token".into() }).await.unwrap();
    assert_eq!(service.ask(SetupGet {}).await.unwrap(), Some("token".into()));
    let plain = AccountPut { account: account("eve", Scopes::NONE), secret: hash("eve"), first: true };
    assert!(matches!(service.ask(plain).await, Err(DbError::AdministratorNeeded { .. })));
    let before = service.ask(AccessStateGet {}).await.unwrap();
    assert!(!before.locked);
    let root = Scopes::NONE.with(Scope::Admin);
    let first = AccountPut { account: account("ada", root.clone()), secret: hash("ada"), first: true };
    let ada = service.ask(first.clone()).await.unwrap();
    let after = service.ask(AccessStateGet {}).await.unwrap();
    assert!(after.locked && after.seen > before.seen);
    assert_eq!(service.ask(SetupGet {}).await.unwrap(), None);
    assert_eq!(service.ask(first).await.unwrap(), ada, "the same message again");
    let other = AccountPut { account: account("bob", root.clone()), secret: hash("bob"), first: true };
    assert!(matches!(service.ask(other).await, Err(DbError::Conflict { .. })), "it is not the first");
    let delete = |id: &AccountId| service.ask(AccountDelete { id: id.clone() });
    assert!(matches!(delete(&ada.id).await, Err(DbError::Conflict { .. })));
    let bob = make(&service, "bob", root).await;
    let taken = AccountRecord { id: AccountId("id-2".into()), ..account("BOB", Scopes::NONE) };
    let taken = AccountPut { account: taken, secret: hash("x"), first: false };
    assert!(matches!(service.ask(taken).await, Err(DbError::Conflict { .. })), "names differ by more than case");
    delete(&ada.id).await.unwrap();
    let left = service.ask(AccountList { namespace: space() }).await.unwrap();
    assert_eq!(left, [bob]);
    assert!(matches!(delete(&ada.id).await, Err(DbError::NotFound { .. })));
}

#[tokio::test]
async fn a_session_lasts_until_its_end_its_reuse_or_another_secret() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(DAY);
    let service = Service::start_with(folder.path(), faena_db::StoreSettings::default(), time.clone());
    let ada = make(&service, "ada", Scopes::NONE.with(Scope::Admin)).await;
    assert!(matches!(service.ask(begin(&ada, "guess", 1)).await, Err(DbError::NotFound { .. })));
    service.ask(begin(&ada, "ada", 1)).await.unwrap();
    service.ask(begin(&ada, "ada", 1)).await.unwrap();
    assert_eq!(credential(&service, 1).await, Some(CredentialKind::Access));
    let refresh = |used: u8, next: u8| SessionRefresh {
        used: hex_of(used).parse().unwrap(),
        access: token(CredentialKind::Access, next, DAY + HOUR),
        refresh: token(CredentialKind::Refresh, next + 1, DAY + 30 * HOUR),
    };
    let done = Refreshed::Done(Box::new(ada.clone()));
    assert_eq!(service.ask(refresh(2, 3)).await.unwrap(), done);
    assert_eq!(service.ask(refresh(2, 3)).await.unwrap(), done, "the same message again");
    assert_eq!(service.ask(refresh(2, 5)).await.unwrap(), Refreshed::Reused);
    assert_eq!(credential(&service, 3).await, None, "the session has ended");

    service.ask(begin(&ada, "ada", 7)).await.unwrap();
    let key = |id: u8, name: &str| KeyPut {
        key: KeyRecord {
            id: hex_of(id).parse().unwrap(),
            name: name.parse().unwrap(),
            account: ada.id.clone(),
            scopes: Scopes::NONE,
            created_at: Timestamp(1),
            expires_at: None,
            last_used_at: None,
        },
        hash: token(CredentialKind::Key, id, 0).hash,
    };
    service.ask(key(9, "ci")).await.unwrap();
    service.ask(key(9, "ci")).await.unwrap();
    assert!(matches!(service.ask(key(10, "CI")).await, Err(DbError::Conflict { .. })));
    let uses = [5, 3].map(|at| KeyUse { id: hex_of(9).parse().unwrap(), at: Timestamp(at) }).into();
    service.ask(KeysUsed { uses }).await.unwrap();
    let keys = service.ask(KeyList { account: ada.id.clone() }).await.unwrap();
    assert_eq!(keys[0].last_used_at, Some(Timestamp(5)), "the latest use stays");
    let put = |proven: &str, ends_keys| SecretPut {
        id: ada.id.clone(),
        secret: hash("new"),
        proven: Some(hash(proven)),
        ends_keys,
    };
    assert!(matches!(service.ask(put("guess", true)).await, Err(DbError::NotFound { .. })));
    service.ask(put("ada", false)).await.unwrap();
    assert_eq!((credential(&service, 7).await, credential(&service, 9).await), (None, Some(CredentialKind::Key)));
    service.ask(put("new", true)).await.unwrap();
    assert_eq!(credential(&service, 9).await, None);

    service.ask(begin(&ada, "new", 11)).await.unwrap();
    time.pass(31 * HOUR);
    reap(&service).await;
    assert_eq!(credential(&service, 11).await, None, "its end has come");
}

#[tokio::test]
async fn rules_are_replaced_by_their_ids_and_lines_are_appended_once() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    let rule = |id: &str, priority| Rule { id: id.parse().unwrap(), priority, ..Rule::public(&name("dice")) };
    let put = |rule| service.ask(RulePut { namespace: space(), rule });
    let before = service.ask(RuleList { namespace: space() }).await.unwrap();
    assert!(put(rule("mine", 1)).await.unwrap().created);
    assert!(!put(rule("Mine", 2)).await.unwrap().created);
    let rules = service.ask(RuleList { namespace: space() }).await.unwrap();
    assert_eq!(rules.record.rules.len(), before.record.rules.len() + 1);
    assert!(rules.record.rules.iter().any(|found| found.priority == 2) && rules.seen > before.seen);
    let delete = || service.ask(RuleDelete { namespace: space(), id: "MINE".parse().unwrap() });
    delete().await.unwrap();
    assert!(matches!(delete().await, Err(DbError::NotFound { .. })));
    let nowhere: Namespace = "nowhere".parse().unwrap();
    let elsewhere = service.ask(RulePut { namespace: nowhere, rule: rule("a", 1) }).await;
    assert!(matches!(elsewhere, Err(DbError::NotFound { .. })));

    let line = |action: &str, at| AuditRecord {
        at: Timestamp(at),
        namespace: space(),
        account: Some("Ada".into()),
        action: action.into(),
        target: "dice".into(),
        address: "127.0.0.1".into(),
        outcome: 201,
        count: 1,
    };
    let append = AuditAppend { id: "m1".into(), lines: vec![line("a", 1), line("b", 2), line("a", 3)] };
    service.ask(append.clone()).await.unwrap();
    service.ask(append).await.unwrap();
    let list = |account: &str, action: Option<&str>, before, limit| AuditList {
        namespace: space(),
        since: Some(Timestamp(1)),
        account: Some(account.into()),
        action: action.map(str::to_owned),
        before,
        limit,
    };
    let found = service.ask(list("ada", Some("a"), None, 1)).await.unwrap();
    assert_eq!(found.iter().map(|line| line.record.at.0).collect::<Vec<_>>(), [3]);
    let rest = service.ask(list("ada", None, Some(found[0].number), 10)).await.unwrap();
    assert_eq!(rest.iter().map(|line| line.record.at.0).collect::<Vec<_>>(), [2, 1]);
    assert!(service.ask(list("bob", None, None, 10)).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_identity_keeps_its_account_and_loses_its_access_with_its_mapping() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    let provider = ProviderRecord {
        name: "corp".parse().unwrap(),
        issuer: "https://issuer.example".into(),
        client_id: "faena".into(),
        scopes: Vec::new(),
        mappings: vec![Mapping {
            claim: "groups".into(),
            value: "crew".into(),
            namespace: space(),
            scopes: Scopes::NONE,
        }],
        ca: None,
        created_at: Timestamp(1),
    };
    let secret = faena_domain::config::SecretText("client secret".into());
    let put = ProviderPut { provider: provider.clone(), client_secret: Some(secret.clone()) };
    service.ask(put).await.unwrap();
    let login = service.ask(ProviderGet { name: "corp".parse().unwrap() }).await.unwrap();
    assert_eq!(login.client_secret, Some(secret));
    let sign_in = |number: u8, scopes: Scopes| IdentitySignIn {
        provider: "corp".parse().unwrap(),
        issuer: "https://issuer.example".into(),
        subject: "1".into(),
        account: AccountRecord { id: AccountId(format!("new-{number}").into()), ..account("ada", scopes) },
        session: format!("s{number}"),
        cookie: token(CredentialKind::Cookie, number, i64::MAX),
        keys_end_at: Timestamp(i64::MAX),
    };
    let open = service.ask(sign_in(1, Scopes::NONE)).await;
    assert!(matches!(open, Err(DbError::Conflict { .. })), "an administrator comes first");
    make(&service, "ada", Scopes::NONE.with(Scope::Admin)).await;
    let first = service.ask(sign_in(1, Scopes::NONE)).await.unwrap();
    assert_ne!(first.name.as_str(), "ada", "that name is taken");
    let read = Scopes::NONE.with(Scope::Read);
    let again = service.ask(sign_in(2, read.clone())).await.unwrap();
    assert_eq!((&again.id, &again.scopes), (&first.id, &read));
    assert_eq!(credential(&service, 1).await, Some(CredentialKind::Cookie));
    // A change of who may sign in ends the sessions of those who have; the secret is put again with it.
    let changed = ProviderRecord { mappings: Vec::new(), ..provider };
    service.ask(ProviderPut { provider: changed, client_secret: None }).await.unwrap();
    assert_eq!((credential(&service, 1).await, credential(&service, 2).await), (None, None));
    service.ask(sign_in(3, Scopes::NONE)).await.unwrap();
    let refused = IdentityRefused {
        provider: "corp".parse().unwrap(),
        issuer: "https://issuer.example".into(),
        subject: "1".into(),
    };
    service.ask(refused).await.unwrap();
    assert_eq!(credential(&service, 3).await, None);
    service.ask(ProviderDelete { name: "corp".parse().unwrap() }).await.unwrap();
    assert!(service.ask(ProviderList {}).await.unwrap().is_empty());
}
