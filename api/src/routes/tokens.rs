//! Signing in and out: tokens of sessions.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::AppendHeaders;
use axum::{Extension, Json};
use faena_domain::json::parse_object;
use faena_domain::{Namespace, Timestamp};
use faena_protocol::db::SessionEnd;
use faena_protocol::records::AccountRecord;
use serde::{Deserialize, Serialize};

use super::accounts::{MAX_REQUEST, NO_STORE};
use super::login::clear_session;
use crate::access::{Audited, Network, Origin, RequestAuth};
use crate::actions::sessions::{self, NewSession};
use crate::app::App;
use crate::body;
use crate::problem::{ErrorCode, Problem, Reply};

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

fn answer(NewSession { account, access, refresh, ends_at }: NewSession) -> Answer {
    let name = Some(account.name.to_string());
    let audited = Audited { account: name.clone(), target: name, namespace: Some(account.namespace.clone()) };
    let tokens = Tokens { access_token: access, refresh_token: refresh, expires_at: ends_at, account };
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
        Asked::Refresh(token) => sessions::refresh(&app, &token).await.map(answer).map_err(nobody),
        Asked::SignIn { of, secret } => {
            let signed_in = sessions::sign_in(&app, of, secret, Network::from(origin.address)).await;
            signed_in.map(answer).map_err(|(named, problem)| (Extension(named), problem))
        }
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
