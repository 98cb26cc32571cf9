//! Builds of functions.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use faena_domain::{BuildFailure, FunctionStatus, Version};
use faena_protocol::db::{BuildGet, BuildRetry};
use faena_protocol::records::BuildRecord;
use serde::Serialize;

use crate::app::{App, Caller};
use crate::path::Path;
use crate::problem::{Problem, Reply};

/// A build as people see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BuildView {
    version: Version,
    status: FunctionStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<BuildFailure>,
    log: String,
}

async fn view(app: &App, build: BuildRecord) -> Reply<Json<BuildView>> {
    let log = app.blobs().bytes(&build.log, 4 * faena_domain::build::MAX_LOG).await?;
    let log = String::from_utf8_lossy(&log).into_owned();
    Ok(Json(BuildView { version: build.version, status: build.status, error: build.error, log }))
}

/// The build of a function's newest version: status and log.
#[utoipa::path(get, path = "/function/{name}/build", tag = "functions", params(("name" = String, Path,)), responses((status = 200, description = "Version, status, error and log"), (status = 404, description = "There is no such function", body = Problem)))]
pub(crate) async fn get(State(app): State<App>, Path(name): Path<String>) -> Reply<Json<BuildView>> {
    let function = name.parse()?;
    let build = app.db().ask(&BuildGet { namespace: Caller::local().namespace, function }).await?;
    view(&app, build).await
}

/// Tries a build that failed again.
#[utoipa::path(post, path = "/function/{name}/build", tag = "functions", params(("name" = String, Path,)), responses((status = 202, description = "The build waits for a worker"), (status = 404, description = "There is no such function", body = Problem), (status = 409, description = "It is built already", body = Problem)))]
pub(crate) async fn retry(State(app): State<App>, Path(name): Path<String>) -> Reply<(StatusCode, Json<BuildView>)> {
    let function = name.parse()?;
    let build = app.db().ask(&BuildRetry { namespace: Caller::local().namespace, function }).await?;
    app.dispatcher().poke();
    Ok((StatusCode::ACCEPTED, view(&app, build).await?))
}
