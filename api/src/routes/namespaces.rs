//! Namespaces: what is in one exists for its own accounts alone.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use faena_domain::json::parse_object;
use faena_domain::{Grants, Namespace};
use faena_protocol::db::{NamespaceDelete, NamespaceGet, NamespaceList, NamespacePatch, NamespacePut};
use faena_protocol::records::NamespaceRecord;
use serde::Deserialize;

use super::accounts::MAX_REQUEST;
use crate::access::Audited;
use crate::app::App;
use crate::body;
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};

#[derive(Debug, Deserialize)]
struct NewNamespace {
    name: String,
    #[serde(default)]
    allow: Grants,
}

#[derive(Debug, Deserialize)]
struct Changes {
    allow: Grants,
}

/// Makes a namespace. Its name is a label of host names.
#[utoipa::path(post, path = "/namespace", tag = "namespaces", request_body(content = Object, content_type = "application/json", description = "`name`; optionally `allow`"),
    responses((status = 201, description = "The namespace"), (status = 409, description = "There is one of this name", body = Problem)))]
pub(crate) async fn make(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Reply<(StatusCode, Extension<Audited>, Json<NamespaceRecord>)> {
    let bytes = body::read_json(app.admission(), &headers, body, MAX_REQUEST).await?;
    let NewNamespace { name, allow } = parse_object(&bytes, &["name", "allow"])?;
    let name: Namespace = name.parse()?;
    if !name.is_label() || name.as_str() != name.key() {
        let detail =
            format!("{:?} is no label: namespaces have the characters a-z 0-9 -, and end in no -", name.as_str());
        return Err(Problem::new(ErrorCode::InvalidName, detail));
    }
    let put = app.db().ask(&NamespacePut { name, allow }).await?;
    if !put.created {
        let detail = format!("there is a namespace {} already", put.record.name);
        return Err(Problem::new(ErrorCode::Conflict, detail));
    }
    app.access().refresh().await?;
    let audited = Audited { target: Some(put.record.name.to_string()), ..Audited::default() };
    Ok((StatusCode::CREATED, Extension(audited), Json(put.record)))
}

/// The names of all namespaces.
#[utoipa::path(get, path = "/namespaces", tag = "namespaces", responses((status = 200, description = "Names, sorted", body = Vec<String>)))]
pub(crate) async fn list(State(app): State<App>) -> Reply<Json<Vec<Namespace>>> {
    Ok(Json(app.db().ask(&NamespaceList {}).await?))
}

/// One namespace.
#[utoipa::path(get, path = "/namespace/{namespace}", tag = "namespaces", params(("namespace" = String, Path,)), responses((status = 200, description = "The namespace"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn get(State(app): State<App>, Path(name): Path<String>) -> Reply<Json<NamespaceRecord>> {
    let name = super::accounts::namespace(&name)?;
    Ok(Json(app.db().ask(&NamespaceGet { name }).await?))
}

/// Changes what the runtimes of a namespace may let functions ask for. Runtimes that are there stay as they are.
#[utoipa::path(patch, path = "/namespace/{namespace}", tag = "namespaces", params(("namespace" = String, Path,)), request_body(content = Object, content_type = "application/json", description = "`allow`"), responses((status = 200, description = "The namespace"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn patch(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Reply<Json<NamespaceRecord>> {
    let name = super::accounts::namespace(&name)?;
    let bytes = body::read_json(app.admission(), &headers, body, MAX_REQUEST).await?;
    let Changes { allow } = parse_object(&bytes, &["allow"])?;
    Ok(Json(app.db().ask(&NamespacePatch { name, allow }).await?))
}

/// Forgets a namespace in which nothing is but accounts and rules.
#[utoipa::path(delete, path = "/namespace/{namespace}", tag = "namespaces", params(("namespace" = String, Path,)), responses((status = 204, description = "It is gone"), (status = 404, description = "There is none", body = Problem), (status = 409, description = "Something is in it", body = Problem)))]
pub(crate) async fn delete(State(app): State<App>, Path(name): Path<String>) -> Reply<StatusCode> {
    let name = super::accounts::namespace(&name)?;
    app.db().ask(&NamespaceDelete { name }).await?;
    app.access().refresh().await?;
    Ok(StatusCode::NO_CONTENT)
}
