//! The direct path: what is told of a request, of an answer, and of the end of a call that has no row. Between processes
//! calls and their ends travel as [`wire`] says.

pub mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use faena_domain::call::StartKind;
use faena_domain::units::Millis;
use faena_domain::{Attempt, CallError, CallStatus, EngineKind, Epoch};

use crate::internal::DEPTH;

/// A header of a request or an answer. Its value is bytes, which travel as a text where they are one.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Header(pub String, #[serde(with = "header_value")] pub Vec<u8>);

mod header_value {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => text.serialize(serializer),
            Err(_) => bytes.serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Ok(match Value::deserialize(deserializer)? {
            Value::Text(text) => text.into_bytes(),
            Value::Bytes(bytes) => bytes,
        })
    }
}

/// The HTTP request that a call is, without its body and without headers of the connection and of the platform. A recorded one
/// has no credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRequest {
    /// The method.
    pub method: String,
    /// The path after the function's name, beginning with a slash.
    pub path: String,
    /// The query, without its question mark.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub query: String,
    /// The headers, as they came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
    /// Whether the body was JSON and is the params; any other body stands beside them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_json: bool,
}

impl HttpRequest {
    /// A request with more headers; itself where there are none.
    pub fn with_headers(request: &Arc<Self>, more: &[Header]) -> Arc<Self> {
        if more.is_empty() {
            return Arc::clone(request);
        }
        let mut whole = Self::clone(request);
        whole.headers.extend_from_slice(more);
        Arc::new(whole)
    }

    /// How many calls of functions led to this one.
    pub fn depth(&self) -> u32 {
        let depth = self.headers.iter().find(|Header(name, _)| name.eq_ignore_ascii_case(DEPTH));
        depth.and_then(|Header(_, value)| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(0)
    }

    /// The path with the query.
    pub fn target(&self) -> String {
        if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) }
    }

    /// The request as functions are told of it, in JSON: method, path, query, and headers as [`Self::joined_headers`].
    pub fn to_context(&self) -> Vec<u8> {
        let mut context = Vec::with_capacity(256);
        self.write_context(&mut context);
        context
    }

    /// Appends the request as functions are told of it.
    pub fn write_context(&self, to: &mut Vec<u8>) {
        let context =
            Context { method: &self.method, path: &self.path, query: &self.query, headers: JoinedHeaders(self) };
        let begun = to.len();
        if serde_json::to_writer(&mut *to, &context).is_err() {
            to.truncate(begun);
            to.extend_from_slice(b"null");
        }
    }

    /// Names in lower case and values, several values of one name joined by commas (RFC 9110, 5.3).
    pub fn joined_headers(&self) -> BTreeMap<String, String> {
        let mut joined: BTreeMap<String, String> = BTreeMap::new();
        for Header(name, value) in &self.headers {
            let value = String::from_utf8_lossy(value);
            let values = joined.entry(name.to_ascii_lowercase()).or_default();
            if !values.is_empty() {
                values.push_str(", ");
            }
            values.push_str(&value);
        }
        joined
    }
}

#[derive(serde::Serialize)]
struct Context<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: JoinedHeaders<'a>,
}

/// Headers as a map. As a rule no name is repeated, and the map is written without being made.
struct JoinedHeaders<'a>(&'a HttpRequest);

impl serde::Serialize for JoinedHeaders<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let headers = &self.0.headers;
        let is_plain = |(index, Header(name, _)): (usize, &Header)| {
            !name.bytes().any(|byte| byte.is_ascii_uppercase())
                && !headers[..index].iter().any(|other| other.0 == *name)
        };
        if headers.iter().enumerate().all(is_plain) {
            return serializer
                .collect_map(headers.iter().map(|Header(name, value)| (name, String::from_utf8_lossy(value))));
        }
        self.0.joined_headers().serialize(serializer)
    }
}

/// The head of an HTTP answer; its body is the result.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpHead {
    /// The status code.
    pub status: u16,
    /// The headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
}

