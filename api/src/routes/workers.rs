//! Workers.

use axum::Json;
use axum::extract::State;

use crate::app::App;
use crate::dispatcher::WorkerView;

/// The workers, what they offer and how busy they are.
#[utoipa::path(get, path = "/workers", tag = "operations", responses((status = 200, description = "The workers", body = Vec<WorkerView>)))]
pub(crate) async fn list(State(app): State<App>) -> Json<Vec<WorkerView>> {
    Json(app.dispatcher().workers().await)
}
