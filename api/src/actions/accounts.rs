//! Accounts: added, found, and given other secrets.

use faena_auth::{AccountId, AccountKind, Principal, Requirement, Scope, Scopes};
use faena_domain::{AccountName, Namespace, Timestamp};
use faena_protocol::db::{AccountGet, AccountPut, LoginGet, SecretPut, SetupGet};
use faena_protocol::records::{AccountRecord, LoginRecord};
use faena_scheduler::unix_ms;
use serde_json::{Map, Value};
use subtle::ConstantTimeEq;

use crate::access::{Network, check_secret, setup_hash};
use crate::app::App;
use crate::authorize::permit_named;
use crate::problem::{ErrorCode, Problem, Reply};

/// What operations on other accounts require.
pub(crate) const ACCOUNTS: (Requirement, &str) = (Requirement::Scope(Scope::Admin), "account");

/// An account to create.
pub(crate) struct NewAccount {
    pub(crate) name: AccountName,
    pub(crate) namespace: Namespace,
    pub(crate) kind: AccountKind,
    pub(crate) scopes: Scopes,
    pub(crate) metadata: Map<String, Value>,
}

/// Refuses a token that is not the one of the set-up.
pub(crate) async fn check_setup_token(app: &App, token: &str) -> Reply<()> {
    let expected = app.db().ask(&SetupGet {}).await?;
    if expected.is_some_and(|hash| setup_hash(token).as_bytes().ct_eq(hash.as_bytes()).into()) {
        return Ok(());
    }
    let detail = "the token of the set-up is wrong, or an account exists already";
    let problem = Problem::new(ErrorCode::BadCredentials, detail);
    Err(problem.hint("the log of the start has a token; `faena setup` prints another"))
}

/// Adds an account with a secret; `is_first` where it must be the first of the platform.
pub(crate) async fn add(
    app: &App,
    new: NewAccount,
    secret: String,
    (network, is_first): (Network, bool),
) -> Reply<AccountRecord> {
    let NewAccount { name, namespace, kind, scopes, metadata } = new;
    let account = AccountRecord {
        // Ids are never used again.
        id: AccountId(uuid::Uuid::new_v4().simple().to_string().into()),
        name,
        namespace,
        kind,
        scopes,
        metadata,
        created_at: Timestamp(unix_ms()),
    };
    let secret = app.access().secrets.hash(secret, network).await?;
    let account = app.db().ask(&AccountPut { account, secret, first: is_first }).await?;
    app.access().refresh().await?;
    Ok(account)
}

/// An account, where the principal may do this with it: rules know it by its name, even if the request gives its id.
pub(crate) async fn find(app: &App, principal: &Principal, account: String) -> Reply<AccountRecord> {
    let account = app.db().ask(&AccountGet { namespace: principal.namespace.clone(), account }).await?;
    permit_named(app.access(), principal, ACCOUNTS, account.name.as_str()).await?;
    Ok(account)
}

/// Another secret for an account.
pub(crate) struct SecretChange {
    /// Its id or its name.
    pub(crate) account: String,
    /// The current secret.
    pub(crate) old: Option<String>,
    pub(crate) new: String,
    /// Whether its keys end too.
    pub(crate) ends_keys: bool,
}

/// An account whose secret the principal may change, and whether it has to prove the old one.
async fn changeable(app: &App, principal: &Principal, change: &SecretChange) -> Reply<(LoginRecord, bool)> {
    let SecretChange { account, old, .. } = change;
    let login = app.db().ask(&LoginGet { namespace: principal.namespace.clone(), account: account.clone() }).await;
    let is_own = |id: &AccountId| principal.account_id() == Some(id) && !principal.is_in_foreign_namespace();
    let name = login.as_ref().map_or(account.clone(), |login| login.account.name.to_string());
    let may = permit_named(app.access(), principal, ACCOUNTS, &name).await;
    let is_admin = may.is_ok();
    // A principal that may not change it does not learn whether it exists.
    match login {
        Ok(login) if is_admin || is_own(&login.account.id) => {
            let needs_old = !is_admin || (is_own(&login.account.id) && old.is_some());
            Ok((login, needs_old))
        }
        Err(error) if is_admin => Err(error.into()),
        _ => Err(may.err().unwrap_or_else(|| Problem::new(ErrorCode::Forbidden, "this is another account's secret"))),
    }
}

/// Changes an account's secret, and ends its sessions.
pub(crate) async fn change_secret(
    app: &App,
    principal: &Principal,
    change: SecretChange,
    network: Network,
) -> Reply<()> {
    let (login, needs_old) = changeable(app, principal, &change).await?;
    let SecretChange { old, new, ends_keys, .. } = change;
    let LoginRecord { account, secret: current } = login;
    if current.is_none() {
        let detail = format!("{} signs in with an identity provider, and has no secret", account.name);
        return Err(Problem::new(ErrorCode::Conflict, detail));
    }
    check_secret(&new)?;
    let proven = match (needs_old, old) {
        (false, _) => None,
        (true, Some(old)) => {
            let of = (&account.namespace, account.name.as_str());
            app.access().prove(of, old, current.clone(), network).await?;
            current
        }
        (true, None) => {
            return Err(Problem::new(ErrorCode::MissingField, "the field `old` is missing: the current secret"));
        }
    };
    let secret = app.access().secrets.hash(new, network).await?;
    app.db().ask(&SecretPut { id: account.id, secret, proven, ends_keys }).await?;
    app.access().refresh().await?;
    Ok(())
}
