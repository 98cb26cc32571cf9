//! For operators of the platform.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use faena_domain::NodeState;
use faena_protocol::db::{Health, Ping};
use serde::Serialize;

use crate::app::App;

/// How long db may take to count as there.
const PATIENCE: Duration = Duration::from_secs(2);

/// What readiness consists of.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Readiness {
    ready: bool,
    /// Whether the database answers.
    database: bool,
    /// Workers that take work.
    workers: usize,
    /// Whether the disk is nearly full, and new work refused.
    disk_low: bool,
    /// How far wall time was set since the database began, where that is more than a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_step_ms: Option<i64>,
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "operations", responses((status = 200, description = "It lives", content_type = "text/plain")))]
pub(crate) async fn healthy() -> &'static str {
    "ok\n"
}

/// Whether calls can run: the database answers and a worker takes work.
#[utoipa::path(get, path = "/readyz", tag = "operations", responses((status = 200, description = "Ready", body = Readiness), (status = 503, description = "Not ready, and what is missing", body = Readiness)))]
pub(crate) async fn ready(State(app): State<App>) -> (StatusCode, Json<Readiness>) {
    let health = app.db().ask_within(&Ping {}, PATIENCE).await;
    let database = health.is_ok();
    let Health { clock_step_ms, disk_low } = health.unwrap_or_default();
    let workers = app.scheduler().workers().await.iter().filter(|worker| worker.state == NodeState::Ready).count();
    let ready = database && workers > 0 && !app.draining().is_cancelled();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, database, workers, disk_low, clock_step_ms }))
}

/// What the platform counts, in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses((status = 200, description = "Metrics", content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8", body = String)))]
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.registry().encode()).into_response()
}
