//! Invocations by JSON: `POST /invokeFunction`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use faena_domain::json::parse_object;
use faena_domain::limits::{Limits, MAX_BODY};
use faena_domain::payload::MAX_INLINE;
use faena_domain::plan::CallTerms;
use faena_domain::queue::DEFAULT_AGE_MS;
use faena_domain::retry::MAX_RETRIES;
use faena_domain::{CallNum, FunctionName, Namespace, Payload, Timestamp, Version};
use faena_protocol::direct::HttpRequest;
use faena_protocol::records::{CallRecord, CallSpec};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::asked_request;
use crate::app::App;
use crate::authorize::Authenticated;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::view::CallView;
use crate::{actions, authorize, body, callbacks, idempotency, preference, trace};

/// The longest age that a client may ask for: thirty days.
const MAX_AGE_MS: u64 = 30 * 24 * 3600 * 1000;
/// The highest priority, and with a minus the lowest.
const MAX_PRIORITY: i32 = 100;

const FIELDS: [&str; 10] =
    ["funcName", "params", "request", "version", "timeoutMs", "retries", "maxAgeMs", "runAt", "priority", "callback"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Invocation {
    func_name: String,
    params: Box<RawValue>,
    request: Option<Box<RawValue>>,
    version: Option<i64>,
    timeout_ms: Option<u64>,
    retries: Option<u32>,
    max_age_ms: Option<u64>,
    run_at: Option<String>,
    priority: Option<i32>,
    callback: Option<String>,
}

impl Invocation {
    fn parse(bytes: &[u8], maximum: &Limits) -> Reply<Self> {
        let invocation: Self = parse_object(bytes, &FIELDS)?;
        check_timeout(invocation.timeout_ms, maximum)?;
        within("retries", invocation.retries.map(i64::from), 0, i64::from(MAX_RETRIES))?;
        within("maxAgeMs", invocation.max_age_ms.map(clamped), 1, clamped(MAX_AGE_MS))?;
        within("priority", invocation.priority.map(i64::from), -i64::from(MAX_PRIORITY), i64::from(MAX_PRIORITY))?;
        Ok(invocation)
    }

    fn run_at(&self) -> Reply<Option<Timestamp>> {
        let parse = |text: &String| {
            text.parse().map_err(|error| Problem::new(ErrorCode::InvalidInstant, format!("runAt: {error}")))
        };
        self.run_at.as_ref().map(parse).transpose()
    }

    fn request(&self) -> Reply<Option<Arc<HttpRequest>>> {
        self.request.as_deref().map(|asked| asked_request::parse(asked, &self.params)).transpose()
    }

    /// A call as the body asks for it, without what has to be read, stored or judged first.
    fn spec(&self, num: CallNum, (namespace, function): (Namespace, FunctionName), is_waited: bool) -> CallSpec {
        CallSpec {
            num,
            namespace,
            function,
            params: Payload::empty(),
            body: None,
            request: None,
            private_headers: Vec::new(),
            direct: false,
            timeout_ms: self.timeout_ms,
            max_age_ms: self.max_age_ms.unwrap_or(DEFAULT_AGE_MS),
            run_at: None,
            priority: self.priority.unwrap_or(0),
            key: None,
            waited: false,
            replay_of: None,
            callback: None,
            // A client that waits sees a failure, and can try again itself.
            retries: self.retries.or(is_waited.then_some(0)),
            traceparent: String::new(),
            account: None,
        }
    }

    /// What the body alone asks of the path of the call.
    fn terms(&self) -> CallTerms {
        CallTerms {
            has_priority: self.priority.is_some(),
            has_retries: self.retries.unwrap_or(0) > 0,
            ..CallTerms::default()
        }
    }
}

fn clamped(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn within(what: &str, asked: Option<i64>, least: i64, most: i64) -> Reply<()> {
    match asked {
        Some(asked) if !(least..=most).contains(&asked) => {
            let detail = format!("{what} = {asked} is not within {least} and {most}, which are permitted");
            Err(Problem::new(ErrorCode::LimitExceeded, detail))
        }
        _ => Ok(()),
    }
}

fn check_timeout(timeout_ms: Option<u64>, maximum: &Limits) -> Reply<()> {
    match timeout_ms {
        Some(0) => Err(Problem::new(ErrorCode::InvalidTimeout, "timeoutMs must be at least 1")),
        Some(asked) if asked > maximum.timeout.0 => {
            let detail =
                format!("timeoutMs = {asked} is more than the platform permits, which is {}", maximum.timeout.0);
            Err(Problem::new(ErrorCode::LimitExceeded, detail))
        }
        _ => Ok(()),
    }
}

/// The reply to an invocation: the call, and the headers that every such reply has.
pub(crate) async fn reply(app: &App, namespace: &Namespace, call: CallRecord, waited: Option<u64>) -> Reply<Response> {
    let (num, traceparent, last) = (call.num.0, call.traceparent.clone(), call.attempts.last().cloned());
    let view = CallView::whole(call, &app.blobs_of(namespace)).await?;
    let status = if waited.is_some() && view.status().is_terminal() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = (status, Json(view)).into_response();
    let headers = response.headers_mut();
    trace::tell(headers, num, &traceparent, last.as_ref().map(trace::Timing::from));
    if let Ok(location) = HeaderValue::from_str(&format!("/call/{num}")) {
        headers.insert("location", location);
    }
    if let Some(applied) = waited.and_then(|seconds| HeaderValue::from_str(&format!("wait={seconds}")).ok()) {
        headers.insert("preference-applied", applied);
    }
    Ok(response)
}

/// Whether a request is an invocation that is answered once it is stored, with little to read and to write: a client that
/// waits for an end, or names a call that may have ended, may get megabytes.
pub(crate) fn is_only_stored<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    request.method() == Method::POST
        && request.uri().path() == "/invokeFunction"
        && !headers.contains_key("prefer")
        && !headers.contains_key("idempotency-key")
        && length.is_some_and(|length: usize| length <= MAX_INLINE)
}

/// Invokes a function: 202 when the call is stored, or with `Prefer: wait=N` 200 when it ended in time.
#[utoipa::path(post, path = "/invokeFunction", tag = "calls", request_body(content = Object, content_type = "application/json", description = "`funcName` and `params`; optionally `request`, `version`, `timeoutMs`, `retries`, `maxAgeMs`, `runAt`, `priority`, `callback`"),
    params(("Prefer" = Option<String>, Header, description = "wait=SECONDS"), ("Idempotency-Key" = Option<String>, Header, description = "the same key and body is the same call")),
    responses((status = 202, description = "The call, stored", body = CallView), (status = 200, description = "The call, ended", body = CallView), (status = 404, description = "There is no such function or version", body = Problem)))]
