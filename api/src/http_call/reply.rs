//! The reply to a call on `/f/`: what the function put out, without what it may not say, or why it failed.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use faena_domain::limits::{MAX_HEADER_BYTES, MAX_HEADERS, MAX_RESULT};
use faena_domain::{CallError, CallNum, CallStatus, ErrorKind, FunctionName, Namespace};
use faena_protocol::direct::{Header, HttpHead};
use faena_protocol::records::CallRecord;

use crate::app::App;
use crate::entrance::{Entrance, PREFIX, without_domain};
use crate::problem::{ErrorCode, Problem, Reply};
use crate::trace::{self, Timing};

/// The names of a reply's headers as the function wrote them. An extension of the response, since the headers themselves
/// have their names in lower case.
#[derive(Clone, Debug)]
pub(super) struct WrittenNames(pub(super) Vec<String>);

/// The options of `Connection`, in lower case: headers of these names are of that connection alone (RFC 9110, 7.6.1).
fn options_of(headers: &[Header]) -> Vec<String> {
    let given = headers.iter().filter(|Header(name, _)| name.eq_ignore_ascii_case("connection"));
    let texts = given.map(|Header(_, value)| String::from_utf8_lossy(value).to_ascii_lowercase());
    texts.flat_map(|text| text.split(',').map(|option| option.trim().to_owned()).collect::<Vec<_>>()).collect()
}

/// Takes over the headers that a function may set, as many as are kept.
fn keep_headers(told: Vec<Header>, entrance: Entrance, response: &mut Response) {
    let (mut bytes, mut written) = (0, Vec::new());
    let listed = options_of(&told);
    let is_refused = |name: &str| entrance.refuses(name) || listed.iter().any(|listed| listed == name);
    let own = told.into_iter().filter(|Header(name, _)| !is_refused(&name.to_ascii_lowercase()));
    for Header(name, value) in own.take(MAX_HEADERS) {
        let value = if name.eq_ignore_ascii_case("set-cookie") { without_domain(&value) } else { value };
        bytes += name.len() + value.len();
        if bytes > MAX_HEADER_BYTES {
            break;
        }
        if let (Ok(key), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(&value)) {
            response.headers_mut().append(key, value);
            written.push(name);
        }
    }
    response.extensions_mut().insert(WrittenNames(written));
}

/// The reply to a call by its record.
pub(super) async fn of_record(
    app: &App,
    namespace: &Namespace,
    entrance: Entrance,
    mut call: CallRecord,
) -> Reply<Response> {
    let mut response = match (&call.error, call.head.take()) {
        (error, Some(head)) => {
            let body = app.blobs_of(namespace).bytes(&call.result, MAX_RESULT).await?;
            let is_head = call.request.as_ref().is_some_and(|request| request.method == "HEAD");
            passed_on((head, body), entrance, error.is_some(), is_head)
        }
        (None, None) if call.status == CallStatus::Done => {
            bytes(app.blobs_of(namespace).bytes(&call.result, MAX_RESULT).await?)
        }
        (Some(error), None) => failed(error),
        (None, None) => {
            let detail = format!("call {} has not ended yet; GET /call/{}", call.num, call.num);
            Problem::new(ErrorCode::Running, detail).into_response()
        }
    };
    complete(response.headers_mut(), entrance, call.num, &call.traceparent, call.attempts.last().map(Timing::from));
    Ok(response)
}

