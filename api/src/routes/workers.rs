//! Workers.

use axum::Json;
use axum::extract::State;
use faena_domain::NodeState;
use faena_protocol::node::{EngineInfo, PoolView};
use faena_scheduler::WorkerStatus;
use serde::Serialize;

use crate::app::App;

/// A worker as people see it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkerView {
    /// Its name.
    id: String,
    /// This run of it.
    incarnation: String,
    /// `ready`, `cordoned`, `draining` or `away`.
    status: &'static str,
    /// What it makes instances with, and which layers it goes without.
    #[schema(value_type = Vec<Object>)]
    engines: Vec<EngineInfo>,
    /// Instances that may work at once.
    slots: u32,
    /// Calls that the scheduler has given it.
    busy: usize,
    /// Builds at once.
    build_slots: u32,
    /// Builds now.
    builds: usize,
    /// Memory of its machine.
    memory_bytes: u64,
    /// Its instances: how many there are, work and are frozen, and how many calls found one.
    #[schema(value_type = Object)]
    pool: PoolView,
}

impl From<WorkerStatus> for WorkerView {
    fn from(WorkerStatus { info, state, calls, builds, pool }: WorkerStatus) -> Self {
        Self {
            id: info.owner.worker,
            incarnation: info.owner.incarnation,
            status: match state {
                NodeState::Ready => "ready",
                NodeState::Cordoned => "cordoned",
                NodeState::Draining => "draining",
                NodeState::Stopped | NodeState::Lost => "away",
            },
            engines: info.engines,
            slots: info.slots,
            busy: calls,
            build_slots: info.build_slots,
            builds,
            memory_bytes: info.memory_bytes,
            pool,
        }
    }
}

/// The workers, what they offer and how busy they are.
#[utoipa::path(get, path = "/workers", tag = "operations", responses((status = 200, description = "The workers", body = Vec<WorkerView>)))]
pub(crate) async fn list(State(app): State<App>) -> Json<Vec<WorkerView>> {
    Json(app.scheduler().workers().await.into_iter().map(WorkerView::from).collect())
}