pub(crate) async fn invoke(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Body,
) -> Reply<Response> {
    let namespace = &principal.namespace;
    app.admission().disk()?;
    let mut bytes = body::read_json(app.admission(), &headers, body, MAX_BODY).await?;
    let invocation = Invocation::parse(&bytes, app.maximum())?;
    let function: FunctionName = invocation.func_name.parse()?;
    bytes.assign(app.admission(), namespace, &function)?;
    let (version, request) = (invocation.version.map(Version), invocation.request()?);
    let path = request.as_ref().map_or("/", |request| request.path.as_str());
    let wait = preference::prefer_wait(&headers)?;
    // It counts until this request is answered.
    let _place = authorize::permit_call(app.access(), &principal, (function.as_str(), path), wait.is_some()).await?;
    // A first look, so that an unknown function takes no number.
    let current = app.versions().of(namespace, &function, version).await?;
    let (key, run_at) =
        (idempotency::idempotency_key(&headers, (&Method::POST, &uri), version, &bytes)?, invocation.run_at()?);
    let callback = callbacks::accept(app.egress(), &headers, invocation.callback.as_deref())?;
    let num = app.call_ids().next().await?;
    let spec = CallSpec {
        params: app.blobs_of(namespace).payload(invocation.params.get().as_bytes().to_vec()).await?,
        request,
        run_at,
        key,
        callback,
        traceparent: trace::parent(&headers),
        account: principal.account_id().cloned(),
        ..invocation.spec(num, (namespace.clone(), function), wait.is_some())
    };
    let wait_for = wait.map(Duration::from_secs);
    let call = actions::calls::invoke(&app, (spec, version), (&current, invocation.terms()), wait_for).await?;
    reply(&app, &principal.namespace, call, wait).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_bodies_are_told_apart() {
        let parse = |text: &str| {
            Invocation::parse(text.as_bytes(), &Limits::MAXIMUM)
                .map_err(|problem| serde_json::to_value(problem).unwrap()["code"].clone())
        };
        assert!(parse(r#"{"funcName":"f","params":[1.0]}"#).is_ok());
        for (text, code) in [
            (r#"{"params":{}}"#, "missing_field"),
            (r#"{"funcName":"f","params":1,"tiemoutMs":3}"#, "unknown_field"),
            (r#"{"funcName":"f","params":1,"timeoutMs":-1}"#, "malformed_json"),
            (r#"{"funcName":"f","params":1,"timeoutMs":0}"#, "invalid_timeout"),
            (r#"{"funcName":"f","params":1,"timeoutMs":99999999}"#, "limit_exceeded"),
            (r#"{"funcName":"f","params":1,"retries":101}"#, "limit_exceeded"),
            (r#"{"funcName":"f","params":1,"priority":101}"#, "limit_exceeded"),
            (r#"{"funcName":"f","params":1,"maxAgeMs":0}"#, "limit_exceeded"),
        ] {
            assert_eq!(parse(text).unwrap_err(), code, "{text}");
        }
    }
}
