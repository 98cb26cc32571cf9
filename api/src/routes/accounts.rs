//! Accounts of people and programs.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, response::AppendHeaders};
use faena_auth::{Account, AccountKind, Principal, Scope, Scopes};
use faena_domain::json::parse_object;
use faena_domain::{AccountName, Namespace};
use faena_protocol::db::{AccountDelete, AccountList};
use faena_protocol::records::AccountRecord;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::access::{Audited, Network, Origin, check_secret, new_secret};
use crate::actions::accounts::{ACCOUNTS, NewAccount, SecretChange};
use crate::app::App;
use crate::authorize::{Authenticated, permit_named};
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::{actions, body};

/// The largest body.
pub(super) const MAX_REQUEST: u64 = 64 * 1024;
/// The largest metadata of an account, in bytes.
const MAX_METADATA: usize = 16 * 1024;

/// An account, and its secret where it was just made.
#[derive(Debug, Serialize)]
pub(crate) struct Made {
    #[serde(flatten)]
    account: AccountRecord,
    secret: String,
}

#[derive(Debug, Deserialize)]
struct AskedAccount {
    name: String,
    #[serde(rename = "type")]
    kind: AccountKind,
    secret: Option<String>,
    scopes: Option<Vec<String>>,
    metadata: Option<Map<String, Value>>,
    namespace: Option<String>,
}

impl AskedAccount {
    fn namespace(&self, principal: &Principal) -> Reply<Namespace> {
        let into = self.namespace.as_deref().map_or_else(|| Ok(principal.namespace.clone()), namespace)?;
        if into != principal.namespace && !principal.is_root() {
            return Err(faena_auth::Forbidden::Root { account: principal.account.clone() }.into());
        }
        Ok(into)
    }

    fn scopes(&self) -> Reply<Scopes> {
        match &self.scopes {
            Some(names) => Ok(Scopes::parse(names)?),
            None => Ok(Scopes::NONE.with(Scope::Invoke).with(Scope::Read)),
        }
    }

    fn metadata(&self) -> Reply<Map<String, Value>> {
        let metadata = self.metadata.clone().unwrap_or_default();
        if serde_json::to_vec(&metadata).map_or(usize::MAX, |text| text.len()) > MAX_METADATA {
            return Err(Problem::too_large(format!("metadata may have {MAX_METADATA} bytes")));
        }
        Ok(metadata)
    }
}

#[derive(Debug, Deserialize)]
struct Setup {
    token: String,
    name: String,
    secret: String,
}

#[derive(Debug, Deserialize)]
struct NewSecret {
    old: Option<String>,
    new: String,
}

impl From<faena_auth::InvalidScope> for Problem {
    fn from(error: faena_auth::InvalidScope) -> Self {
        Self::new(ErrorCode::InvalidScope, error)
    }
}

/// The name of a namespace as people write it.
pub(super) fn namespace(text: &str) -> Reply<Namespace> {
    Ok(text.to_ascii_lowercase().parse()?)
}

/// What the first account can be made with is nowhere but on the operator's terminal.
#[utoipa::path(post, path = "/setup", tag = "accounts", request_body(content = Object, content_type = "application/json", description = "`token`, `name` and `secret`"),
    responses((status = 201, description = "The first account"), (status = 401, description = "The token is wrong, or there is an account", body = Problem)))]
pub(crate) async fn setup(
    State(app): State<App>,
    Extension(origin): Extension<Origin>,
    headers: HeaderMap,
    body: Body,
) -> Reply<(StatusCode, Extension<Audited>, Json<AccountRecord>)> {
    let bytes = body::read_json(app.admission(), &headers, body, MAX_REQUEST).await?;
    let Setup { token, name, secret } = parse_object(&bytes, &["token", "name", "secret"])?;
    actions::accounts::check_setup_token(&app, &token).await?;
    let first = NewAccount {
        name: name.parse()?,
        namespace: Namespace::default(),
        kind: AccountKind::User,
        scopes: Scopes::NONE.with(Scope::Admin),
        metadata: Map::new(),
    };
    check_secret(&secret)?;
    let account = actions::accounts::add(&app, first, secret, (Network::from(origin.address), true)).await?;
    let name = Some(account.name.to_string());
    let audited = Audited { account: name.clone(), target: name, namespace: None };
    Ok((StatusCode::CREATED, Extension(audited), Json(account)))
}

/// Makes an account. The first one locks the platform: from then on every request needs a credential.
#[utoipa::path(post, path = "/account", tag = "accounts", request_body(content = Object, content_type = "application/json", description = "`name` and `type`; optionally `secret`, `scopes`, `metadata`, `namespace`"),
    responses((status = 201, description = "The account, with its secret, this once"), (status = 409, description = "There is one of this name", body = Problem), (status = 422, description = "The first must be an administrator of the namespace default", body = Problem)))]