impl HttpHead {
    /// Its first `Content-Type`, in lower case.
    pub fn content_type(&self) -> Option<Vec<u8>> {
        let mut kinds = self.headers.iter().filter(|Header(name, _)| name.eq_ignore_ascii_case("content-type"));
        kinds.next().map(|Header(_, value)| value.to_ascii_lowercase())
    }

    /// Whether its body is a stream of events, which has no end of its own.
    pub fn is_event_stream(&self) -> bool {
        self.content_type().is_some_and(|kind| kind.starts_with(b"text/event-stream"))
    }
}

/// The bytes that passed in a call with a streamed body; its record keeps the beginning of each body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Streamed {
    /// Bytes from the client to the function.
    pub request_bytes: u64,
    /// Bytes from the function to the client.
    pub response_bytes: u64,
    /// Whether the client's body had not ended when the call did.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub request_cut: bool,
}

/// How a call ended.
#[derive(Clone, Debug)]
pub struct InvocationEnd {
    /// DONE, FAILED, TIMEOUT, EXPIRED or CANCELLED.
    pub status: CallStatus,
    /// What it put out; empty unless DONE, or where the function itself answers with an error.
    pub result: Bytes,
    /// The head of its answer, where the function gave one.
    pub head: Option<HttpHead>,
    /// Why it did not end in DONE.
    pub error: Option<CallError>,
    /// What it wrote meanwhile.
    pub log: Vec<u8>,
    /// What it was, for the call's record.
    pub attempt: Attempt,
    /// The bytes that have passed, if its answer was a stream.
    pub streamed: Option<Streamed>,
}

impl InvocationEnd {
    /// The end of a call that no instance answered: the worker had none, or was lost.
    pub fn unrun(error: CallError, worker: &str, engine: EngineKind) -> Self {
        let attempt = Attempt {
            attempt: 1,
            worker: worker.to_owned(),
            engine,
            start: StartKind::Cold,
            epoch: Epoch(1),
            placement: None,
            queue_ms: Millis::default(),
            start_ms: Millis::default(),
            run_ms: Millis::default(),
            exit: None,
            peak_memory_bytes: None,
            cpu_ms: None,
            missing_layers: Vec::new(),
            egress: None,
            error: None,
        };
        let (result, log) = (Bytes::new(), Vec::new());
        Self { status: CallStatus::Failed, result, head: None, error: Some(error), log, attempt, streamed: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_as_itself_whatever_its_bytes() {
        for value in [&b"text"[..], "señal".as_bytes(), b"\xff\xfe"] {
            let header = Header("X-Name".to_owned(), value.to_vec());
            let text = serde_json::to_string(&header).expect("JSON");
            assert_eq!(serde_json::from_str::<Header>(&text).expect("a header"), header, "{text}");
        }
    }

    #[test]
    fn values_of_one_name_are_joined() {
        let header = |name: &str, value: &str| Header(name.to_owned(), value.as_bytes().to_vec());
        let headers = vec![header("Accept", "a"), header("accept", "b"), header("X-Mine", "c")];
        let joined = HttpRequest { headers, ..HttpRequest::default() }.joined_headers();
        assert_eq!((joined["accept"].as_str(), joined["x-mine"].as_str()), ("a, b", "c"));
    }

    #[test]
    fn a_context_has_each_name_once_and_in_lower_case() {
        let context = |names: &[&str]| {
            let headers = names.iter().map(|name| Header((*name).to_owned(), b"v".to_vec())).collect();
            let context = HttpRequest { headers, ..HttpRequest::default() }.to_context();
            serde_json::from_slice::<serde_json::Value>(&context).expect("JSON")["headers"].clone()
        };
        assert_eq!(context(&["a", "b"]), serde_json::json!({"a": "v", "b": "v"}));
        assert_eq!(context(&["a", "A", "B"]), serde_json::json!({"a": "v, v", "b": "v"}));
        assert_eq!(context(&["a", "a"]), serde_json::json!({"a": "v, v"}));
    }
}
