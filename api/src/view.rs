//! A call as people see it.

use std::collections::BTreeMap;

use faena_blob::{BlobError, NamespaceBlobs};
use faena_domain::limits::{LIST_CUT, MAX_BODY, MAX_RESULT};
use faena_domain::{Attempt, CallError, CallStatus, EngineKind, Payload, Timestamp};
use faena_protocol::direct::{HttpRequest, Streamed};
use faena_protocol::records::{CallRecord, CallbackState};
use serde::Serialize;
use serde_json::value::RawValue;

/// A call.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CallView {
    /// Its function.
    func_name: String,
    /// What it was called with.
    #[schema(value_type = serde_json::Value)]
    params: Box<RawValue>,
    /// Whether a list shows only the beginning of the params, as a text.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    params_cut: bool,
    /// The HTTP request that it is, where it came on `/f/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<RequestView>,
    /// The status code of its answer, where the function gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<u16>,
    /// The bytes that have passed, if a body was a stream; the record keeps the beginning of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    streamed: Option<Streamed>,
    /// Its number.
    call_num: i64,
    /// PENDING, RUNNING, DONE, FAILED, TIMEOUT, CANCELLED or EXPIRED.
    #[schema(value_type = String)]
    status: CallStatus,
    /// What the function put out; empty until the end.
    result: String,
    /// Whether a list shows only the beginning of the result.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    result_cut: bool,
    /// `base64` where the result is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    result_encoding: Option<&'static str>,
    /// The function's version.
    version: i64,
    /// docker or sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    engine: Option<EngineKind>,
    /// What was tried.
    #[schema(value_type = Vec<Object>)]
    attempts: Vec<Attempt>,
    /// Why it did not end in DONE.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    error: Option<CallError>,
    /// The call that it repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    replay_of: Option<i64>,
    /// For a dead letter: the last call that repeats it.
    #[serde(skip_serializing_if = "Option::is_none")]
    replayed_as: Option<i64>,
    /// When it may run, while that has not come.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    run_at: Option<Timestamp>,
    /// How its callback stands, once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    callback: Option<CallbackState>,
    /// When it was accepted.
    #[schema(value_type = String)]
    created_at: Timestamp,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    ended_at: Option<Timestamp>,
}

/// A request, without what the function does not see of it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RequestView {
    method: String,
    /// After the function's name.
    path: String,
    query: String,
    /// Names in lower case.
    headers: BTreeMap<String, String>,
    /// The body, where it is not the params; lists leave it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl RequestView {
    fn new(request: &HttpRequest) -> Self {
        Self {
            method: request.method.clone(),
            path: request.path.clone(),
            query: request.query.clone(),
            headers: request.joined_headers(),
            body_base64: None,
        }
    }
}

/// The beginning of a text, at most [`LIST_CUT`] bytes, on a character's border.
fn beginning(text: &str) -> &str {
    let mut end = LIST_CUT.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn raw(json: String) -> Box<RawValue> {
    // What was stored was JSON when it came.
    RawValue::from_string(json).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

fn quoted(text: &str) -> Box<RawValue> {
    serde_json::value::to_raw_value(text).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

impl CallView {
    fn new(call: CallRecord, params: Box<RawValue>, result: String) -> Self {
        Self {
            func_name: call.function.to_string(),
            params,
            params_cut: false,
            request: call.request.as_deref().map(RequestView::new),
            response_status: call.head.map(|head| head.status),
            streamed: call.streamed,
            call_num: call.num.0,
            status: call.status,
            result,
            result_cut: false,
            result_encoding: None,
            version: call.version.0,
            engine: call.engine,
            attempts: call.attempts,
            error: call.error,
            replay_of: call.replay_of.map(|num| num.0),
            replayed_as: call.replayed_as.map(|num| num.0),
            run_at: call.run_at,
            callback: call.callback,
            created_at: Timestamp(call.created_at),
            ended_at: call.ended_at.map(Timestamp),
        }
    }

    /// The whole call.
    pub(crate) async fn whole(call: CallRecord, blobs: &NamespaceBlobs) -> Result<Self, BlobError> {
        let params = blobs.bytes(&call.params, MAX_BODY).await?;
        let params = String::from_utf8_lossy(&params).into_owned();
        let body = match &call.body {
            Some(body) => Some(base64(&blobs.bytes(body, MAX_BODY).await?)),
            None => None,
        };
        let result = blobs.bytes(&call.result, MAX_RESULT).await?;
        let (result, encoding) = match String::from_utf8(result.into()) {
            Ok(text) => (text, None),
            Err(error) => (base64(error.as_bytes()), Some("base64")),
        };
        let mut view = Self { result_encoding: encoding, ..Self::new(call, raw(params), result) };
        if let Some(request) = &mut view.request {
            request.body_base64 = body;
        }
        Ok(view)
    }

    /// The call as a list shows it: long params and results cut.
    pub(crate) fn listed(call: CallRecord) -> Self {
        let (params, params_cut) = match &call.params {
            Payload::Text(text) if text.len() <= LIST_CUT => (raw(text.clone()), false),
            Payload::Text(text) => (quoted(beginning(text)), true),
            Payload::Blob { .. } => (quoted(""), true),
        };
        let (result, result_cut) = match &call.result {
            Payload::Text(text) => (beginning(text).to_owned(), text.len() > LIST_CUT),
            Payload::Blob { .. } => (String::new(), true),
        };
        Self { params_cut, result_cut, ..Self::new(call, params, result) }
    }

    pub(crate) fn status(&self) -> CallStatus {
        self.status
    }
}

/// RFC 4648, section 4.
pub(crate) fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_never_splits_a_character() {
        let text = "ñ".repeat(1000);
        assert_eq!(beginning(&text).len(), 1024);
        assert_eq!(beginning(&format!("a{text}")).len(), 1023);
    }
}
