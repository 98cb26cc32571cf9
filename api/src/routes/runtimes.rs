//! Runtimes.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use faena_auth::{Requirement, Scope};
use faena_domain::name::InvalidName;
use faena_domain::runtime::InvalidRuntime;
use faena_domain::{Registrar, RuntimeName, RuntimeSpec};
use faena_protocol::db::{ImageGet, NamespaceGet, RuntimeDelete, RuntimeGet, RuntimeList, RuntimePut};
use faena_protocol::node::{Question, Reply as WorkerReply};
use faena_protocol::records::RuntimeRecord;
use serde::Serialize;

use crate::app::App;
use crate::authorize::{Authenticated, permit_named};
use crate::body;
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};

/// The largest body: the commands, the variables and room for white space.
const MAX_RUNTIME: u64 = 64 * 1024;

/// How long nodes may take to say whether they have an image.
const PATIENCE: Duration = Duration::from_secs(1);

/// A runtime as its registration is answered.
#[derive(Debug, Serialize)]
pub(crate) struct Registered {
    #[serde(flatten)]
    runtime: RuntimeRecord,
    /// What is likely to go wrong with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl From<InvalidName> for Problem {
    fn from(error: InvalidName) -> Self {
        Self::new(ErrorCode::InvalidName, error)
    }
}

impl From<InvalidRuntime> for Problem {
    fn from(error: InvalidRuntime) -> Self {
        match error {
            InvalidRuntime::Json(error) => error.into(),
            InvalidRuntime::Name(error) => error.into(),
            InvalidRuntime::NameNeeded(_) => {
                Self::new(ErrorCode::NameNeeded, error).hint("give the runtime a `name` of its own")
            }
            InvalidRuntime::Image(_) => Self::new(ErrorCode::InvalidImage, error),
            InvalidRuntime::Path { .. } => Self::new(ErrorCode::InvalidPath, error),
            InvalidRuntime::Command { .. } => Self::new(ErrorCode::InvalidCommand, error),
            InvalidRuntime::Engine { .. } => Self::new(ErrorCode::UnknownEngine, error),
            InvalidRuntime::Env(_) => Self::new(ErrorCode::InvalidEnv, error),
            InvalidRuntime::NotGranted(_) => Self::new(ErrorCode::Forbidden, error).hint(
                "administrators set `allow`, within what the namespace allows; `allow.networks` needs an administrator of the platform",
            ),
            InvalidRuntime::Limit(_) | InvalidRuntime::Networks(_) | InvalidRuntime::Scopes(_) => {
                Self::new(ErrorCode::LimitExceeded, error)
            }
        }
    }
}

/// Registers a runtime; the same object again changes nothing, another one is a new revision for later uploads.
#[utoipa::path(post, path = "/registerRuntime", tag = "runtimes", request_body(content = Object, content_type = "application/json", description = "`image`, `path`, `dependencies` and `run`; optionally `name`, `engine`, `limits`, `env`, `allow`, `preload`, `nodeSelector`"),
    responses((status = 201, description = "The new runtime; `warnings` where no node has its image"), (status = 200, description = "The runtime, replaced or the same"), (status = 400, description = "What is wrong", body = Problem)))]
pub(crate) async fn register(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    headers: HeaderMap,
    body: Body,
) -> Reply<(StatusCode, Json<Registered>)> {
    let bytes = body::read_json(app.admission(), &headers, body, MAX_RUNTIME).await?;
    let grants = app.db().ask(&NamespaceGet { name: principal.namespace.clone() }).await?.allow;
    let registrar =
        Registrar { grants, is_admin: principal.scopes.include(Scope::Admin), is_root: principal.is_root() };
    let spec = RuntimeSpec::parse_of(&registrar, &bytes, app.maximum())?;
    let deploying = (Requirement::Scope(Scope::Deploy), "runtime");
    permit_named(app.access(), &principal, deploying, spec.name.as_str()).await?;
    let warnings = warnings(&app, &spec).await;
    let put = app.db().ask(&RuntimePut { namespace: principal.namespace.clone(), spec }).await?;
    let status = if put.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(Registered { runtime: put.record, warnings })))
}

/// What is likely to go wrong with a runtime at its first build. No node is waited for that does not reply.
async fn warnings(app: &App, spec: &RuntimeSpec) -> Vec<String> {
    if app.db().ask(&ImageGet { name: spec.image.clone() }).await.is_ok() {
        return Vec::new();
    }
    let mut replies = app.scheduler().ask(Question::Image(spec.image.clone(), spec.engine)).await;
    let (mut reasons, mut is_there) = (BTreeSet::new(), false);
    let look = async {
        while let Some(reply) = replies.recv().await {
            match reply {
                WorkerReply::Image(Ok(())) => is_there = true,
                WorkerReply::Image(Err(reason)) => drop(reasons.insert(reason)),
                WorkerReply::Log(_) => {}
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, look).await;
    if is_there || reasons.is_empty() {
        return Vec::new();
    }
    let reasons = reasons.into_iter().collect::<Vec<_>>().join("; ");
    let warning = format!(
        "neither the platform nor a node has the image now, so builds fail unless Docker can pull it: {reasons}"
    );
    vec![warning]
}

/// The names of all runtimes.
#[utoipa::path(get, path = "/runtimes", tag = "runtimes", responses((status = 200, description = "Names, sorted", body = Vec<String>)))]
pub(crate) async fn list(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
) -> Reply<Json<Vec<RuntimeName>>> {
    Ok(Json(app.db().ask(&RuntimeList { namespace: principal.namespace.clone() }).await?))
}

/// One runtime.
#[utoipa::path(get, path = "/runtime/{name}", tag = "runtimes", params(("name" = String, Path,)), responses((status = 200, description = "The runtime and its revision"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn get(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(name): Path<String>,
) -> Reply<Json<RuntimeRecord>> {
    let name = name.parse()?;
    Ok(Json(app.db().ask(&RuntimeGet { namespace: principal.namespace.clone(), name }).await?))
}

/// Forgets a runtime that no function uses.
#[utoipa::path(delete, path = "/runtime/{name}", tag = "runtimes", params(("name" = String, Path,)), responses((status = 204, description = "It is gone"), (status = 404, description = "There is none", body = Problem), (status = 409, description = "A function uses it", body = Problem)))]
pub(crate) async fn delete(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(name): Path<String>,
) -> Reply<StatusCode> {
    let name = name.parse()?;
    app.db().ask(&RuntimeDelete { namespace: principal.namespace.clone(), name }).await?;
    Ok(StatusCode::NO_CONTENT)
}
