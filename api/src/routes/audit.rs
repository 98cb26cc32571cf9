//! The audit log lists changes and refusals.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use faena_domain::Timestamp;
use faena_domain::limits::MAX_PAGE;
use faena_domain::near::nearest;
use faena_protocol::db::AuditList;

use crate::app::App;
use crate::authorize::Authenticated;
use crate::problem::{ErrorCode, Problem, Reply};

/// One JSON document in a line.
const NDJSON: &str = "application/x-ndjson";

/// Reads the query into a request; the names are those of the route.
fn parse(text: &str, request: &mut AuditList) -> Reply<()> {
    const KNOWN: [&str; 5] = ["since", "account", "action", "limit", "cursor"];
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        let invalid = |detail: String| Problem::new(ErrorCode::InvalidQuery, detail);
        match name.as_ref() {
            "since" => {
                let since: Timestamp = value.parse().map_err(|error| invalid(format!("since: {error}")))?;
                request.since = Some(since);
            }
            "account" => request.account = Some(value.into_owned()),
            "action" => request.action = Some(value.into_owned()),
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit));
                request.limit = limit.ok_or_else(|| invalid(format!("limit must be a number from 1 to {MAX_PAGE}")))?;
            }
            "cursor" => {
                let before = value.parse().ok().filter(|before| *before > 0);
                request.before = Some(before.ok_or_else(|| invalid("cursor is that of a Link header".to_owned()))?);
            }
            other => {
                let near = nearest(other, KNOWN).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                let name: String = other.chars().take(80).collect();
                return Err(invalid(format!("unknown parameter {name:?}{near}")));
            }
        }
    }
    Ok(())
}

/// The query of the page after this one.
fn next(request: &AuditList, last: i64) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", &request.limit.to_string()).append_pair("cursor", &last.to_string());
    for (name, value) in [("account", &request.account), ("action", &request.action)] {
        query.extend_pairs(value.iter().map(|value| (name, value)));
    }
    query.extend_pairs(request.since.iter().map(|since| ("since", since.to_string())));
    format!("/audit?{}", query.finish())
}

/// Lines of the namespace's audit, newest first: an array, or with `Accept: application/x-ndjson` one in a line.
#[utoipa::path(get, path = "/audit", tag = "audit", params(("since" = Option<String>, Query, description = "an instant"), ("account" = Option<String>, Query,), ("action" = Option<String>, Query, description = "as `POST /rule`"), ("limit" = Option<u32>, Query, description = "1 to 200"), ("cursor" = Option<i64>, Query,)),
    responses((status = 200, description = "`at`, `account`, `action`, `target`, `address`, `outcome`, `count`; `Link: rel=\"next\"` leads to the next page")))]
pub(crate) async fn list(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Reply<Response> {
    let namespace = principal.namespace.clone();
    let mut request = AuditList { namespace, since: None, account: None, action: None, before: None, limit: MAX_PAGE };
    parse(query.as_deref().unwrap_or_default(), &mut request)?;
    if let Err(error) = app.access().audit.flush_all().await {
        tracing::warn!(%error, "the newest refusals are not in the audit log yet");
    }
    let limit = request.limit as usize;
    let mut lines = app.db().ask(&AuditList { limit: request.limit + 1, ..request.clone() }).await?;
    let is_more = lines.len() > limit;
    lines.truncate(limit);
    let next = lines.last().filter(|_| is_more).map(|line| next(&request, line.number));
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let mut response = if accepts.contains(NDJSON) {
        let text: Result<Vec<String>, _> = lines.iter().map(serde_json::to_string).collect();
        let text = text.map_err(|error| Problem::internal("writing the audit log", &error))?;
        let text = text.iter().map(|line| format!("{line}\n")).collect::<String>();
        ([(header::CONTENT_TYPE, NDJSON)], text).into_response()
    } else {
        Json(lines).into_response()
    };
    if let Some(link) = next.and_then(|next| HeaderValue::from_str(&format!("<{next}>; rel=\"next\"")).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}
