//! Keys: credentials of an account for programs, until they are deleted.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::AppendHeaders;
use axum::{Extension, Json};
use faena_auth::{AccountId, CredentialId, CredentialKind, Principal, Scope, Scopes};
use faena_domain::Timestamp;
use faena_domain::json::parse_object;
use faena_protocol::db::{KeyDelete, KeyList, KeyPut};
use faena_protocol::records::KeyRecord;
use faena_scheduler::unix_ms;
use serde::{Deserialize, Serialize};

use super::accounts::{MAX_REQUEST, NO_STORE};
use crate::access::{Audited, Origin, RequestAuth, new_credential};
use crate::app::App;
use crate::authorize::Authenticated;
use crate::body;
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};

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
    let account = account(&principal)?;
    let now = unix_ms();
    let instant = |text: String| {
        let parsed: Timestamp =
            text.parse().map_err(|error| Problem::new(ErrorCode::InvalidInstant, format!("expiresAt: {error}")))?;
        if parsed.0 > now {
            Ok(parsed)
        } else {
            Err(Problem::new(ErrorCode::InvalidInstant, "expiresAt is over already"))
        }
    };
    let asked_end = expires_at.map(instant).transpose()?;
    // A key that ends makes none that outlives it.
    let expires_at = match app.access().end_of_key(&RequestAuth::of_route(&headers, &origin)).await? {
        Some(end) => Some(asked_end.map_or(end, |asked| asked.min(end))),
        None => asked_end,
    };
    let made = new_credential(CredentialKind::Key)?;
    let key = KeyRecord {
        id: made.id,
        name: name.parse()?,
        account,
        scopes: scopes(&principal, asked.as_deref())?,
        created_at: Timestamp(now),
        expires_at,
        last_used_at: None,
    };
    let record = app.db().ask(&KeyPut { key, hash: made.hash }).await?;
    let audited = Audited { target: Some(record.name.to_string()), ..Audited::default() };
    Ok((StatusCode::CREATED, Extension(audited), NO_STORE, Json(MadeKey { record, key: made.text })))
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
