//! Builds of functions.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use faena_domain::{BuildFailure, FunctionId, FunctionName, FunctionStatus, Namespace, Version, log};
use faena_protocol::db::{BuildGet, BuildRetry};
use faena_protocol::node::LogOf;
use faena_protocol::records::{BuildRecord, BuildRef};
use serde::Serialize;

use super::events::wants_events;
use super::logs::follow_build;
use crate::app::App;
use crate::authorize::Authenticated;
use crate::logs::{self, LineView};
use crate::path::Path;
use crate::problem::{Problem, Reply};

/// A build as people see it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BuildView {
    /// The version that is built.
    #[schema(value_type = i64)]
    version: Version,
    /// PENDING, BUILDING, READY or ERROR.
    #[schema(value_type = String)]
    status: FunctionStatus,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    error: Option<BuildFailure>,
    /// What its command wrote.
    log: String,
}

async fn view(app: &App, of: BuildRef, build: BuildRecord) -> Reply<Json<BuildView>> {
    let log = match build.status {
        FunctionStatus::Building => logs::live(app, LogOf::Build(of)).await.unwrap_or_default(),
        _ => logs::stored(app, &of.namespace, &build.log).await?,
    };
    let log = log::plain(&log);
    Ok(Json(BuildView { version: build.version, status: build.status, error: build.error, log }))
}

fn reference(namespace: Namespace, function: FunctionName, build: &BuildRecord) -> BuildRef {
    BuildRef { namespace, function, version: build.version }
}

/// The build of a function's newest version: status and log, as far as it goes while it is built. `Accept:
/// text/event-stream` follows the log.
#[utoipa::path(get, path = "/function/{name}/build", tag = "functions", params(("name" = String, Path,)), responses((status = 200, description = "Version, status, error and log; or an event `line` for each line of the log and then `end`", content((BuildView = "application/json"), (LineView = "text/event-stream"))), (status = 404, description = "There is no such function", body = Problem)))]
pub(crate) async fn get(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Reply<Response> {
    let (namespace, function): (_, FunctionName) = (principal.namespace.clone(), name.parse()?);
    let request = BuildGet { namespace: namespace.clone(), function: function.clone() };
    let build = app.db().ask(&request).await?;
    let of = reference(namespace, function, &build);
    if wants_events(&headers) {
        let place = app.follow(&of.namespace, &of.function)?;
        return Ok(follow_build(app, of, place));
    }
    Ok(view(&app, of, build).await?.into_response())
}

/// Tries a build that failed again.
#[utoipa::path(post, path = "/function/{name}/build", tag = "functions", params(("name" = String, Path,)), responses((status = 202, description = "The build waits for a worker", body = BuildView), (status = 404, description = "There is no such function", body = Problem), (status = 409, description = "It is built already", body = Problem)))]
pub(crate) async fn retry(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(name): Path<String>,
) -> Reply<(StatusCode, Json<BuildView>)> {
    let (namespace, function): (_, FunctionName) = (principal.namespace.clone(), name.parse()?);
    let request = BuildRetry { namespace: namespace.clone(), function: function.clone() };
    let build = app.db().ask(&request).await?;
    app.scheduler().poke(FunctionId::new(&namespace, &function));
    Ok((StatusCode::ACCEPTED, view(&app, reference(namespace, function, &build), build).await?))
}
