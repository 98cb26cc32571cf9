//! The direct road: a call is handed to an instance's worker, and its end comes back, and nothing durable is done between.
//! Where api and worker share a process it is handed over as it is; otherwise it travels ([`wire`]).

pub mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use faena_domain::call::StartKind;
use faena_domain::{Attempt, CallError, CallNum, CallStatus, EngineKind, Epoch};

use crate::records::Code;

/// What a function that speaks HTTP is sent, or answers; hop-by-hop headers and the platform's own are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpRequest {
    /// The method.
    pub method: String,
    /// The path after the function's name, and the query.
    pub target: String,
    /// The headers.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Bytes,
}

/// Params of a request whose body is no JSON, with that body as their last member; without it they are an object that is
/// not empty.
pub fn with_body(params: &str, body: &[u8]) -> String {
    let members = params.strip_suffix('}').unwrap_or(params);
    format!("{members},\"bodyBase64\":\"{}\"}}", Base64Display::new(body, &STANDARD))
}

/// The head of what a function that speaks HTTP answered; its body is the result.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpHead {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// A call on its way to an instance.
pub struct DirectCall {
    /// Its number.
    pub num: CallNum,
    /// What runs; the same allocation for every call of a version.
    pub code: Arc<Code>,
    /// The params, JSON.
    pub params: Bytes,
    /// The request's body, where that was no JSON.
    pub body: Option<Bytes>,
    /// The request as it came, for functions that speak HTTP.
    pub request: Option<HttpRequest>,
    /// How long the attempt may take, in milliseconds.
    pub timeout_ms: u64,
    /// When the call as a whole has to have ended.
    pub deadline: Instant,
    /// The same instant for the function, in Unix milliseconds.
    pub deadline_unix_ms: i64,
    /// The W3C trace context that it carries.
    pub traceparent: Arc<str>,
    /// Takes its end, exactly once, whoever still waits.
    pub done: Box<dyn FnOnce(DirectEnd) + Send>,
}

impl fmt::Debug for DirectCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectCall").field("num", &self.num).finish_non_exhaustive()
    }
}

/// How a call ended.
#[derive(Clone, Debug)]
pub struct DirectEnd {
    /// DONE, FAILED, TIMEOUT, EXPIRED or CANCELLED.
    pub status: CallStatus,
    /// What it put out; empty unless DONE, or where a function that speaks HTTP says itself what went wrong.
    pub result: Bytes,
    /// The head of what a function that speaks HTTP answered.
    pub head: Option<HttpHead>,
    /// Why it did not end in DONE.
    pub error: Option<CallError>,
    /// What it wrote meanwhile.
    pub log: Vec<u8>,
    /// What it was, for the call's record.
    pub attempt: Attempt,
}

impl DirectEnd {
    /// The end of a call that no instance answered: the worker had none, or was lost.
    pub fn unrun(error: CallError, worker: &str, engine: EngineKind) -> Self {
        let attempt = Attempt {
            attempt: 1,
            worker: worker.to_owned(),
            engine,
            start: StartKind::Cold,
            epoch: Epoch(1),
            queue_ms: 0,
            start_ms: 0,
            run_ms: 0,
            exit: None,
            peak_memory_bytes: None,
            cpu_ms: None,
            missing_layers: Vec::new(),
            egress_hosts: Vec::new(),
            error: None,
        };
        let (result, log) = (Bytes::new(), Vec::new());
        Self { status: CallStatus::Failed, result, head: None, error: Some(error), log, attempt }
    }
}

/// What takes calls.
pub trait DirectRoad: Send + Sync + fmt::Debug {
    /// Whether instances of this version can be made here.
    fn offers(&self, code: &Code) -> bool;

    /// Hands a call over.
    ///
    /// # Errors
    /// The call itself, where too many wait already.
    fn submit(&self, call: DirectCall) -> Result<(), Box<DirectCall>>;

    /// Ends a call that was handed over; false where it is not known, or has ended.
    fn cancel(&self, num: CallNum) -> bool;
}