pub(crate) async fn make(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Extension(origin): Extension<Origin>,
    headers: HeaderMap,
    body: Body,
) -> Reply<(StatusCode, Extension<Audited>, AppendHeaders<[(&'static str, &'static str); 1]>, Json<Made>)> {
    let bytes = body::read_json(app.admission(), &headers, body, MAX_REQUEST).await?;
    let fields = ["name", "type", "secret", "scopes", "metadata", "namespace"];
    let asked: AskedAccount = parse_object(&bytes, &fields)?;
    let into = asked.namespace(&principal)?;
    let (scopes, metadata) = (asked.scopes()?, asked.metadata()?);
    let secret = asked.secret.map_or_else(new_secret, |secret| check_secret(&secret).map(|()| secret))?;
    let name: AccountName = asked.name.parse()?;
    permit_named(app.access(), &principal, ACCOUNTS, name.as_str()).await?;
    let new = NewAccount { name, namespace: into, kind: asked.kind, scopes, metadata };
    let network = Network::from(origin.address);
    let account = actions::accounts::add(&app, new, secret.clone(), (network, false)).await?;
    let (target, namespace) = (Some(account.name.to_string()), Some(account.namespace.clone()));
    let audited = Audited { account: None, target, namespace };
    Ok((StatusCode::CREATED, Extension(audited), NO_STORE, Json(Made { account, secret })))
}

/// What holds a secret is kept by nobody on the way (RFC 9111, 5.2.2.5).
pub(super) const NO_STORE: AppendHeaders<[(&str, &str); 1]> = AppendHeaders([("cache-control", "no-store")]);

/// All accounts of the namespace.
#[utoipa::path(get, path = "/accounts", tag = "accounts", responses((status = 200, description = "The accounts, by name")))]
pub(crate) async fn list(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
) -> Reply<Json<Vec<AccountRecord>>> {
    Ok(Json(app.db().ask(&AccountList { namespace: principal.namespace.clone() }).await?))
}

/// One account.
#[utoipa::path(get, path = "/account/{account}", tag = "accounts", params(("account" = String, Path, description = "its id or its name")), responses((status = 200, description = "The account"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn get(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(account): Path<String>,
) -> Reply<Json<AccountRecord>> {
    Ok(Json(actions::accounts::find(&app, &principal, account).await?))
}

/// Forgets an account, its sessions and its keys.
#[utoipa::path(delete, path = "/account/{account}", tag = "accounts", params(("account" = String, Path, description = "its id or its name")), responses((status = 204, description = "It is gone"), (status = 404, description = "There is none", body = Problem), (status = 409, description = "It is one's own, or the last administrator", body = Problem)))]
pub(crate) async fn delete(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(account): Path<String>,
) -> Reply<StatusCode> {
    let account = actions::accounts::find(&app, &principal, account).await?;
    if principal.account_id() == Some(&account.id) {
        return Err(Problem::new(ErrorCode::Conflict, format!("{} is the account of this request", account.name))
            .hint("another administrator can delete it"));
    }
    app.db().ask(&AccountDelete { id: account.id }).await?;
    app.access().refresh().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Changes an account's secret, and ends its sessions.
#[utoipa::path(post, path = "/account/{account}/secret", tag = "accounts", params(("account" = String, Path, description = "its id or its name"), ("keys" = Option<bool>, Query, description = "ends its keys too")), request_body(content = Object, content_type = "application/json", description = "`new`, and `old` unless an administrator asks"),
    responses((status = 204, description = "It is changed"), (status = 401, description = "The old secret is wrong", body = Problem)))]
pub(crate) async fn change_secret(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Extension(origin): Extension<Origin>,
    Path(account): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Reply<StatusCode> {
    let ends_keys = super::flag(query.as_deref(), "keys")?;
    let bytes = body::read_json(app.admission(), &headers, body, MAX_REQUEST).await?;
    let NewSecret { old, new } = parse_object(&bytes, &["old", "new"])?;
    let change = SecretChange { account, old, new, ends_keys };
    actions::accounts::change_secret(&app, &principal, change, Network::from(origin.address)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who a request is from.
#[derive(Debug, Serialize)]
pub(crate) struct Whoami {
    account: String,
    namespace: Namespace,
    scopes: Scopes,
    #[serde(rename = "type")]
    kind: &'static str,
}

/// Who sends this request, and what they may do.
#[utoipa::path(get, path = "/whoami", tag = "accounts", responses((status = 200, description = "`account`, `namespace`, `scopes`, `type`")))]
pub(crate) async fn whoami(Authenticated(principal): Authenticated) -> Json<Whoami> {
    let kind = match &principal.account {
        Account::Operator => "operator",
        Account::Anonymous => "anonymous",
        Account::Named { kind: AccountKind::User, .. } => "user",
        Account::Named { kind: AccountKind::Service, .. } => "service",
        Account::Function(_) => "function",
    };
    Json(Whoami {
        account: principal.account.to_string(),
        namespace: principal.namespace.clone(),
        scopes: principal.scopes.clone(),
        kind,
    })
}
