//! The HTTP request that an invocation by JSON may carry: `{"method", "path", "query", "headers"}`. Its body is the params.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use faena_domain::json::parse_object;
use faena_domain::limits::{MAX_HEADER_BYTES, MAX_HEADERS};
use faena_protocol::direct::{Header, HttpRequest};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::entrance::Entrance;
use crate::handed::is_forwarded;
use crate::problem::{ErrorCode, Problem, Reply};

const FIELDS: [&str; 4] = ["method", "path", "query", "headers"];
/// The longest path with its query, in bytes: what servers commonly take.
const MAX_TARGET: usize = 8 * 1024;

#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(default = "post")]
    method: String,
    #[serde(default = "root")]
    path: String,
    #[serde(default)]
    query: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

fn post() -> String {
    Method::POST.to_string()
}

fn root() -> String {
    "/".to_owned()
}

fn invalid(detail: String) -> Problem {
    Problem::new(ErrorCode::InvalidRequest, detail)
}

/// Reads the request of an invocation, whose body are these params.
///
/// # Errors
/// What is no request, or says what only the platform may say.
pub(super) fn parse(text: &RawValue, params: &RawValue) -> Reply<Arc<HttpRequest>> {
    let Asked { method, path, query, headers } = parse_object(text.get().as_bytes(), &FIELDS)?;
    check_method(&method)?;
    check_target(&path, &query)?;
    let mut headers = headers.into_iter().map(checked_header).collect::<Reply<Vec<Header>>>()?;
    let mut names: Vec<String> = headers.iter().map(|Header(name, _)| name.to_ascii_lowercase()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|two| two[0] == two[1]) {
        return Err(invalid(format!("request.headers: {} is there more than once", twice[0])));
    }
    let bytes: usize = headers.iter().map(|Header(name, value)| name.len() + value.len()).sum();
    if headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(invalid(format!(
            "request.headers: {} headers with {bytes} bytes; {MAX_HEADERS} and {MAX_HEADER_BYTES} are permitted",
            headers.len()
        )));
    }
    let has_json = carries_params(&method, params)?;
    if has_json && !headers.iter().any(|Header(name, _)| name.eq_ignore_ascii_case("content-type")) {
        headers.push(Header(header::CONTENT_TYPE.to_string(), b"application/json".to_vec()));
    }
    Ok(Arc::new(HttpRequest { method, path, query, headers, has_json }))
}

fn check_method(method: &str) -> Reply<()> {
    let parsed = Method::from_bytes(method.as_bytes()).ok().filter(|method| *method != Method::CONNECT);
    match parsed {
        Some(_) if method.len() <= 32 => Ok(()),
        _ => Err(invalid(
            "request.method is no method of HTTP that a function may be called with, such as GET".to_owned(),
        )),
    }
}

fn check_target(path: &str, query: &str) -> Reply<()> {
    let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let is_one = path.starts_with('/')
        && !path.contains('?')
        && target.len() <= MAX_TARGET
        && target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
        && target.parse::<Uri>().is_ok();
    if is_one {
        return Ok(());
    }
    Err(invalid(format!(
        "request.path begins with / and request.query with no question mark; both are percent-encoded and have {MAX_TARGET} bytes at most"
    )))
}

fn checked_header((name, value): (String, String)) -> Reply<Header> {
    let shown: String = name.chars().take(80).collect();
    let parsed = HeaderName::from_bytes(name.as_bytes());
    let Ok(parsed) = parsed else { return Err(invalid(format!("request.headers: {shown:?} is no name of a header"))) };
    if Entrance::Path.withholds(parsed.as_str(), &HeaderMap::new()) || is_forwarded(parsed.as_str()) {
        return Err(invalid(format!("request.headers: {shown} is set by the platform, or not handed to functions")));
    }
    if HeaderValue::from_str(&value).is_err() {
        return Err(invalid(format!("request.headers: the value of {shown} has characters that no header may have")));
    }
    Ok(Header(name, value.into_bytes()))
}

/// Whether the params are the body. Requests that have none as a rule (RFC 9110, 9.3) have none here.
fn carries_params(method: &str, params: &RawValue) -> Reply<bool> {
    if !matches!(method, "GET" | "HEAD" | "TRACE") {
        return Ok(true);
    }
    let is_empty = matches!(serde_json::from_str(params.get()), Ok(serde_json::Value::Null))
        || serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(params.get())
            .is_ok_and(|map| map.is_empty());
    if is_empty {
        Ok(false)
    } else {
        Err(invalid(format!("a request with the method {method} has no body: params must be {{}} or null")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, params: &str) -> Reply<Arc<HttpRequest>> {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).expect("JSON");
        parse(&raw(text), &raw(params))
    }

    #[test]
    fn what_is_left_out_is_a_post_of_json() {
        let request = parsed("{}", "[1]").expect("a request");
        assert_eq!((request.method.as_str(), request.target().as_str(), request.has_json), ("POST", "/", true));
        assert_eq!(request.headers, [Header("content-type".to_owned(), b"application/json".to_vec())]);
    }

    #[test]
    fn all_of_it_is_handed_over() {
        let text = r#"{"method":"PUT","path":"/a%20b","query":"x=1&y","headers":{"X-Mine":"v","Content-Type":"application/vnd.a+json"}}"#;
        let request = parsed(text, "{}").expect("a request");
        assert_eq!((request.method.as_str(), request.target().as_str()), ("PUT", "/a%20b?x=1&y"));
        assert_eq!(request.headers.len(), 2);
        assert!(!parsed(r#"{"method":"GET"}"#, "{}").expect("a request").has_json);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, params) in [
            (r#"{"method":"G T"}"#, "{}"),
            (r#"{"method":"CONNECT"}"#, "{}"),
            (r#"{"method":"GET"}"#, r#"{"a":1}"#),
            (r#"{"path":"a"}"#, "{}"),
            (r#"{"path":"/a b"}"#, "{}"),
            (r#"{"path":"/a?x"}"#, "{}"),
            (r#"{"path":"/a\r\nX: y"}"#, "{}"),
            (r##"{"query":"#a"}"##, "{}"),
            (r#"{"headers":{"a b":"v"}}"#, "{}"),
            (r#"{"headers":{"a":"v\r\nb: c"}}"#, "{}"),
            (r#"{"headers":{"Cookie":"v"}}"#, "{}"),
            (r#"{"headers":{"Content-Length":"7"}}"#, "{}"),
            (r#"{"headers":{"X-Forwarded-For":"v"}}"#, "{}"),
            (r#"{"headers":{"X-A":"v","x-a":"v"}}"#, "{}"),
        ] {
            let problem = serde_json::to_value(parsed(text, params).expect_err(text)).expect("JSON");
            assert_eq!(problem["code"], "invalid_request", "{text}");
        }
        assert!(parsed(r#"{"methode":"GET"}"#, "{}").is_err() && parsed("[]", "{}").is_err());
    }
}
