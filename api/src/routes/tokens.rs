//! Signing in and out: tokens of sessions.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::AppendHeaders;
use axum::{Extension, Json};
use faena_auth::{Credential, CredentialKind, NewCredential};
use faena_domain::json::parse_object;
use faena_domain::name::MAX_NAME;
use faena_domain::{Namespace, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{CredentialGet, LoginGet, Refreshed, SessionBegin, SessionEnd, SessionRefresh};
use faena_protocol::records::{AccountRecord, LoginRecord, TokenRecord};
use faena_scheduler::unix_ms;
use serde::{Deserialize, Serialize};

use super::accounts::{MAX_REQUEST, NO_STORE};
use super::login::clear_session;
use crate::access::{Audited, Network, Origin, RequestAuth, new_credential, wrong_secret};
use crate::app::App;
use crate::body;
use crate::problem::{ErrorCode, Problem, Reply};

/// How long an access token is taken, in milliseconds.
const ACCESS_MS: i64 = 15 * 60 * 1000;
/// How long a session lasts, whatever is exchanged meanwhile, in milliseconds.
const SESSION_MS: i64 = 30 * 24 * 3600 * 1000;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Login {
    name: Option<String>,
    id: Option<String>,
    secret: Option<String>,
    namespace: Option<String>,
    refresh_token: Option<String>,
}

/// New tokens, and whose they are.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Tokens {
    access_token: String,
    refresh_token: String,
    expires_at: Timestamp,
    account: AccountRecord,
}

type Answer = (StatusCode, Extension<Audited>, AppendHeaders<[(&'static str, &'static str); 1]>, Json<Tokens>);

fn record(made: &NewCredential, expires_at: i64) -> TokenRecord {
    TokenRecord { id: made.id, hash: made.hash.clone(), expires_at: Timestamp(expires_at) }
}

fn answer(account: AccountRecord, (access, refresh): (NewCredential, NewCredential), ends_at: i64) -> Answer {
    let name = Some(account.name.to_string());
    let audited = Audited { account: name.clone(), target: name, namespace: Some(account.namespace.clone()) };
    let tokens =
        Tokens { access_token: access.text, refresh_token: refresh.text, expires_at: Timestamp(ends_at), account };
    (StatusCode::CREATED, Extension(audited), NO_STORE, Json(tokens))
}

/// Signs in with a secret, or exchanges a refresh token for new tokens.
#[utoipa::path(post, path = "/token", tag = "accounts", request_body(content = Object, content_type = "application/json", description = "`name` or `id`, `secret`, and `namespace` where it is not default; or `refreshToken`"),
    responses((status = 201, description = "`accessToken`, `refreshToken`, `expiresAt`, `account`"), (status = 401, description = "The name or the secret is wrong", body = Problem)))]
