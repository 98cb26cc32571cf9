//! Functions and their versions.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use faena_domain::units::Millis;
use faena_domain::{FunctionId, FunctionName, Version};
use faena_protocol::db::{FunctionDelete, FunctionGet, FunctionList, VersionList};
use faena_protocol::records::{FunctionRecord, VersionRecord};
use faena_scheduler::statistics::LastHour;
use serde::Serialize;

use crate::app::App;
use crate::authorize::Authenticated;
use crate::path::Path;
use crate::problem::{Problem, Reply};

/// A function: its newest version's members beside its own.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FunctionView {
    name: FunctionName,
    /// The version that calls run.
    current: Option<Version>,
    /// What signs its callbacks; shown once, when the function is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_secret: Option<String>,
    #[serde(flatten)]
    newest: VersionRecord,
    /// What this process has seen of its calls in the last hour; with one function alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_hour: Option<LastHourView>,
}

/// The calls of an hour.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LastHourView {
    calls: u64,
    errors: u64,
    p50_ms: Option<Millis>,
    p99_ms: Option<Millis>,
    /// The part of the calls whose instance was made for them, from 0 to 1.
    cold_share: Option<f64>,
}

impl From<LastHour> for LastHourView {
    fn from(LastHour { calls, errors, cold, p50, p99 }: LastHour) -> Self {
        // Rounded to thousandths, which is what there is to know.
        let cold_share = (calls > 0).then(|| (cold as f64 / calls as f64 * 1000.0).round() / 1000.0);
        Self { calls, errors, p50_ms: p50.map(Millis::from), p99_ms: p99.map(Millis::from), cold_share }
    }
}

impl FunctionView {
    /// A function as its upload is answered.
    pub(crate) fn registered(function: FunctionRecord, callback_secret: Option<String>) -> Self {
        Self { callback_secret, ..function.into() }
    }
}

impl From<FunctionRecord> for FunctionView {
    fn from(function: FunctionRecord) -> Self {
        Self {
            name: function.name,
            current: function.current,
            callback_secret: None,
            newest: function.newest,
            last_hour: None,
        }
    }
}

/// The names of all functions.
#[utoipa::path(get, path = "/functions", tag = "functions", responses((status = 200, description = "Names, sorted", body = Vec<String>)))]
pub(crate) async fn list(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
) -> Reply<Json<Vec<FunctionName>>> {
    Ok(Json(app.db().ask(&FunctionList { namespace: principal.namespace.clone() }).await?))
}

/// One function, with the status of its newest version.
#[utoipa::path(get, path = "/function/{name}", tag = "functions", params(("name" = String, Path,)), responses((status = 200, description = "The function: `status` is its newest version's, `current` the version that calls run"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn get(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(name): Path<String>,
) -> Reply<Json<FunctionView>> {
    let name = name.parse()?;
    let function = app.db().ask(&FunctionGet { namespace: principal.namespace.clone(), name }).await?;
    let last_hour = app.scheduler().statistics().last_hour(&FunctionId::new(&principal.namespace, &function.name));
    Ok(Json(FunctionView { last_hour: Some(last_hour.into()), ..function.into() }))
}

/// Forgets a function; its ended calls stay on record, its waiting ones are cancelled.
#[utoipa::path(delete, path = "/function/{name}", tag = "functions", params(("name" = String, Path,)), responses((status = 204, description = "It is gone"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn delete(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(name): Path<String>,
) -> Reply<StatusCode> {
    let (namespace, name): (_, FunctionName) = (principal.namespace.clone(), name.parse()?);
    app.db().ask(&FunctionDelete { namespace: namespace.clone(), name: name.clone() }).await?;
    let function = FunctionId { namespace, name };
    app.scheduler().statistics().forget(&function);
    app.scheduler().forget(function).await;
    Ok(StatusCode::NO_CONTENT)
}

/// All versions of a function, oldest first.
#[utoipa::path(get, path = "/function/{name}/versions", tag = "functions", params(("name" = String, Path,)), responses((status = 200, description = "An array, one element a version"), (status = 404, description = "There is no such function", body = Problem)))]
pub(crate) async fn versions(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(name): Path<String>,
) -> Reply<Json<Vec<VersionRecord>>> {
    let function = name.parse()?;
    Ok(Json(app.db().ask(&VersionList { namespace: principal.namespace.clone(), function }).await?))
}
