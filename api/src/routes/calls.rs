//! Calls, read.

use std::fmt::Write;
use std::time::Duration;

use axum::Json;
use axum::extract::RawQuery;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use faena_auth::Scope;
use faena_domain::limits::MAX_PAGE;
use faena_domain::near::nearest;
use faena_domain::{CallNum, CallStatus, FunctionName, Namespace};
use faena_protocol::db::CallList;
use faena_protocol::records::CallRecord;
use serde::Serialize;
use serde::ser::SerializeMap;

use super::events;
use crate::app::App;
use crate::authorize::{Authenticated, permit_call_record};
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::view::CallView;
use crate::{actions, preference, trace};

/// Calls by their keys, in the order they were found.
pub(crate) struct Page(pub(crate) Vec<CallRecord>);

impl Serialize for Page {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for call in &self.0 {
            map.serialize_entry(&format!("c{}", call.num), &CallView::listed(call.clone()))?;
        }
        map.end()
    }
}

struct Query {
    limit: u32,
    cursor: Option<CallNum>,
    function: Option<FunctionName>,
    status: Option<CallStatus>,
}

impl Query {
    fn parse(text: &str) -> Reply<Self> {
        const KNOWN: [&str; 4] = ["limit", "cursor", "funcName", "status"];
        let mut query = Self { limit: MAX_PAGE, cursor: None, function: None, status: None };
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            let invalid = |detail: String| Problem::new(ErrorCode::InvalidQuery, detail);
            match name.as_ref() {
                "limit" => {
                    query.limit = value
                        .parse()
                        .ok()
                        .filter(|limit| (1..=MAX_PAGE).contains(limit))
                        .ok_or_else(|| invalid(format!("limit must be a number from 1 to {MAX_PAGE}")))?;
                }
                "cursor" => query.cursor = Some(value.parse().map_err(|error| invalid(format!("cursor: {error}")))?),
                "funcName" => query.function = Some(value.parse()?),
                "status" => {
                    let names = CallStatus::ALL.map(CallStatus::as_str).join(", ");
                    let unknown = || invalid(format!("status must be one of {names}"));
                    query.status = Some(CallStatus::from_name(&value).ok_or_else(unknown)?);
                }
                other => {
                    let near = nearest(other, KNOWN).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                    return Err(invalid(format!(
                        "unknown parameter {:?}{near}",
                        other.chars().take(80).collect::<String>()
                    )));
                }
            }
        }
        Ok(query)
    }

    /// The query of the page after this one.
    fn next(&self, route: &str, last: CallNum) -> String {
        let mut text = format!("{route}?limit={}&cursor={last}", self.limit);
        // Writing into a String does not fail; both values are plain characters.
        if let Some(function) = &self.function {
            let _ = write!(text, "&funcName={function}");
        }
        if let Some(status) = self.status {
            let _ = write!(text, "&status={}", status.as_str());
        }
        text
    }
}

/// Calls, newest first; long params and results are cut and marked.
#[utoipa::path(get, path = "/calls", tag = "calls", params(("limit" = Option<u32>, Query, description = "1 to 200"), ("cursor" = Option<i64>, Query,), ("funcName" = Option<String>, Query,), ("status" = Option<String>, Query,)),
    responses((status = 200, description = "`{\"c1\": {…}}`; `Link: rel=\"next\"` leads to the next page"), (status = 400, description = "What is wrong", body = Problem)))]
pub(crate) async fn list(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    RawQuery(query): RawQuery,
) -> Reply<Response> {
    page(&app, &principal.namespace, ("/calls", query), false).await
}

/// A page of calls, or of dead letters only.
pub(crate) async fn page(
    app: &App,
    namespace: &Namespace,
    (route, query): (&str, Option<String>),
    dead: bool,
) -> Reply<Response> {
    let query = Query::parse(query.as_deref().unwrap_or_default())?;
    let request = CallList {
        namespace: namespace.clone(),
        function: query.function.clone(),
        status: query.status,
        dead,
        unreplayed: false,
        before: query.cursor,
        limit: query.limit + 1,
    };
    let mut calls = app.db().ask(&request).await?;
    let more = calls.len() > query.limit as usize;
    calls.truncate(query.limit as usize);
    let next = calls.last().filter(|_| more).map(|call| query.next(route, call.num));
    let mut response = Json(Page(calls)).into_response();
    if let Some(link) = next.and_then(|next| HeaderValue::from_str(&format!("<{next}>; rel=\"next\"")).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

pub(crate) fn number(text: &str) -> Reply<CallNum> {
    text.parse().map_err(|error| Problem::new(ErrorCode::InvalidCallNumber, error))
}

/// One call. `Prefer: wait=N` waits for its end, `Accept: text/event-stream` follows it there.
#[utoipa::path(get, path = "/call/{callNum}", tag = "calls", params(("callNum" = i64, Path,), ("Prefer" = Option<String>, Header, description = "wait=SECONDS")),
    responses((status = 200, description = "The call", body = CallView), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn get(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(num): Path<String>,
    headers: HeaderMap,
) -> Reply<Response> {
    let (num, namespace) = (number(&num)?, &principal.namespace);
    let call = actions::calls::find(&app, namespace, num).await?;
    permit_call_record(&principal, Scope::Read, &call)?;
    if events::wants_events(&headers) {
        return events::follow(app, namespace.clone(), call);
    }
    let wait = preference::prefer_wait(&headers)?;
    let call = match wait {
        Some(seconds) => actions::calls::wait_for_end(&app, namespace, call, Duration::from_secs(seconds)).await?,
        None => call,
    };
    let (traceparent, last) = (call.traceparent.clone(), call.attempts.last().cloned());
    let mut response = Json(CallView::whole(call, &app.blobs_of(&principal.namespace)).await?).into_response();
    trace::tell(response.headers_mut(), num.0, &traceparent, last.as_ref().map(trace::Timing::from));
    if let Some(applied) = wait.and_then(|seconds| HeaderValue::from_str(&format!("wait={seconds}")).ok()) {
        response.headers_mut().insert("preference-applied", applied);
    }
    Ok(response)
}

/// Cancels a call: one that waits at once, one that runs by ending its instance.
#[utoipa::path(delete, path = "/call/{callNum}", tag = "calls", params(("callNum" = i64, Path,)), responses((status = 200, description = "The call, CANCELLED", body = CallView), (status = 404, description = "There is none", body = Problem), (status = 409, description = "It has ended", body = Problem)))]
pub(crate) async fn cancel(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(num): Path<String>,
) -> Reply<Json<CallView>> {
    let num = number(&num)?;
    if !principal.scopes.include(Scope::Deploy) {
        let call = actions::calls::find(&app, &principal.namespace, num).await?;
        permit_call_record(&principal, Scope::Deploy, &call)?;
    }
    let call = actions::calls::cancel(&app, &principal.namespace, num).await?;
    Ok(Json(CallView::whole(call, &app.blobs_of(&principal.namespace)).await?))
}
