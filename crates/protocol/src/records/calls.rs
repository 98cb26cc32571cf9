//! Calls, from their acceptance to their record.

use std::sync::Arc;

use faena_auth::AccountId;
use faena_domain::call::Placement;
use faena_domain::{
    Attempt, BlobKey, CallError, CallNum, CallStatus, EngineKind, Epoch, FunctionName, Namespace, Payload, Timestamp,
    Version,
};
use serde::{Deserialize, Serialize};

use super::Code;
use crate::direct::{Header, HttpHead, HttpRequest, Streamed};

/// A call that is to be accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewCall {
    /// What it is accepted with.
    pub spec: CallSpec,
    /// The version, where the call names one.
    pub version: Option<Version>,
}

/// What a call was accepted with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallSpec {
    /// Its number.
    pub num: CallNum,
    /// The namespace of its function.
    pub namespace: Namespace,
    /// Its function.
    pub function: FunctionName,
    /// The params, JSON.
    pub params: Payload,
    /// The body of its request, where that is not the params.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Payload>,
    /// The HTTP request that it is (`/f/`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Arc<HttpRequest>>,
    /// Headers of the request that its function gets and no record keeps; forgotten when the call ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private_headers: Vec<Header>,
    /// Whether any bytes are a result (the direct path) or only UTF-8.
    #[serde(default)]
    pub direct: bool,
    /// How long one attempt may take, in milliseconds; none takes the version's own limit.
    pub timeout_ms: Option<u64>,
    /// How long the call may take as a whole, in milliseconds, from its acceptance or from `run_at`.
    pub max_age_ms: u64,
    /// It does not run before this instant of wall time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Timestamp>,
    /// Orders it among the waiting calls of its function; higher goes first.
    #[serde(default)]
    pub priority: i32,
    /// What makes the same request the same call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<IdempotencyKey>,
    /// Whether somebody holds a connection open for its end.
    #[serde(default)]
    pub waited: bool,
    /// The call that this one repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<CallNum>,
    /// Who is told of its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<Callback>,
    /// How often a failure of the function is tried again; none takes the version's own number, or two.
    pub retries: Option<u32>,
    /// The W3C trace context that the call carries.
    pub traceparent: String,
    /// The account that made it, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
}

impl CallSpec {
    /// The request as its function gets it.
    pub fn sent_request(&self) -> Option<Arc<HttpRequest>> {
        self.request.as_ref().map(|request| HttpRequest::with_headers(request, &self.private_headers))
    }
}

/// Who is told of a call's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Callback {
    /// An http or https URL.
    pub url: String,
    /// How many callbacks led to this call, one after the other.
    pub depth: u32,
}

/// How the callback of a call that has ended stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallbackState {
    /// WAITING, DELIVERED or UNDELIVERED.
    pub status: String,
    /// How often it was tried.
    pub tries: u32,
    /// What went wrong at the last try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A callback to be delivered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallbackJob {
    /// The call's namespace.
    pub namespace: Namespace,
    /// The call that has ended.
    pub call: CallRecord,
    /// Who is told.
    pub callback: Callback,
    /// The secret of its function.
    pub secret: String,
    /// Which try this is, from 1.
    pub tries: u32,
}

/// A client's key, and the hash of all that it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdempotencyKey {
    /// The key: 1 to 255 visible ASCII characters.
    pub key: String,
    /// The hash of method, path, query, function, version and body.
    pub hash: BlobKey,
}

/// A call as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallRecord {
    /// Its number.
    pub num: CallNum,
    /// Its function.
    pub function: FunctionName,
    /// The version that was fixed at acceptance.
    pub version: Version,
    /// The params, JSON.
    pub params: Payload,
    /// The body of its request, where that is not the params.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Payload>,
    /// The HTTP request that it is (`/f/`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Arc<HttpRequest>>,
    /// How it stands.
    pub status: CallStatus,
    /// What it put out.
    pub result: Payload,
    /// The head of its answer, where the function gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HttpHead>,
    /// The bytes that have passed, if a body was a stream: [`Self::body`] and [`Self::result`] are the beginnings then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streamed: Option<Streamed>,
    /// Why it did not end in DONE.
    pub error: Option<CallError>,
    /// Its standard error, and what of its standard output was no result.
    pub logs: Payload,
    /// The engine of its version.
    pub engine: Option<EngineKind>,
    /// What was tried.
    pub attempts: Vec<Attempt>,
    /// When it was accepted, in Unix milliseconds.
    pub created_at: i64,
    /// When it ended, in Unix milliseconds.
    pub ended_at: Option<i64>,
    /// The W3C trace context that it carried.
    pub traceparent: String,
    /// The call that it repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<CallNum>,
    /// For a dead letter: the last call that repeats it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed_as: Option<CallNum>,
    /// It does not run before this instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Timestamp>,
    /// How its callback stands, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<CallbackState>,
    /// The account that made it, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
}

