//! Invocations by JSON: `POST /invokeFunction`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use faena_domain::json::parse_object;
use faena_domain::limits::{Limits, MAX_BODY, MAX_WAIT_S};
use faena_domain::payload::MAX_INLINE;
use faena_domain::plan::{CallPath, CallTarget, CallTerms, plan};
use faena_domain::queue::DEFAULT_AGE_MS;
use faena_domain::retry::MAX_RETRIES;
use faena_domain::{BlobKey, DigestKind, FunctionName, Timestamp, Version};
use faena_protocol::db::CallAcknowledge;
use faena_protocol::records::{CallRecord, CallSpec, Code, IdempotencyKey, NewCall};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{asked_request, calls, trace};
use crate::app::App;
use crate::authorize::Authenticated;
use crate::body;
use crate::callbacks;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::view::CallView;
use faena_scheduler::{Answer, SyncCall};

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

/// What an `Idempotency-Key` stands for: the method, where it went, the version it names, and its body.
pub(crate) fn idempotency_key(
    headers: &HeaderMap,
    (method, uri): (&Method, &Uri),
    version: Option<Version>,
    body: &[u8],
) -> Reply<Option<IdempotencyKey>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    let is_visible = (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_visible || headers.get_all("idempotency-key").iter().count() > 1 {
        let detail = "an Idempotency-Key is one text of 1 to 255 visible ASCII characters";
        return Err(Problem::new(ErrorCode::InvalidKey, detail));
    }
    let version = version.map(|version| version.to_string()).unwrap_or_default();
    let mut hash = Sha256::new();
    for part in [method.as_str(), uri.path(), uri.query().unwrap_or_default(), &version] {
        hash.update(part);
        hash.update([0]);
    }
    hash.update(body);
    Ok(Some(IdempotencyKey { key: key.to_owned(), hash: BlobKey::new(DigestKind::Sha256, hash.finalize().into()) }))
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

/// The seconds of `Prefer: wait=N` (RFC 7240, 4.3), cut at the most that is granted.
///
/// # Errors
/// A `wait` that is no number of seconds: its client would be answered at once, and take that for the end.
pub(crate) fn prefer_wait(headers: &HeaderMap) -> Reply<Option<u64>> {
    let values = headers.get_all("prefer").iter().map(|value| value.to_str().unwrap_or("wait=?"));
    let mut preferences = values.flat_map(|value| value.split([',', ';'])).map(str::trim);
    let Some(wait) =
        preferences.find(|preference| preference.split('=').next().is_some_and(|name| name.trim() == "wait"))
    else {
        return Ok(None);
    };
    let seconds = wait.split_once('=').and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse::<u64>().ok());
    let invalid = || Problem::new(ErrorCode::InvalidPreference, "Prefer: wait=N takes a number of seconds");
    seconds.map(|seconds| Some(seconds.min(MAX_WAIT_S))).ok_or_else(invalid)
}

