//! Identity providers, by which people sign in.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use faena_auth::{MAX_MAPPINGS, Mapping};
use faena_domain::config::SecretText;
use faena_domain::json::{parse_object, present};
use faena_domain::{ProviderName, Timestamp};
use faena_protocol::db::{ProviderDelete, ProviderGet, ProviderList};
use faena_protocol::records::ProviderRecord;
use faena_scheduler::unix_ms;
use serde::Deserialize;

use super::accounts::MAX_REQUEST;
use crate::access::Audited;
use crate::app::App;
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::{actions, body};

/// The longest text of a provider, but for its authorities, in bytes.
const MAX_TEXT: usize = 1000;
/// The most scopes that are asked for.
const MAX_SCOPES: usize = 32;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewProvider {
    name: String,
    issuer: String,
    client_id: String,
    #[serde(default, deserialize_with = "present")]
    client_secret: Option<String>,
    #[serde(default)]
    scopes: Vec<String>,
    mappings: Vec<Mapping>,
    #[serde(default, deserialize_with = "present")]
    ca: Option<String>,
}

impl NewProvider {
    fn check(&self) -> Reply<()> {
        let invalid = |detail: String| Err(Problem::new(ErrorCode::InvalidProvider, detail));
        let scopes = self.scopes.iter().map(String::as_str).map(|scope| ("scopes", scope));
        let mappings = self.mappings.iter();
        let mapped = mappings.flat_map(|mapping| [("claim", mapping.claim.as_str()), ("value", &mapping.value)]);
        let texts = [("issuer", self.issuer.as_str()), ("clientId", &self.client_id)].into_iter();
        let secret = self.client_secret.iter().map(|secret| ("clientSecret", secret.as_str()));
        if let Some((field, _)) = texts
            .chain(secret)
            .chain(scopes)
            .chain(mapped)
            .find(|(_, text)| text.is_empty() || text.len() > MAX_TEXT || text.contains(char::is_control))
        {
            return invalid(format!("`{field}` has 1 to {MAX_TEXT} bytes, and no control characters"));
        }
        if self.scopes.len() > MAX_SCOPES || self.scopes.iter().any(|scope| scope.contains(' ')) {
            return invalid(format!("`scopes` is a list of at most {MAX_SCOPES}, each without spaces"));
        }
        if self.mappings.len() > MAX_MAPPINGS {
            return invalid(format!("{} mappings are more than {MAX_MAPPINGS}", self.mappings.len()));
        }
        Ok(())
    }
}

/// Adds an identity provider, or replaces the one of its name.
#[utoipa::path(post, path = "/provider", tag = "providers", request_body(content = Object, content_type = "application/json", description = "`name`, `issuer`, `clientId`, `mappings`; optionally `clientSecret`, `scopes`, `ca`"),
    responses((status = 201, description = "The new provider, without its secret"), (status = 200, description = "The provider, replaced"), (status = 422, description = "It cannot be used", body = Problem)))]
pub(crate) async fn put(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Reply<(StatusCode, Extension<Audited>, Json<ProviderRecord>)> {
    let bytes = body::read_json(app.admission(), &headers, body, MAX_REQUEST).await?;
    let known = ["name", "issuer", "clientId", "clientSecret", "scopes", "mappings", "ca"];
    let asked: NewProvider = parse_object(&bytes, &known)?;
    asked.check()?;
    let client_secret = asked.client_secret.map(SecretText);
    let record = ProviderRecord {
        name: asked.name.parse()?,
        issuer: asked.issuer,
        client_id: asked.client_id,
        scopes: asked.scopes,
        mappings: asked.mappings,
        ca: asked.ca,
        created_at: Timestamp(unix_ms()),
    };
    let put = actions::providers::put(&app, record, client_secret).await?;
    let status = if put.created { StatusCode::CREATED } else { StatusCode::OK };
    let audited = Audited { target: Some(put.record.name.to_string()), ..Audited::default() };
    Ok((status, Extension(audited), Json(put.record)))
}

/// The identity providers, by name.
#[utoipa::path(get, path = "/providers", tag = "providers", responses((status = 200, description = "The providers, without their secrets")))]
pub(crate) async fn list(State(app): State<App>) -> Reply<Json<Vec<ProviderRecord>>> {
    Ok(Json(app.db().ask(&ProviderList {}).await?))
}

/// One identity provider.
#[utoipa::path(get, path = "/provider/{provider}", tag = "providers", params(("provider" = String, Path,)), responses((status = 200, description = "The provider, without its secret"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn get(State(app): State<App>, Path(name): Path<String>) -> Reply<Json<ProviderRecord>> {
    let name: ProviderName = name.parse()?;
    Ok(Json(app.db().ask(&ProviderGet { name }).await?.provider))
}

/// Forgets an identity provider. The sessions and keys of who has signed in with it end.
#[utoipa::path(delete, path = "/provider/{provider}", tag = "providers", params(("provider" = String, Path,)), responses((status = 204, description = "It is gone"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn delete(State(app): State<App>, Path(name): Path<String>) -> Reply<StatusCode> {
    let name: ProviderName = name.parse()?;
    app.db().ask(&ProviderDelete { name }).await?;
    app.access().refresh().await?;
    Ok(StatusCode::NO_CONTENT)
}