/// What a function put out, as what it looks like.
pub(super) fn bytes(result: Bytes) -> Response {
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
pub(super) fn passed_on(
    (head, body): (HttpHead, Bytes),
    entrance: Entrance,
    has_failed: bool,
    is_head: bool,
) -> Response {
    let length = head.headers.iter().find(|Header(name, _)| is_head && name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|Header(_, value)| HeaderValue::from_bytes(value).ok());
    let is_typed = head.headers.iter().any(|Header(name, _)| name.eq_ignore_ascii_case("content-type"));
    let mut response = if is_typed || body.is_empty() { Response::new(Body::from(body)) } else { bytes(body) };
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    keep_headers(head.headers, entrance, &mut response);
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    if has_failed {
        response.headers_mut().insert("faena-error", HeaderValue::from_static("function"));
    }
    response
}

/// The reply of a function whose body is still being made.
pub(super) fn streamed(head: HttpHead, entrance: Entrance, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let trailers = head.headers.iter().find(|Header(name, _)| name.eq_ignore_ascii_case("trailer"));
    let trailers = trailers.and_then(|Header(_, value)| HeaderValue::from_bytes(value).ok());
    keep_headers(head.headers, entrance, &mut response);
    if let Some(trailers) = trailers {
        response.headers_mut().insert(header::TRAILER, trailers);
    }
    if head.status >= 500 {
        response.headers_mut().insert("faena-error", HeaderValue::from_static("function"));
    }
    response
}

/// An interim answer of a function, as it is written to its client.
pub(super) fn interim(head: &HttpHead, entrance: Entrance) -> Vec<u8> {
    let status = StatusCode::from_u16(head.status).unwrap_or(StatusCode::PROCESSING);
    let mut out =
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default()).into_bytes();
    let listed = options_of(&head.headers);
    // A cookie belongs to an answer.
    let is_refused =
        |name: &str| name == "set-cookie" || entrance.refuses(name) || listed.iter().any(|listed| listed == name);
    let own = head.headers.iter().filter(|Header(name, _)| !is_refused(&name.to_ascii_lowercase()));
    for Header(name, value) in own.take(MAX_HEADERS) {
        // Parsed again: nothing that is written by hand may hold the end of a line.
        if let (Ok(_), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
            out.extend([name.as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// A redirection of a server to a path of its own leads below the function's prefix, where the client reaches it; one
/// that knows the prefix (`X-Forwarded-Prefix`) is left as it is.
pub(super) fn below_prefix(mut response: Response, function: &FunctionName) -> Response {
    let prefix = format!("{PREFIX}{function}");
    let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
    let is_ours = |path: &&str| path.starts_with('/') && !path.starts_with("//");
    let is_below = |path: &str| {
        let own = path.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(&prefix));
        own && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/' | b'?' | b'#'))
    };
    let moved = location.filter(is_ours).filter(|path| !is_below(path)).map(|path| format!("{prefix}{path}"));
    if let Some(moved) = moved.and_then(|moved| HeaderValue::from_str(&moved).ok()) {
        response.headers_mut().insert(header::LOCATION, moved);
    }
    response
}

/// Adds the headers that every reply of a function has: the call's number and times, and, on the origin of the API, a sandbox for
/// pages.
pub(super) fn complete(
    headers: &mut HeaderMap,
    entrance: Entrance,
    num: CallNum,
    traceparent: &str,
    last: Option<Timing>,
) {
    trace::tell(headers, num.0, traceparent, last);
    if entrance == Entrance::Host {
        return;
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// The status and the problem of a call that did not end in DONE.
pub(super) fn failed(error: &CallError) -> Response {
    let code = match error.kind {
        ErrorKind::Timeout => ErrorCode::Timeout,
        ErrorKind::Expired => ErrorCode::Expired,
        ErrorKind::Unavailable => ErrorCode::Unavailable,
        ErrorKind::Infrastructure => ErrorCode::Infrastructure,
        ErrorKind::Cancelled => ErrorCode::Cancelled,
        ErrorKind::Build => ErrorCode::BuildFailed,
        ErrorKind::Image => ErrorCode::ImageFailed,
        _ => ErrorCode::FunctionFailed,
    };
    let mut problem = Problem::new(code, &error.message);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_sets_no_header_that_reaches_beyond_its_answer() {
        let told =
            ["content-type", "x-mine", "set-cookie", "faena-call", "access-control-allow-origin", "content-length"];
        let told = told.iter().map(|name| Header((*name).to_owned(), b"v".to_vec())).collect();
        let mut response = Response::new(Body::empty());
        keep_headers(told, Entrance::Path, &mut response);
        let kept: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(kept, ["content-type", "x-mine"]);
    }

    #[test]
    fn redirections_of_a_server_stay_below_its_prefix() {
        let function: FunctionName = "Shop".parse().expect("a name");
        for (told, expected) in [
            ("/login?next=/a", "/f/Shop/login?next=/a"),
            ("/", "/f/Shop/"),
            ("/f/shop/login", "/f/shop/login"),
            ("/f/shopping", "/f/Shop/f/shopping"),
            ("login", "login"),
            ("//other.example/", "//other.example/"),
            ("https://other.example/", "https://other.example/"),
        ] {
            let response = Response::builder().header("location", told).body(Body::empty()).expect("a response");
            assert_eq!(below_prefix(response, &function).headers()["location"], expected);
        }
    }
}
