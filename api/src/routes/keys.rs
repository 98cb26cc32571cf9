//! Keys: credentials of an account for programs, until they are deleted.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::AppendHeaders;
use axum::{Extension, Json};
use faena_auth::{AccountId, CredentialId, Principal, Scope, Scopes};
use faena_domain::Timestamp;
use faena_domain::json::parse_object;
use faena_protocol::db::{KeyDelete, KeyList};
use faena_protocol::records::KeyRecord;
use faena_scheduler::unix_ms;
use serde::{Deserialize, Serialize};

use super::accounts::{MAX_REQUEST, NO_STORE};
use crate::access::{Audited, Origin, RequestAuth};
use crate::app::App;
use crate::authorize::Authenticated;
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::{actions, body};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewKey {
    name: String,
    scopes: Option<Vec<String>>,
    expires_at: Option<String>,
}

/// A key that was just made.
#[derive(Debug, Serialize)]
pub(crate) struct MadeKey {
    #[serde(flatten)]
    record: KeyRecord,
    key: String,
}

/// The account that a request is from.
fn account(principal: &Principal) -> Reply<AccountId> {
    principal.account_id().cloned().ok_or_else(|| {
        Problem::new(ErrorCode::Conflict, "keys belong to accounts, and this platform has none yet")
            .hint("make the first account with POST /account")
    })
}

/// What a key may do: no built-in scope that its maker lacks, and words of an operator's own only where its maker has them
/// or is an administrator.
fn scopes(principal: &Principal, asked: Option<&[String]>) -> Reply<Scopes> {
    let Some(names) = asked else { return Ok(principal.scopes.clone()) };
    let scopes = Scopes::parse(names)?;
    let missing = if principal.scopes.include(Scope::Admin) { None } else { scopes.beyond(&principal.scopes) };
    match missing {
        Some(scope) => {
            let detail = format!("{} lacks the scope {scope}, so its key cannot have it", principal.account);
            Err(Problem::new(ErrorCode::Forbidden, detail))
        }
        None => Ok(scopes),
    }
}

/// When a key is to end.
fn instant(text: String) -> Reply<Timestamp> {
    let invalid = |detail: String| Problem::new(ErrorCode::InvalidInstant, detail);
    let parsed: Timestamp = text.parse().map_err(|error| invalid(format!("expiresAt: {error}")))?;
    if parsed.0 > unix_ms() { Ok(parsed) } else { Err(invalid("expiresAt is over already".to_owned())) }
}

/// Makes a key of one's own account.
#[utoipa::path(post, path = "/key", tag = "accounts", request_body(content = Object, content_type = "application/json", description = "`name`; optionally `scopes`, `expiresAt`"),
    responses((status = 201, description = "The key, with its text in `key`, this once"), (status = 409, description = "There is one of this name", body = Problem)))]
pub(crate) async fn make(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Extension(origin): Extension<Origin>,
    headers: HeaderMap,
    body: Body,
) -> Reply<(StatusCode, Extension<Audited>, AppendHeaders<[(&'static str, &'static str); 1]>, Json<MadeKey>)> {
    let bytes = body::read_json(app.admission(), &headers, body, MAX_REQUEST).await?;
    let NewKey { name, scopes: asked, expires_at } = parse_object(&bytes, &["name", "scopes", "expiresAt"])?;
    let ends_at = expires_at.map(instant).transpose()?;
    let own_end = app.access().end_of_key(&RequestAuth::of_route(&headers, &origin)).await?;
    // A key that ends makes none that outlives it.
    let expires_at = own_end.map(|end| ends_at.map_or(end, |asked| asked.min(end))).or(ends_at);
    let scopes = scopes(&principal, asked.as_deref())?;
    let (record, text) = actions::keys::make(&app, account(&principal)?, name.parse()?, scopes, expires_at).await?;
    let audited = Audited { target: Some(record.name.to_string()), ..Audited::default() };
    Ok((StatusCode::CREATED, Extension(audited), NO_STORE, Json(MadeKey { record, key: text })))
}

/// The keys of one's own account.
#[utoipa::path(get, path = "/keys", tag = "accounts", responses((status = 200, description = "The keys, by name, without their texts")))]
pub(crate) async fn list(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
) -> Reply<Json<Vec<KeyRecord>>> {
    let Some(account) = principal.account_id().cloned() else { return Ok(Json(Vec::new())) };
    Ok(Json(app.db().ask(&KeyList { account }).await?))
}

/// Ends a key of one's own account.
#[utoipa::path(delete, path = "/key/{id}", tag = "accounts", params(("id" = String, Path,)), responses((status = 204, description = "It works no more"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn delete(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(id): Path<String>,
) -> Reply<StatusCode> {
    let unknown = || Problem::new(ErrorCode::UnknownApiKey, "the account has no key of this id");
    let id: CredentialId = id.parse().map_err(|_| unknown())?;
    let account = principal.account_id().cloned().ok_or_else(unknown)?;
    app.db().ask(&KeyDelete { account, id }).await?;
    app.access().refresh().await?;
    Ok(StatusCode::NO_CONTENT)
}
