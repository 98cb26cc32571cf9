//! Configuration and secrets of a namespace.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use faena_auth::Principal;
use faena_domain::config::{ConfigPath, InvalidPath, leaves};
use faena_protocol::db::{ConfigDelete, ConfigGet, ConfigHistory, ConfigPut, ConfigValue, SecretsRotate};
use serde::Serialize;
use serde_json::Value;

use super::flag;
use crate::app::App;
use crate::authorize::{Authenticated, may_read_value, permit_change};
use crate::body;
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};

/// The largest value.
const MAX_VALUE: u64 = 64 * 1024;

impl From<InvalidPath> for Problem {
    fn from(error: InvalidPath) -> Self {
        Self::new(ErrorCode::InvalidPath, error)
    }
}

/// Puts a value: members of objects are merged, anything else is replaced.
#[utoipa::path(put, path = "/config/{path}", tag = "config", params(("path" = String, Path, description = "names with dots between them, as `db.url`"), ("secret" = Option<bool>, Query, description = "keeps it sealed")), request_body(content = serde_json::Value, content_type = "application/json", description = "Any JSON"),
    responses((status = 201, description = "It is there"), (status = 204, description = "It has changed"), (status = 400, description = "What is wrong", body = Problem)))]
pub(crate) async fn put(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(path): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Reply<StatusCode> {
    let (path, secret) = (path.parse::<ConfigPath>()?, flag(query.as_deref(), "secret")?);
    let bytes = body::read_json(app.admission(), &headers, body, MAX_VALUE).await?;
    body::check_json(&bytes)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
        Problem::new(ErrorCode::MalformedJson, error).hint("the body is JSON; text has quotes, as in --data '\"text\"'")
    })?;
    let rules = &app.access().rules(&principal.namespace).await?.rules;
    for (leaf, _) in leaves(&path, value.clone())? {
        permit_change(&principal, &leaf, rules)?;
    }
    let put = ConfigPut {
        namespace: principal.namespace.clone(),
        path,
        value: ConfigValue(value),
        secret,
        account: principal.account.to_string(),
    };
    let created = app.db().ask(&put).await?;
    Ok(if created { StatusCode::CREATED } else { StatusCode::NO_CONTENT })
}

/// A value; `"[secret]"` stands for each secret in it. `?history=true` tells its changes.
#[utoipa::path(get, path = "/config/{path}", tag = "config", params(("path" = String, Path, description = "names with dots between them, as `db.url`"), ("history" = Option<bool>, Query, description = "its changes, the newest first")), responses((status = 200, description = "The value"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn get(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(path): Path<String>,
    RawQuery(query): RawQuery,
) -> Reply<Response> {
    let (path, namespace) = (path.parse::<ConfigPath>()?, principal.namespace.clone());
    if flag(query.as_deref(), "history")? {
        let mut changes = app.db().ask(&ConfigHistory { namespace, path }).await?;
        let rules = &app.access().rules(&principal.namespace).await?.rules;
        changes.retain(|change| permit_change(&principal, &change.path, rules).is_ok());
        return Ok(Json(changes).into_response());
    }
    let value = app.db().ask(&ConfigGet { namespace, path: Some(path.clone()) }).await?;
    Ok(Json(permitted(&app, &principal, path.as_str(), value).await?).into_response())
}

/// A value without the members that rules deny to who asks.
async fn permitted(app: &App, principal: &Principal, path: &str, mut value: Value) -> Reply<Value> {
    let rules = app.access().rules(&principal.namespace).await?;
    remove_denied(path, &mut value, &|path| !may_read_value(principal, path, &rules.rules));
    Ok(value)
}

fn remove_denied(path: &str, value: &mut Value, is_denied: &impl Fn(&str) -> bool) {
    let Value::Object(members) = value else { return };
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    members.retain(|name, value| {
        let path = below(name);
        remove_denied(&path, value, is_denied);
        !is_denied(&path)
    });
}

/// All of the namespace's configuration.
#[utoipa::path(get, path = "/config", tag = "config", responses((status = 200, description = "The values; `\"[secret]\"` stands for each secret")))]
pub(crate) async fn list(State(app): State<App>, Authenticated(principal): Authenticated) -> Reply<Json<Value>> {
    let value = app.db().ask(&ConfigGet { namespace: principal.namespace.clone(), path: None }).await?;
    Ok(Json(permitted(&app, &principal, "", value).await?))
}

/// How many secrets were sealed again.
#[derive(Debug, Serialize)]
pub(crate) struct Rotated {
    secrets: u64,
}

/// Takes a new key into use, under which the keys of all secrets are sealed. The one before is kept for backups.
#[utoipa::path(post, path = "/secrets/rotate", tag = "config", responses((status = 200, description = "`secrets`: how many were sealed again")))]
pub(crate) async fn rotate(State(app): State<App>) -> Reply<Json<Rotated>> {
    Ok(Json(Rotated { secrets: app.db().ask(&SecretsRotate {}).await? }))
}

/// Removes a value with all below it.
#[utoipa::path(delete, path = "/config/{path}", tag = "config", params(("path" = String, Path, description = "names with dots between them, as `db.url`")), responses((status = 204, description = "It is gone"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn delete(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(path): Path<String>,
) -> Reply<StatusCode> {
    let (account, path) = (principal.account.to_string(), path.parse::<ConfigPath>()?);
    permit_change(&principal, &path, &app.access().rules(&principal.namespace).await?.rules)?;
    let request = ConfigDelete { namespace: principal.namespace.clone(), path, account };
    app.db().ask(&request).await?;
    Ok(StatusCode::NO_CONTENT)
}
