//! Nodes: the tokens that they join by, how they stand, and what an administrator says of them.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use faena_domain::json::{parse_object, present};
use faena_domain::{Labels, NodeName, NodeState, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{Cordon, ImageList, NodeChange, NodeDelete, Resource};
use faena_protocol::node::{EngineInfo, PoolView};
use faena_protocol::records::{ImageRecord, NodeRecord};
use faena_scheduler::{WorkerStatus, unix_ms};
use serde::{Deserialize, Serialize};

use super::accounts::MAX_REQUEST;
use crate::access::Audited;
use crate::app::App;
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::{actions, body};

/// How long a token is taken that does not say, in seconds; and the most.
const TTL_SECONDS: u64 = 3600;
const MAX_TTL_SECONDS: u64 = 30 * 24 * 3600;
/// Why a node takes no work of a function whose code it does not have.
const DISK_LOW: &str = "its disk has less than disk_reserve left, and it takes what no other node can take alone";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenRequest {
    #[serde(default, deserialize_with = "present")]
    labels: Option<Labels>,
    #[serde(default, deserialize_with = "present")]
    ttl_seconds: Option<u64>,
}

/// A token, shown this once.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenView {
    /// What the new machine joins by: for one machine.
    token: String,
    /// Until when it is taken.
    #[schema(value_type = String)]
    expires_at: Timestamp,
    /// What to run there.
    command: String,
}

/// A node as people see it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeView {
    #[schema(value_type = String)]
    name: NodeName,
    /// READY, CORDONED, DRAINING, STOPPED or LOST.
    #[schema(value_type = String)]
    state: NodeState,
    /// Why it takes no work, where the platform itself decided that.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[schema(value_type = Object)]
    labels: Labels,
    /// When it was first seen.
    #[schema(value_type = String)]
    joined_at: Timestamp,
    /// When it was heard last.
    #[schema(value_type = String)]
    last_heartbeat: Timestamp,
    /// When its certificate ends; none of a worker on the platform's own machine.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_ends_at: Option<Timestamp>,
    /// What its worker says of itself, while it is connected.
    #[serde(flatten)]
    worker: Option<ConnectedView>,
}

/// What a connected worker says of itself.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConnectedView {
    /// The version of its program.
    version: String,
    /// This run of it.
    incarnation: String,
    #[schema(value_type = Vec<Object>)]
    engines: Vec<EngineInfo>,
    slots: SlotsView,
    /// Calls that the scheduler has given it, and builds.
    calls: usize,
    builds: usize,
    memory_bytes: u64,
    /// Images of the platform that one of its engines has, by name; those without a name are among its engines' alone.
    images: Vec<String>,
    #[schema(value_type = Object)]
    pool: PoolView,
}

/// Slots of a node.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct SlotsView {
    total: u32,
    used: u64,
    free: u64,
}

fn connected(status: WorkerStatus, images: &[ImageRecord]) -> ConnectedView {
    let WorkerStatus { info, calls, builds, pool, .. } = status;
    let used = pool.working.max(calls as u64);
    let is_there = |image: &&ImageRecord| info.engines.iter().any(|engine| engine.images.contains(&image.content.key));
    ConnectedView {
        images: images.iter().filter(is_there).map(|image| image.name.to_string()).collect(),
        version: info.version,
        incarnation: info.owner.incarnation,
        engines: info.engines,
        slots: SlotsView { total: info.slots, used, free: u64::from(info.slots).saturating_sub(used) },
        calls,
        builds,
        memory_bytes: info.memory_bytes,
        pool,
    }
}

fn view(record: &NodeRecord, status: Option<WorkerStatus>, images: &[ImageRecord]) -> NodeView {
    let status = status.filter(|status| status.state != NodeState::Lost);
    let is_disk_low = status.as_ref().is_some_and(|status| status.pool.disk_low);
    let state = match &status {
        // What db says is newer than what the scheduler has taken over.
        Some(status) if status.state == NodeState::Draining || record.is_draining => NodeState::Draining,
        Some(_) if record.is_cordoned => NodeState::Cordoned,
        Some(_) => NodeState::Ready,
        None if record.is_stopped => NodeState::Stopped,
        None => NodeState::Lost,
    };
    NodeView {
        name: record.name.clone(),
        state,
        reason: record.cordon_reason.clone().or_else(|| is_disk_low.then(|| DISK_LOW.to_owned())),
        labels: record.labels.clone(),
        joined_at: record.joined_at,
        last_heartbeat: if status.is_some() { Timestamp(unix_ms()) } else { record.seen_at },
        certificate_ends_at: record.certificate.as_ref().map(|certificate| certificate.ends_at),
        worker: status.map(|status| connected(status, images)),
    }
}

async fn views(app: &App) -> Reply<Vec<NodeView>> {
    let known = app.nodes().directory.refresh().await?;
    let workers = app.scheduler().workers().await;
    let mut workers: BTreeMap<NodeName, WorkerStatus> =
        workers.into_iter().filter_map(|worker| Some((worker.info.owner.worker.parse().ok()?, worker))).collect();
    let images = app.db().ask(&ImageList {}).await?;
    Ok(known.iter().map(|node| view(node, workers.remove(&node.name), &images)).collect())
}

async fn one(app: &App, name: &NodeName) -> Reply<NodeView> {
    let unknown = || DbError::NotFound { what: Resource::Node, name: name.to_string() };
    Ok(views(app).await?.into_iter().find(|node| node.name == *name).ok_or_else(unknown)?)
}