/// The reply to an invocation: the call, and the headers that every such reply has.
pub(crate) async fn reply(app: &App, call: CallRecord, waited: Option<u64>) -> Reply<Response> {
    let (num, traceparent, last) = (call.num.0, call.traceparent.clone(), call.attempts.last().cloned());
    let view = CallView::whole(call, app.blobs()).await?;
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

/// Runs a call that nobody will ask for by its row before it has ended; for `wait` at most, where there is one.
pub(crate) async fn run_waited(
    app: &App,
    spec: CallSpec,
    code: &Arc<Code>,
    wait: Option<Duration>,
) -> Reply<CallRecord> {
    let busy = || Problem::new(ErrorCode::Busy, "too many calls are waited for").retry_after(1);
    let permit = app.completions().permit().ok_or_else(busy)?;
    let _waiting = app.follow(&spec.namespace, &spec.function)?;
    let num = spec.num;
    let (call, mut answer) = SyncCall::new(spec, Arc::clone(code), permit);
    if !app.scheduler().submit(call) {
        return Err(busy());
    }
    let runs_out = async {
        tokio::select! {
            () = sleep_or_never(wait) => {}
            () = app.draining().cancelled(), if wait.is_some() => {}
        }
    };
    let answered = tokio::select! {
        answered = &mut answer => answered,
        () = runs_out => {
            app.scheduler().abandon(num).await;
            answer.await
        }
    };
    match answered {
        Ok(Answer::Ended(call) | Answer::Persisted(call)) => Ok(*call),
        Ok(Answer::Refused(error)) => Err(error.into()),
        Err(_) => Err(Problem::new(ErrorCode::Stopping, "the platform is stopping").retry_after(1)),
    }
}

async fn sleep_or_never(span: Option<Duration>) {
    match span {
        Some(span) => tokio::time::sleep(span).await,
        None => std::future::pending().await,
    }
}

/// Accepts a call durably: its row is committed when this returns.
pub(crate) async fn accept(app: &App, spec: CallSpec, version: Option<Version>) -> Reply<CallRecord> {
    let is_due = spec.run_at.is_none();
    let call = app.accepts().accept(NewCall { spec, version }).await?;
    if is_due {
        app.scheduler().poke();
    }
    Ok(call)
}

/// Accepts a call durably and waits for its end. If that does not come in time, the call is acknowledged.
pub(crate) async fn accept_and_wait(
    app: &App,
    spec: CallSpec,
    version: Option<Version>,
    wait: Duration,
) -> Reply<CallRecord> {
    let namespace = spec.namespace.clone();
    let call = accept(app, CallSpec { waited: true, ..spec }, version).await?;
    let call = calls::wait_for_end(app, &namespace, call, wait).await?;
    if !call.status.is_terminal() {
        // From the 202 on somebody relies on it: should it fail, it is a dead letter.
        app.db().ask(&CallAcknowledge { num: call.num }).await?;
    }
    Ok(call)
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
    let namespace = principal.namespace.clone();
    app.admission().disk()?;
    let mut bytes = body::read_json(app.admission(), &headers, body, MAX_BODY).await?;
    let invocation = Invocation::parse(&bytes, app.maximum())?;
    let function: FunctionName = invocation.func_name.parse()?;
    bytes.assign(app.admission(), &namespace, &function)?;
    let version = invocation.version.map(Version);
    let request =
        invocation.request.as_deref().map(|asked| asked_request::parse(asked, &invocation.params)).transpose()?;
    let wait = prefer_wait(&headers)?;
    // A first look, so that an unknown function takes no number.
    let current = app.versions().of(&namespace, &function, version).await?;
    let (key, run_at) = (idempotency_key(&headers, (&Method::POST, &uri), version, &bytes)?, invocation.run_at()?);
    let callback = callbacks::accept(app.egress(), &headers, invocation.callback.as_deref())?;
    let terms = CallTerms {
        is_waited: wait.is_some(),
        is_passed_on: false,
        has_key: key.is_some(),
        has_start: run_at.is_some(),
        has_priority: invocation.priority.is_some(),
        has_retries: invocation.retries.unwrap_or(0) > 0,
        has_callback: callback.is_some(),
    };
    let target = CallTarget {
        status: current.status,
        contract: current.code.serving.contract,
        has_concurrency: current.code.concurrency.is_some(),
        is_offered: false,
    };
    let spec = CallSpec {
        num: app.call_ids().next().await?,
        namespace,
        function,
        params: app.blobs().payload(invocation.params.get().as_bytes().to_vec()).await?,
        body: None,
        request,
        direct: false,
        timeout_ms: invocation.timeout_ms,
        max_age_ms: invocation.max_age_ms.unwrap_or(DEFAULT_AGE_MS),
        run_at,
        priority: invocation.priority.unwrap_or(0),
        key,
        waited: false,
        replay_of: None,
        callback,
        retries: invocation.retries.or(wait.map(|_| 0)),
        traceparent: trace::parent(&headers),
    };
    let most = wait.map(Duration::from_secs);
    let call = match (plan(&terms, &target), most) {
        (CallPath::Direct | CallPath::Sync, most) => run_waited(&app, spec, &current.code, most).await?,
        (CallPath::Queued, Some(most)) => accept_and_wait(&app, spec, version, most).await?,
        (CallPath::Queued, None) => accept(&app, spec, version).await?,
    };
    reply(&app, call, wait).await
}

/// Whether a body that says it is JSON is.
pub(crate) fn check_json(bytes: &[u8]) -> Reply<()> {
    if !faena_domain::json::is_shallow(bytes) {
        return Err(faena_domain::json::InvalidJson::TooDeep.into());
    }
    let checked = serde_json::from_slice::<&RawValue>(bytes);
    checked.map(drop).map_err(|error| Problem::new(ErrorCode::MalformedJson, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(value: &'static str) -> Option<u64> {
        prefer_wait(&HeaderMap::from_iter([(
            axum::http::header::HeaderName::from_static("prefer"),
            HeaderValue::from_static(value),
        )]))
        .ok()
        .flatten()
    }

    #[test]
    fn a_wait_is_found_among_preferences_and_cut() {
        assert_eq!(wait("wait=5"), Some(5));
        assert_eq!(wait("respond-async, wait=10"), Some(10));
        assert_eq!(wait("wait=100000"), Some(300));
        assert_eq!(wait("respond-async"), None);
        let soon = HeaderMap::from_iter([(
            axum::http::header::HeaderName::from_static("prefer"),
            HeaderValue::from_static("wait=soon"),
        )]);
        assert!(prefer_wait(&soon).is_err());
    }

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
