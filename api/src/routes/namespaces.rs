//! Namespaces: what is in one exists for its own accounts alone.

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use faena_domain::json::{self, parse_object};
use faena_domain::{
    FunctionId, Grants, GrantsChange, MAX_WEIGHT, Namespace, NodeSelector, Quota, QuotaChange, Timestamp,
};
use faena_protocol::db::{NamespaceDelete, NamespaceGet, NamespaceList, NamespacePatch, NamespacePut};
use faena_protocol::records::{NamespaceRecord, StoredUsage};
use serde::{Deserialize, Serialize};

use super::accounts::MAX_REQUEST;
use crate::access::Audited;
use crate::actions;
use crate::app::App;
use crate::body;
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewNamespace {
    name: String,
    #[serde(default, deserialize_with = "json::object")]
    allow: Grants,
    #[serde(default, deserialize_with = "json::object")]
    quota: Quota,
    #[serde(default, deserialize_with = "json::present")]
    weight: Option<u32>,
    #[serde(default, deserialize_with = "json::present")]
    node_selector: Option<NodeSelector>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Changes {
    #[serde(default, deserialize_with = "json::object")]
    allow: GrantsChange,
    #[serde(default, deserialize_with = "json::object")]
    quota: QuotaChange,
    #[serde(default, deserialize_with = "json::present")]
    weight: Option<u32>,
    #[serde(default, deserialize_with = "json::present")]
    node_selector: Option<NodeSelector>,
}

/// The weight of a namespace that does not say one.
const WEIGHT: u32 = 1;

/// # Errors
/// 422 for a weight that is none.
fn check_weight(weight: Option<u32>) -> Reply<Option<u32>> {
    match weight {
        Some(weight) if !(1..=MAX_WEIGHT).contains(&weight) => {
            let detail = format!("weight = {weight} is not within 1 and {MAX_WEIGHT}, which are permitted");
            Err(Problem::new(ErrorCode::LimitExceeded, detail))
        }
        weight => Ok(weight),
    }
}

/// A namespace, and what it uses of its quota.
#[derive(Debug, Serialize)]
pub(crate) struct NamespaceView {
    name: Namespace,
    #[serde(rename = "createdAt")]
    created_at: Timestamp,
    allow: Grants,
    quota: Quota,
    weight: u32,
    #[serde(rename = "nodeSelector", skip_serializing_if = "NodeSelector::is_empty")]
    node_selector: NodeSelector,
    usage: Usage,
}

/// What a namespace uses.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    #[serde(flatten)]
    stored: StoredUsage,
    /// Calls under way that are waited for, as this api has counted them; they are counted where there is a quota.
    concurrent_calls: u32,
    /// Of this minute, counted in the same way.
    calls_per_minute: u32,
}

fn view(app: &App, record: NamespaceRecord) -> NamespaceView {
    let NamespaceRecord { name, created_at, allow, quota, weight, node_selector, usage } = record;
    let access = app.access();
    let usage = Usage {
        stored: usage,
        concurrent_calls: access.calls_under_way(&name),
        calls_per_minute: access.calls_in_minute(&name),
    };
    NamespaceView { name, created_at, allow, quota, weight, node_selector, usage }
}

/// Makes a namespace. Its name is a label of host names.
#[utoipa::path(post, path = "/namespace", tag = "namespaces", request_body(content = Object, content_type = "application/json", description = "`name`; optionally `allow`, `quota`, `weight`, `nodeSelector`"),
    responses((status = 201, description = "The namespace"), (status = 409, description = "There is one of this name", body = Problem)))]
pub(crate) async fn make(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Reply<(StatusCode, Extension<Audited>, Json<NamespaceView>)> {
    let bytes = body::read_json(app.admission(), &headers, body, MAX_REQUEST).await?;
    let known = ["name", "allow", "quota", "weight", "nodeSelector"];
    let NewNamespace { name, allow, quota, weight, node_selector } = parse_object(&bytes, &known)?;
    let weight = check_weight(weight)?.unwrap_or(WEIGHT);
    let name: Namespace = name.parse()?;
    if !name.is_label() || name.as_str() != name.key() {
        let detail =
            format!("{:?} is no label: namespaces have the characters a-z 0-9 -, and end in no -", name.as_str());
        return Err(Problem::new(ErrorCode::InvalidName, detail));
    }
    let put = app
        .db()
        .ask(&NamespacePut { name, allow, quota, weight, node_selector: node_selector.unwrap_or_default() })
        .await?;
    if !put.created {
        let detail = format!("there is a namespace {} already", put.record.name);
        return Err(Problem::new(ErrorCode::Conflict, detail));
    }
    app.access().refresh().await?;
    let audited = Audited { target: Some(put.record.name.to_string()), ..Audited::default() };
    Ok((StatusCode::CREATED, Extension(audited), Json(view(&app, put.record))))
}

/// The names of all namespaces.
#[utoipa::path(get, path = "/namespaces", tag = "namespaces", responses((status = 200, description = "Names, sorted", body = Vec<String>)))]
pub(crate) async fn list(State(app): State<App>) -> Reply<Json<Vec<Namespace>>> {
    Ok(Json(app.db().ask(&NamespaceList {}).await?))
}

/// One namespace.
#[utoipa::path(get, path = "/namespace/{namespace}", tag = "namespaces", params(("namespace" = String, Path,)), responses((status = 200, description = "The namespace"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn get(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Reply<Json<NamespaceView>> {
    super::no_query(query.as_deref())?;
    let name = super::accounts::namespace(&name)?;
    Ok(Json(view(&app, app.db().ask(&NamespaceGet { name }).await?)))
}

/// Changes what the runtimes of a namespace may allow, and its quota; members that are left out stay as they are. Runtimes
/// and functions that exist already are not affected.
#[utoipa::path(patch, path = "/namespace/{namespace}", tag = "namespaces", params(("namespace" = String, Path,)), request_body(content = Object, content_type = "application/json", description = "`allow`, `quota`, `weight`, `nodeSelector`"), responses((status = 200, description = "The namespace"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn patch(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Reply<Json<NamespaceView>> {
    super::no_query(query.as_deref())?;
    let name = super::accounts::namespace(&name)?;
    let bytes = body::read_json(app.admission(), &headers, body, MAX_REQUEST).await?;
    let known = ["allow", "quota", "weight", "nodeSelector"];
    let Changes { allow, quota, weight, node_selector } = parse_object(&bytes, &known)?;
    let weight = check_weight(weight)?;
    let record = app.db().ask(&NamespacePatch { name, allow, quota, weight, node_selector }).await?;
    app.access().refresh().await?;
    Ok(Json(view(&app, record)))
}

/// Deletes a namespace that has only accounts and rules, or with `?force=true` also one with functions, runtimes and configuration.
#[utoipa::path(delete, path = "/namespace/{namespace}", tag = "namespaces", params(("namespace" = String, Path,), ("force" = Option<bool>, Query, description = "also where something is in it")), responses((status = 204, description = "It is gone"), (status = 404, description = "There is none", body = Problem), (status = 409, description = "Something is in it", body = Problem)))]
pub(crate) async fn delete(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Reply<StatusCode> {
    let name = super::accounts::namespace(&name)?;
    let force = super::flag(query.as_deref(), "force")?;
    for function in app.db().ask(&NamespaceDelete { name: name.clone(), force }).await? {
        app.scheduler().forget(FunctionId::new(&name, &function)).await;
    }
    app.access().refresh().await?;
    if force {
        actions::calls::cancel_running(&app, &name).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}
