//! The direct road: `ANY /f/{name}`, body in, body out.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use faena_domain::limits::{MAX_BODY, MAX_HEADER_BYTES, MAX_RESULT};
use faena_domain::{CallError, CallStatus, ErrorKind, FunctionName, FunctionStatus};
use faena_protocol::direct::{Header, HttpHead};
use faena_protocol::records::{CallRecord, CallSpec};
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::{OpenApi, Required, ResponseBuilder};

use super::{invoke, trace};
use crate::app::{App, Caller};
use crate::body;
use crate::handed::{self, HOP_BY_HOP, Handed};
use crate::path::Path;
use crate::problem::{Problem, Reply};

/// What a direct call may wait for a slot, over its own time.
pub(crate) const QUEUE_MS: u64 = 10_000;

/// The most headers of a function's answer.
const MAX_HEADERS: usize = 100;

/// How much later than its age a call is judged at most.
const JUDGED: Duration = Duration::from_secs(2);

/// Headers of a function's answer that are not its to set: hop by hop, the platform's own, and what would reach beyond
/// the one answer (docs/reference/safety.md).
fn is_not_its_own(name: &str) -> bool {
    const REFUSED: [&str; 6] = [
        "server-timing",
        "set-cookie",
        "clear-site-data",
        "service-worker-allowed",
        "strict-transport-security",
        "alt-svc",
    ];
    const BEGINNINGS: [&str; 3] = ["proxy-", "faena-", "access-control-"];
    HOP_BY_HOP.contains(&name)
        || REFUSED.contains(&name)
        || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// Takes over the headers that a function may set, as many as are kept.
fn keep_headers(told: Vec<Header>, headers: &mut HeaderMap) {
    let mut bytes = 0;
    let own = told.into_iter().filter(|Header(name, _)| !is_not_its_own(&name.to_ascii_lowercase()));
    for Header(name, value) in own.take(MAX_HEADERS) {
        bytes += name.len() + value.len();
        if bytes > MAX_HEADER_BYTES {
            return;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(&value)) {
            headers.append(name, value);
        }
    }
}

/// Calls a function with the body of the request, and answers with what it put out.
pub(crate) async fn call(
    State(app): State<App>,
    Path(segments): Path<Vec<(String, String)>>,
    uri: OriginalUri,
    method: Method,
    headers: HeaderMap,
    body: Body,
) -> Reply<Response> {
    let namespace = Caller::local().namespace;
    let name = segments.into_iter().next().map(|(_, value)| value).unwrap_or_default();
    let function: FunctionName = name.parse()?;
    app.room().disk()?;
    let current = app.versions().of(&namespace, &function, None).await?;
    let bytes = body::read(app.room(), &headers, body, Some((&namespace, &function)), MAX_BODY).await?;
    let key = invoke::idempotency_key(&headers, (&method, &uri), None, &bytes)?;
    let Handed { params, body, request } =
        handed::hand((&method, &uri, &headers), current.code.serving.contract, bytes.bytes())?;
    let body = match body {
        Some(body) => Some(app.blobs().payload(body).await?),
        None => None,
    };
    let timeout_ms = current.code.limits.timeout.0;
    let spec = CallSpec {
        num: app.numbers().next().await?,
        namespace,
        function,
        params: app.blobs().payload(params).await?,
        body,
        request: Some(request),
        direct: true,
        timeout_ms: None,
        max_age_ms: timeout_ms + QUEUE_MS,
        run_at: None,
        priority: 0,
        key,
        waited: false,
        replay_of: None,
        callback: None,
        retries: Some(0),
        traceparent: trace::parent(&headers),
    };
    let needs_row = spec.key.is_some() || current.code.concurrency.is_some();
    let call = if current.status == FunctionStatus::Ready && !needs_row {
        invoke::run_waited(&app, spec, &current.code, None).await?
    } else {
        let age = Duration::from_millis(spec.max_age_ms);
        invoke::accept_and_wait(&app, spec, None, age + JUDGED).await?
    };
    answer(&app, call).await
}

async fn answer(app: &App, mut call: CallRecord) -> Reply<Response> {
    let mut response = match (&call.error, call.head.take()) {
        (error, Some(head)) => {
            let body = app.blobs().bytes(&call.result, MAX_RESULT).await?;
            passed_on(
                head,
                body,
                error.is_some(),
                call.request.as_ref().is_some_and(|request| request.method == "HEAD"),
            )
        }
        (None, None) if call.status == CallStatus::Done => bytes(app.blobs().bytes(&call.result, MAX_RESULT).await?),
        (Some(error), None) => failed(error),
        (None, None) => {
            let detail = format!("call {} has not ended yet; GET /call/{}", call.num, call.num);
            Problem::new(StatusCode::ACCEPTED, "running", detail).into_response()
        }
    };
    seal(response.headers_mut());
    trace::tell(response.headers_mut(), call.num.0, &call.traceparent, call.attempts.last());
    Ok(response)
}

/// What a function put out, as what it looks like.
pub(crate) fn bytes(result: Bytes) -> Response {
    let kind = match std::str::from_utf8(&result) {
        Err(_) => "application/octet-stream",
        Ok(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => "application/json",
        Ok(_) => "text/plain; charset=utf-8",
    };
    let mut response = Response::new(Body::from(result));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// What a function answered with a head of its own, without what it may not say.
///
/// The answer to HEAD has no body, and says how long that of GET would be.
pub(crate) fn passed_on(head: HttpHead, body: Bytes, has_failed: bool, is_head: bool) -> Response {
    let length = head.headers.iter().find(|Header(name, _)| is_head && name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|Header(_, value)| HeaderValue::from_bytes(value).ok());
    let is_typed = head.headers.iter().any(|Header(name, _)| name.eq_ignore_ascii_case("content-type"));
    let mut response = if is_typed || body.is_empty() { Response::new(Body::from(body)) } else { bytes(body) };
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    keep_headers(head.headers, response.headers_mut());
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    if has_failed {
        response.headers_mut().insert("faena-error", HeaderValue::from_static("function"));
    }
    response
}

/// Whatever a function puts out is no page of ours.
pub(crate) fn seal(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// The status and the problem of a call that did not end in DONE.
pub(crate) fn failed(error: &CallError) -> Response {
    let (status, code) = match error.kind {
        ErrorKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
        ErrorKind::Expired => (StatusCode::GATEWAY_TIMEOUT, "expired"),
        ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        ErrorKind::Infrastructure => (StatusCode::BAD_GATEWAY, "infrastructure"),
        ErrorKind::Cancelled => (StatusCode::CONFLICT, "cancelled"),
        ErrorKind::Build => (StatusCode::BAD_GATEWAY, "build_failed"),
        ErrorKind::Image => (StatusCode::BAD_GATEWAY, "image_failed"),
        _ => (StatusCode::BAD_GATEWAY, "function_failed"),
    };
    let mut problem = Problem::new(status, code, error.message.clone());
    if !error.stderr_tail.is_empty() {
        problem = problem.hint(format!("the end of its standard error: {}", error.stderr_tail));
    }
    if error.kind == ErrorKind::Unavailable {
        problem = problem.retry_after(1);
    }
    let mut response = problem.into_response();
    let blame = if error.kind.is_platforms() { "platform" } else { "function" };
    response.headers_mut().insert("faena-error", HeaderValue::from_static(blame));
    response
}

/// Describes the road for any method; the derive knows no wildcard paths.
pub(crate) fn describe(document: &mut OpenApi) {
    let parameter = |name: &str| {
        ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path).required(Required::True).build()
    };
    let operation = |names: &[&str]| {
        let mut operation = OperationBuilder::new()
            .tag("calls")
            .summary(Some("Calls a function with the body, and answers with what it put out"))
            .response("200", ResponseBuilder::new().description("The result's bytes").build())
            .response(
                "default",
                ResponseBuilder::new().description("What a function answers with a head of its own").build(),
            )
            .response("502", ResponseBuilder::new().description("The function failed").build())
            .response("504", ResponseBuilder::new().description("It took too long").build());
        for name in names {
            operation = operation.parameter(parameter(name));
        }
        operation.build()
    };
    let methods = [HttpMethod::Get, HttpMethod::Post, HttpMethod::Put, HttpMethod::Patch, HttpMethod::Delete];
    for (path, names) in [("/f/{name}", &["name"][..]), ("/f/{name}/{path}", &["name", "path"][..])] {
        let item = PathItem::from_http_methods(methods.clone(), operation(names));
        document.paths.paths.insert(path.to_owned(), item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_sets_no_header_that_reaches_beyond_its_answer() {
        let told =
            ["content-type", "x-mine", "set-cookie", "faena-call", "access-control-allow-origin", "content-length"];
        let told = told.iter().map(|name| Header((*name).to_owned(), b"v".to_vec())).collect();
        let mut headers = HeaderMap::new();
        keep_headers(told, &mut headers);
        let kept: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(kept, ["content-type", "x-mine"]);
    }
}