pub(crate) async fn make(
    State(app): State<App>,
    Extension(origin): Extension<Origin>,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer, (Extension<Audited>, Problem)> {
    let nobody = |problem: Problem| (Extension(Audited::default()), problem);
    match asked(&app, &headers, body).await.map_err(nobody)? {
        Asked::Refresh(token) => refresh(&app, &token).await.map_err(nobody),
        Asked::SignIn { of, secret } => sign_in(&app, of, secret, Network::from(origin.address)).await,
    }
}

/// What a body asks for.
enum Asked {
    SignIn { of: (Namespace, String), secret: String },
    Refresh(String),
}

async fn asked(app: &App, headers: &HeaderMap, body: Body) -> Reply<Asked> {
    let bytes = body::read_json(app.admission(), headers, body, MAX_REQUEST).await?;
    let asked: Login = parse_object(&bytes, &["name", "id", "secret", "namespace", "refreshToken"])?;
    let (account, secret) = match asked {
        Login { refresh_token: Some(token), name: None, id: None, secret: None, namespace: None } => {
            return Ok(Asked::Refresh(token));
        }
        Login { name: Some(name), id: None, secret: Some(secret), refresh_token: None, .. } => (name, secret),
        Login { id: Some(id), name: None, secret: Some(secret), refresh_token: None, .. } => (id, secret),
        _ => {
            let detail = "a body has `name` or `id` and `secret`, or `refreshToken` alone";
            return Err(Problem::new(ErrorCode::MissingField, detail));
        }
    };
    let namespace = asked.namespace.as_deref().map_or_else(|| Ok(Namespace::default()), super::accounts::namespace)?;
    Ok(Asked::SignIn { of: (namespace, account), secret })
}

async fn sign_in(
    app: &App,
    (namespace, account): (Namespace, String),
    secret: String,
    network: Network,
) -> Result<Answer, (Extension<Audited>, Problem)> {
    let named = Audited { account: None, target: Some(account.clone()), namespace: Some(namespace.clone()) };
    let failed = |problem: Problem| (Extension(named.clone()), problem);
    // No account has a longer name, and nothing is kept of one.
    if account.len() > MAX_NAME {
        let nobody = Audited { namespace: Some(namespace), ..Audited::default() };
        return Err((Extension(nobody), wrong_secret()));
    }
    let login = match app.db().ask(&LoginGet { namespace: namespace.clone(), account: account.clone() }).await {
        Ok(login) => Some(login),
        Err(DbError::NotFound { .. }) => None,
        Err(error) => return Err(failed(error.into())),
    };
    let hash = login.as_ref().and_then(|login| login.secret.clone());
    // Its name and its id are the same account to who guesses.
    let name = login.as_ref().map_or(account, |login| login.account.name.to_string());
    app.access().prove((&namespace, &name), secret, hash, network).await.map_err(failed)?;
    let login = login.ok_or_else(wrong_secret).map_err(failed)?;
    begin(app, login).await.map_err(failed)
}

/// Begins a session of an account whose secret was proven.
async fn begin(app: &App, LoginRecord { account, secret }: LoginRecord) -> Reply<Answer> {
    let proven = secret.ok_or_else(wrong_secret)?;
    let (access, refresh) = (new_credential(CredentialKind::Access)?, new_credential(CredentialKind::Refresh)?);
    let now = unix_ms();
    let ends_at = Timestamp(now + SESSION_MS);
    let begin = SessionBegin {
        session: uuid::Uuid::new_v4().simple().to_string(),
        account: account.id.clone(),
        proven,
        ends_at,
        access: record(&access, now + ACCESS_MS),
        refresh: record(&refresh, ends_at.0),
    };
    match app.db().ask(&begin).await {
        // Its secret was changed, or it was deleted, meanwhile.
        Err(DbError::NotFound { .. }) => return Err(wrong_secret()),
        begun => begun?,
    }
    Ok(answer(account, (access, refresh), now + ACCESS_MS))
}

async fn refresh(app: &App, token: &str) -> Reply<Answer> {
    let ended = || Problem::new(ErrorCode::BadCredentials, "the refresh token is unknown, or its session has ended");
    let token: Credential = token.parse().map_err(|_| ended())?;
    let found = match app.db().ask(&CredentialGet { id: token.id }).await {
        Ok(found) => found.record,
        Err(DbError::NotFound { .. }) => return Err(ended()),
        Err(error) => return Err(error.into()),
    };
    let now = unix_ms();
    let is_alive = found.expires_at.is_some_and(|end| end.0 > now);
    let is_refresh = token.kind == CredentialKind::Refresh && found.kind == CredentialKind::Refresh;
    if !is_refresh || !found.hash.admits(&token.secret) || !is_alive {
        return Err(ended());
    }
    let (access, refresh) = (new_credential(CredentialKind::Access)?, new_credential(CredentialKind::Refresh)?);
    let exchange = SessionRefresh {
        used: token.id,
        access: record(&access, now + ACCESS_MS),
        refresh: record(&refresh, found.expires_at.map_or(now, |end| end.0)),
    };
    let refreshed = match app.db().ask(&exchange).await {
        Err(DbError::NotFound { .. }) => return Err(ended()),
        refreshed => refreshed?,
    };
    match refreshed {
        Refreshed::Done(account) => Ok(answer(*account, (access, refresh), now + ACCESS_MS)),
        Refreshed::Reused => {
            app.access().refresh().await?;
            Err(ended()
                .hint("it was used before, so someone else may have a copy; the session has ended: sign in again"))
        }
    }
}

/// Signs out: the session of the token ends at once.
#[utoipa::path(delete, path = "/token", tag = "accounts", responses((status = 204, description = "The session has ended; a browser forgets its cookie")))]
pub(crate) async fn delete(
    State(app): State<App>,
    Extension(origin): Extension<Origin>,
    headers: HeaderMap,
) -> Reply<(StatusCode, AppendHeaders<[(HeaderName, HeaderValue); 1]>)> {
    match app.access().session(&RequestAuth::of_route(&headers, &origin)).await? {
        Some(session) => {
            app.db().ask(&SessionEnd { session }).await?;
            app.access().refresh().await?;
            Ok((StatusCode::NO_CONTENT, AppendHeaders([(header::SET_COOKIE, clear_session()?)])))
        }
        None => Err(Problem::new(ErrorCode::Conflict, "the credential of this request belongs to no session")
            .hint("a key ends with DELETE /key/ID")),
    }
}