/// Changes what is said of a node: whether it takes work, whether it drains, its labels.
async fn change(
    app: &App,
    name: &str,
    (cordon, drain): (Option<bool>, Option<bool>),
    labels: Option<Labels>,
) -> Reply<Json<NodeView>> {
    let name: NodeName = name.parse()?;
    let cordon = cordon.map(|is_on| Cordon { is_on, reason: None });
    app.db().ask(&NodeChange { name: name.clone(), cordon, drain, labels }).await?;
    Ok(Json(one(app, &name).await?))
}

/// Makes a token for one machine that is to become a node.
#[utoipa::path(post, path = "/node/token", tag = "nodes", request_body(content = Object, content_type = "application/json", description = "optionally `labels`, `ttlSeconds`"),
    responses((status = 201, description = "The token, shown this once", body = TokenView), (status = 409, description = "The platform serves no nodes of other machines", body = Problem)))]
pub(crate) async fn make_token(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Reply<(StatusCode, Extension<Audited>, Json<TokenView>)> {
    let bytes = body::read_json(app.admission(), &headers, body, MAX_REQUEST).await?;
    let TokenRequest { labels, ttl_seconds } = parse_object(&bytes, &["labels", "ttlSeconds"])?;
    let ttl = ttl_seconds.unwrap_or(TTL_SECONDS);
    if !(1..=MAX_TTL_SECONDS).contains(&ttl) {
        let detail = format!("ttlSeconds = {ttl} is not within 1 and {MAX_TTL_SECONDS}, which are permitted");
        return Err(Problem::new(ErrorCode::LimitExceeded, detail));
    }
    let made = actions::nodes::make_token(&app, labels.unwrap_or_default(), ttl).await?;
    let audited = Audited { target: Some(made.id), ..Audited::default() };
    let (token, expires_at, command) = (made.token, made.expires_at, made.command);
    Ok((StatusCode::CREATED, Extension(audited), Json(TokenView { token, expires_at, command })))
}

/// All nodes and how they stand.
#[utoipa::path(get, path = "/nodes", tag = "nodes", responses((status = 200, description = "The nodes, by name", body = Vec<NodeView>)))]
pub(crate) async fn list(State(app): State<App>) -> Reply<Json<Vec<NodeView>>> {
    Ok(Json(views(&app).await?))
}

/// One node.
#[utoipa::path(get, path = "/node/{node}", tag = "nodes", params(("node" = String, Path,)), responses((status = 200, description = "The node", body = NodeView), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn get(State(app): State<App>, Path(name): Path<String>) -> Reply<Json<NodeView>> {
    Ok(Json(one(&app, &name.parse()?).await?))
}

#[derive(Debug, Deserialize)]
struct Changes {
    labels: Labels,
}

/// Replaces the labels of a node.
#[utoipa::path(patch, path = "/node/{node}", tag = "nodes", params(("node" = String, Path,)), request_body(content = Object, content_type = "application/json", description = "`labels`"), responses((status = 200, description = "The node", body = NodeView), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn patch(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Reply<Json<NodeView>> {
    let bytes = body::read_json(app.admission(), &headers, body, MAX_REQUEST).await?;
    let Changes { labels } = parse_object(&bytes, &["labels"])?;
    change(&app, &name, (None, None), Some(labels)).await
}

/// Gives a node no new work. What it has goes on.
#[utoipa::path(post, path = "/node/{node}/cordon", tag = "nodes", params(("node" = String, Path,)), responses((status = 200, description = "The node", body = NodeView), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn cordon(State(app): State<App>, Path(name): Path<String>) -> Reply<Json<NodeView>> {
    change(&app, &name, (Some(true), None), None).await
}

/// Gives a node work again.
#[utoipa::path(post, path = "/node/{node}/uncordon", tag = "nodes", params(("node" = String, Path,)), responses((status = 200, description = "The node", body = NodeView), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn uncordon(State(app): State<App>, Path(name): Path<String>) -> Reply<Json<NodeView>> {
    change(&app, &name, (Some(false), Some(false)), None).await
}

/// Has a node finish what it has and stop. A worker in the platform's own process goes on without work.
#[utoipa::path(post, path = "/node/{node}/drain", tag = "nodes", params(("node" = String, Path,)), responses((status = 200, description = "The node", body = NodeView), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn drain(State(app): State<App>, Path(name): Path<String>) -> Reply<Json<NodeView>> {
    change(&app, &name, (None, Some(true)), None).await
}

/// Removes a node: its certificate is taken no longer, and it is cut off. Calls that it runs are redelivered when their leases
/// have run out.
#[utoipa::path(delete, path = "/node/{node}", tag = "nodes", params(("node" = String, Path,)), responses((status = 204, description = "It is gone"), (status = 404, description = "There is none", body = Problem), (status = 409, description = "Its worker runs on the platform's own machine", body = Problem)))]
pub(crate) async fn delete(State(app): State<App>, Path(name): Path<String>) -> Reply<StatusCode> {
    let name: NodeName = name.parse()?;
    let node = one(&app, &name).await?;
    if node.certificate_ends_at.is_none() && node.worker.is_some() {
        let detail = format!("the worker of {name} runs on the platform's own machine; stop it, or cordon the node");
        return Err(Problem::new(ErrorCode::Conflict, detail));
    }
    app.db().ask(&NodeDelete { name }).await?;
    app.nodes().directory.refresh().await?;
    Ok(StatusCode::NO_CONTENT)
}