impl CallRecord {
    /// A call of a version that has been accepted, and of which nothing more is known.
    pub fn begin(num: CallNum, code: &Code, created_at: i64, traceparent: String) -> Self {
        Self::pending((num, code.function.clone()), (code.version, code.engine), created_at, traceparent)
    }

    fn pending(
        (num, function): (CallNum, FunctionName),
        (version, engine): (Version, Option<EngineKind>),
        created_at: i64,
        traceparent: String,
    ) -> Self {
        Self {
            num,
            function,
            version,
            params: Payload::empty(),
            body: None,
            request: None,
            status: CallStatus::Pending,
            result: Payload::empty(),
            head: None,
            streamed: None,
            error: None,
            logs: Payload::empty(),
            engine,
            attempts: Vec::new(),
            created_at,
            ended_at: None,
            traceparent,
            replay_of: None,
            replayed_as: None,
            run_at: None,
            callback: None,
            account: None,
        }
    }
}

/// A call whose row is committed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Accepted {
    /// It is queued from now on; this is what the api does not know of it.
    #[serde(rename_all = "camelCase")]
    New {
        /// The version that was fixed for it.
        version: Version,
        /// The engine of that version.
        engine: Option<EngineKind>,
        /// When that was, in Unix milliseconds.
        created_at: i64,
    },
    /// It had been accepted before, or has ended already: as it stands.
    Known(Box<CallRecord>),
}

impl Accepted {
    /// The call as it stands.
    pub fn record(self, spec: CallSpec) -> CallRecord {
        match self {
            Self::Known(call) => *call,
            Self::New { version, engine, created_at } => CallRecord {
                params: spec.params,
                body: spec.body,
                replay_of: spec.replay_of,
                run_at: spec.run_at,
                account: spec.account,
                ..CallRecord::pending((spec.num, spec.function), (version, engine), created_at, spec.traceparent)
            },
        }
    }
}

/// A waited call that has ended, as it is written behind its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndedCall {
    /// The namespace of its function.
    pub namespace: Namespace,
    /// The call.
    pub call: CallRecord,
    /// Whether any bytes were a result.
    pub direct: bool,
    /// How long one attempt was allowed to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Numbers of calls that lie in one span of a [`CompletedBatch`].
pub const BATCH_SPAN: i64 = 1024;

/// Calls of one function that went well, and whose numbers lie in one span, written together: nothing about them ever
/// changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CompletedBatch {
    /// The lowest number, which no other batch has.
    pub first: CallNum,
    /// The namespace of the function.
    pub namespace: Namespace,
    /// The function.
    pub function: FunctionName,
    /// When the last of them ended, in Unix milliseconds.
    pub ended_at: i64,
    /// How many they are.
    pub count: u32,
    /// The calls: `[EndedCall]` in JSON, which db keeps as it is.
    pub records: Box<serde_json::value::RawValue>,
}

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// DONE, FAILED, TIMEOUT or EXPIRED.
    pub status: CallStatus,
    /// What it put out; empty unless DONE.
    pub result: Payload,
    /// Why it did not end in DONE.
    pub error: Option<CallError>,
    /// Its log.
    pub logs: Payload,
    /// What it was, for the call's record.
    pub attempt: Attempt,
    /// The head of its answer, where the function gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HttpHead>,
}

/// One attempt as a worker gets it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallJob {
    /// The call.
    pub num: CallNum,
    /// The claim that it runs under.
    pub epoch: Epoch,
    /// The attempt's number, from 1.
    pub attempt: u32,
    /// What runs.
    pub code: Code,
    /// The params, JSON.
    pub params: Payload,
    /// The body of its request, where that is not the params.
    pub body: Option<Payload>,
    /// The HTTP request that it is (`/f/`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Arc<HttpRequest>>,
    /// Whether any bytes are a result.
    pub direct: bool,
    /// How long this attempt may take, in milliseconds: `timeoutMs`, or what is left of `maxAgeMs`.
    pub timeout_ms: u64,
    /// Whether running out of `timeout_ms` is the call's end (EXPIRED) or the attempt's (TIMEOUT).
    pub expires: bool,
    /// The same instant for the function, in Unix milliseconds.
    pub deadline_unix_ms: i64,
    /// How long the call waited before this attempt, in milliseconds.
    pub queue_ms: u64,
    /// The W3C trace context that the call carries.
    pub traceparent: String,
    /// Whether db has a row of it; where not, the outcome goes to the api that sent it.
    pub has_row: bool,
    /// Why this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
}
