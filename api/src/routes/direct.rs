//! The direct road: `ANY /f/{name}`, body in, body out.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use faena_domain::limits::{MAX_BODY, MAX_RESULT};
use faena_domain::{CallError, CallStatus, ErrorKind, FunctionName, FunctionStatus, Payload};
use faena_protocol::direct::HttpHead;
use faena_protocol::records::{CallRecord, CallSpec};
use serde_json::json;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::{OpenApi, Required, ResponseBuilder};

use super::{invoke, trace};
use crate::app::{App, Caller};
use crate::body;
use crate::path::Path;
use crate::problem::{Problem, Reply};

/// What a direct call may wait for a slot, over its own time.
pub(crate) const QUEUE_MS: u64 = 10_000;

/// The most headers of a function's answer, and what they may hold.
const MAX_HEADERS: usize = 100;
const MAX_HEADER_BYTES: usize = 32 * 1024;

/// How much later than its age a call is judged at most.
const JUDGED: Duration = Duration::from_secs(2);

/// Headers of a request that are not the function's business: hop by hop (RFC 9110, 7.6.1), or the platform's own.
fn is_withheld(name: &str) -> bool {
    const WITHHELD: [&str; 10] = [
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "authorization",
        "cookie",
        "host",
        "content-length",
    ];
    WITHHELD.contains(&name) || name.starts_with("proxy-") || name.starts_with("faena-")
}

fn headers_of(headers: &HeaderMap) -> serde_json::Map<String, serde_json::Value> {
    let mut shown = serde_json::Map::new();
    for name in headers.keys().filter(|name| !is_withheld(name.as_str())) {
        let values: Vec<_> =
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        shown.insert(name.to_string(), values.join(", ").into());
    }
    shown
}

/// The headers that a function which speaks HTTP is sent.
pub(crate) fn passed_headers(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let passed = headers.iter().filter(|(name, _)| !is_withheld(name.as_str()));
    passed.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
}

/// Headers of a function's answer that are not its to set: hop by hop, the platform's own, and what would reach beyond
/// the one answer (docs/reference/safety.md).
fn is_not_its_own(name: &str) -> bool {
    const REFUSED: [&str; 12] = [
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "server-timing",
        "set-cookie",
        "clear-site-data",
        "service-worker-allowed",
        "strict-transport-security",
    ];
    const BEGINNINGS: [&str; 3] = ["proxy-", "faena-", "access-control-"];
    REFUSED.contains(&name) || name == "alt-svc" || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// Takes over the headers that a function may set, as many as are kept.
pub(crate) fn keep_headers(told: Vec<(String, Vec<u8>)>, headers: &mut HeaderMap) {
    let mut bytes = 0;
    for (name, value) in told.into_iter().filter(|(name, _)| !is_not_its_own(name)).take(MAX_HEADERS) {
        bytes += name.len() + value.len();
        if bytes > MAX_HEADER_BYTES {
            return;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(&value)) {
            headers.append(name, value);
        }
    }
}

/// Params of a body that is no JSON: the request itself, but for its body, which travels beside them.
pub(crate) fn request_params(method: &Method, path: &str, query: &str, headers: &HeaderMap) -> String {
    json!({"method": method.as_str(), "path": path, "query": query, "headers": headers_of(headers)}).to_string()
}

async fn params(
    app: &App,
    uri: &OriginalUri,
    method: &Method,
    headers: &HeaderMap,
    bytes: &Bytes,
    name: &str,
) -> Reply<(Payload, Option<Payload>)> {
    if body::is_json(headers) {
        return Ok((invoke::json_params(app, bytes).await?, None));
    }
    let path = uri.path().strip_prefix("/f/").and_then(|rest| rest.strip_prefix(name)).unwrap_or_default();
    let path = if path.is_empty() { "/" } else { path };
    let params = request_params(method, path, uri.query().unwrap_or_default(), headers);
    Ok((app.blobs().payload(params).await?, Some(app.blobs().payload(bytes.clone()).await?)))
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
    let bytes = body::read(app.room(), &headers, body, MAX_BODY).await?;
    let key = invoke::idempotency_key(&headers, (&method, &uri), None, &bytes)?;
    let (params, body) = params(&app, &uri, &method, &headers, bytes.bytes(), &name).await?;
    let timeout_ms = current.code.limits.timeout.0;
    let spec = CallSpec {
        num: app.numbers().next().await?,
        namespace,
        function,
        params,
        body,
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
    let (call, head) = if current.status == FunctionStatus::Ready && !needs_row {
        invoke::run_waited(&app, spec, &current.code, None).await?
    } else {
        let age = Duration::from_millis(spec.max_age_ms);
        (invoke::accept_and_wait(&app, spec, None, age + JUDGED).await?, None)
    };
    answer(&app, call, head).await
}

async fn answer(app: &App, call: CallRecord, head: Option<HttpHead>) -> Reply<Response> {
    let mut response = match (&call.error, head) {
        (error, Some(head)) => passed_on(head, app.blobs().bytes(&call.result, MAX_RESULT).await?, error.is_some()),
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

/// What a function that speaks HTTP answered, without what it may not say.
pub(crate) fn passed_on(head: HttpHead, body: Bytes, has_failed: bool) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    keep_headers(head.headers, response.headers_mut());
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
        let told = told.iter().map(|name| ((*name).to_owned(), b"v".to_vec())).collect();
        let mut headers = HeaderMap::new();
        keep_headers(told, &mut headers);
        let kept: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(kept, ["content-type", "x-mine"]);
    }

    #[test]
    fn a_body_that_is_no_json_is_the_last_of_its_params() {
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("a\"b"))]);
        let params = request_params(&Method::PUT, "/a", "b=c", &headers);
        let expected = json!({"method": "PUT", "path": "/a", "query": "b=c", "headers": {"accept": "a\"b"}, "bodyBase64": "/2JvZHk="});
        let whole = faena_protocol::direct::with_body(&params, b"\xffbody");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&whole).unwrap(), expected);
    }

    #[test]
    fn a_function_sees_no_credentials() {
        let names = ["authorization", "cookie", "x-mine", "proxy-authorization", "faena-call"];
        let headers =
            names.iter().map(|name| (header::HeaderName::from_static(name), HeaderValue::from_static("v"))).collect();
        let shown = headers_of(&headers);
        assert_eq!(shown.keys().collect::<Vec<_>>(), ["x-mine"]);
    }
}
