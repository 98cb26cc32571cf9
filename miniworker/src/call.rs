//! A call on its way into an instance, and its end.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;
use faena_blob::BlobStore;
use faena_domain::call::{Placement, StartKind};
use faena_domain::limits::MAX_BODY;
use faena_domain::units::{MB, Millis};
use faena_domain::{Attempt, CallError, CallNum, CallStatus, EngineKind, Epoch, ErrorKind, Layer};
use faena_invoker::{BodyStream, Caller, Invocation, RequestBody, StreamedAnswer};
use faena_protocol::direct::{HttpHead, HttpRequest, InvocationEnd};
use faena_protocol::records::{CallJob, Code};

use crate::Node;
use crate::failure::{AttemptFailure, StartError};
use crate::process::LeaseEnd;

/// Who is told of a call.
pub(crate) enum Told {
    /// Who handed over a call of the direct path.
    Caller(Box<dyn Caller>),
    /// The task of a scheduled attempt.
    Attempt(Box<dyn FnOnce(InvocationEnd) + Send>),
}

/// Which attempt a call is, for its record.
#[derive(Clone, Debug)]
struct AttemptOf {
    node: Arc<Node>,
    engine: EngineKind,
    epoch: Epoch,
    /// How long it waited before it came to the worker.
    queue_ms: Millis,
    placement: Option<Placement>,
}

/// A call, and who is told of its end.
pub struct InstanceCall {
    /// Its number.
    pub num: CallNum,
    /// Its attempt, from 1.
    pub(crate) attempt: u32,
    attempt_of: AttemptOf,
    pub(crate) params: Bytes,
    /// The request's body, where that is not the params.
    pub(crate) body: RequestBody,
    /// The HTTP request that it is, where it came as one.
    pub(crate) request: Option<Arc<HttpRequest>>,
    pub(crate) timeout_ms: u64,
    /// When the attempt has to have ended.
    pub deadline: Instant,
    /// Whether running out of it is the call's end, or only the attempt's.
    pub(crate) expires: bool,
    /// Whether the attempt's time begins when an instance takes it, rather than now.
    pub(crate) begins_late: bool,
    pub(crate) deadline_unix_ms: i64,
    pub(crate) traceparent: Arc<str>,
    /// Until when the agent lets it run; none if its client's api shares our process.
    pub(crate) lease: Option<LeaseEnd>,
    /// Called when it begins.
    pub(crate) started: Option<Box<dyn FnOnce() + Send>>,
    pub(crate) told: Told,
    /// When it was handed over.
    pub(crate) since: Instant,
    /// Whether an instance had to be made for it.
    pub is_cold: bool,
    /// Whether an instance gave it back that took no connections; it is not given back again.
    pub(crate) has_moved: bool,
    /// Set when something of it may have reached a process that speaks HTTP.
    pub(crate) is_sent: Arc<AtomicBool>,
    /// The request's body is a stream, and on its way to a process.
    pub(crate) is_body_taken: bool,
}

/// What an attempt is called with, read where it was stored.
#[derive(Debug)]
pub struct CallInput {
    /// When it was begun to be read: the attempt's time runs since then.
    since: Instant,
    params: Bytes,
    body: Option<Bytes>,
}

impl CallInput {
    /// Reads it.
    ///
    /// # Errors
    /// [`AttemptFailure`].
    pub async fn load(blobs: &BlobStore, job: &CallJob) -> Result<Self, AttemptFailure> {
        let (since, blobs) = (Instant::now(), blobs.of(&job.code.namespace));
        let params = blobs.bytes(&job.params, MAX_BODY).await?;
        let body = match &job.body {
            Some(body) => Some(blobs.bytes(body, MAX_BODY).await?),
            None => None,
        };
        Ok(Self { since, params, body })
    }

    /// The params, JSON.
    pub(crate) fn params(&self) -> &Bytes {
        &self.params
    }

    /// The standard input of a command: the body, or the params where that is the body.
    pub(crate) fn stdin(&self) -> &Bytes {
        self.body.as_ref().unwrap_or(&self.params)
    }
}

impl std::fmt::Debug for InstanceCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceCall").field("num", &self.num).finish_non_exhaustive()
    }
}

impl InstanceCall {
    /// A call of the direct path, whose deadline may come before that of an attempt.
    pub fn of_direct(call: Invocation, node: &Arc<Node>) -> Box<Self> {
        let since = Instant::now();
        Box::new(Self {
            num: call.num,
            attempt: 1,
            attempt_of: AttemptOf {
                node: Arc::clone(node),
                engine: call.code.engine.unwrap_or(EngineKind::Sandbox),
                epoch: Epoch(1),
                queue_ms: Millis::default(),
                placement: None,
            },
            params: call.params,
            body: call.body,
            request: Some(call.request),
            timeout_ms: call.timeout_ms,
            deadline: call.deadline,
            expires: true,
            // It may wait for its slot until its age is over; its attempt begins with its instance.
            begins_late: true,
            deadline_unix_ms: call.deadline_unix_ms,
            traceparent: call.traceparent,
            lease: None,
            started: None,
            told: Told::Caller(call.caller),
            since,
            is_cold: false,
            has_moved: false,
            is_sent: Arc::default(),
            is_body_taken: false,
        })
    }

    /// A call of a scheduled attempt. `started` is called when it begins in an instance, `done` with its end.
    pub fn of_job(
        (job, node): (&CallJob, &Arc<Node>),
        input: CallInput,
        lease: LeaseEnd,
        started: impl FnOnce() + Send + 'static,
        done: impl FnOnce(InvocationEnd) + Send + 'static,
    ) -> Box<Self> {
        let CallInput { since, params, body } = input;
        Box::new(Self {
            num: job.num,
            attempt: job.attempt,
            attempt_of: AttemptOf {
                node: Arc::clone(node),
                engine: job.code.engine.unwrap_or(EngineKind::Sandbox),
                epoch: job.epoch,
                queue_ms: Millis::from_millis(job.queue_ms),
                placement: job.placement,
            },
            params,
            body: body.map(RequestBody::Whole).unwrap_or_default(),
            request: job.request.clone(),
            timeout_ms: job.timeout_ms,
            deadline: since + Duration::from_millis(job.timeout_ms),
            expires: job.expires,
            begins_late: false,
            deadline_unix_ms: job.deadline_unix_ms,
            traceparent: job.traceparent.as_str().into(),
            lease: Some(lease),
            started: Some(Box::new(started)),
            told: Told::Attempt(Box::new(done)),
            since,
            is_cold: false,
            has_moved: false,
            is_sent: Arc::default(),
            is_body_taken: false,
        })
    }

    /// Tells its end.
    pub fn end(self, end: InvocationEnd) {
        match self.told {
            Told::Caller(caller) => caller.ended(end),
            Told::Attempt(done) => done(end),
        }
    }

    /// Makes the end of this call, with the fields that every end has. `began` is when its instance took it.
    pub(crate) fn ended(&self, began: Instant, status: CallStatus) -> InvocationEnd {
        let AttemptOf { node, engine, epoch, queue_ms, placement } = &self.attempt_of;
        let attempt = Attempt {
            attempt: self.attempt,
            worker: node.worker.clone(),
            engine: *engine,
            start: if self.is_cold { StartKind::Cold } else { StartKind::Warm },
            epoch: *epoch,
            placement: *placement,
            queue_ms: *queue_ms,
            start_ms: began.saturating_duration_since(self.since).into(),
            run_ms: began.elapsed().into(),
            exit: None,
            peak_memory_bytes: None,
            cpu_ms: None,
            missing_layers: node.engines.get(engine).map(|engine| engine.missing_layers()).unwrap_or_default(),
            egress: None,
            error: None,
        };
        let (result, log) = (Bytes::new(), Vec::new());
        InvocationEnd { status, result, head: None, error: None, log, attempt, streamed: None }
    }

    /// It was answered with a result.
    pub(crate) fn succeeded(&self, began: Instant, result: Bytes) -> InvocationEnd {
        InvocationEnd { result, ..self.ended(began, CallStatus::Done) }
    }

    /// It failed in its instance.
    pub(crate) fn failed(&self, began: Instant, error: CallError) -> InvocationEnd {
        InvocationEnd { error: Some(error), ..self.ended(began, CallStatus::Failed) }
    }

    /// Its time ran out in an instance.
    pub(crate) fn ran_late(&self, began: Instant) -> InvocationEnd {
        let (status, error) = self.late(Layer::Run, "its process ran");
        InvocationEnd { error: Some(error), ..self.ended(began, status) }
    }

    /// It never came into an instance.
    pub fn not_started(&self, error: StartError) -> InvocationEnd {
        let (status, error) = match error {
            StartError::Late => self.late(Layer::Start, "its instance was made"),
            error => {
                let error = error.into_call_error();
                let is_late = error.kind == ErrorKind::Timeout;
                (if is_late { CallStatus::Timeout } else { CallStatus::Failed }, error)
            }
        };
        InvocationEnd { error: Some(error), ..self.ended(Instant::now(), status) }
    }

    /// It was cancelled.
    pub fn cancelled(&self) -> InvocationEnd {
        let error = CallError::new(ErrorKind::Cancelled, Layer::Run, "the call was cancelled");
        InvocationEnd { error: Some(error), ..self.ended(Instant::now(), CallStatus::Cancelled) }
    }

    /// Takes the request's body out, where that is a stream, and whether it is that of a WebSocket.
    pub(crate) fn take_stream(&mut self) -> Option<(BodyStream, bool)> {
        if !self.body.is_stream() {
            return None;
        }
        self.is_body_taken = true;
        match std::mem::take(&mut self.body) {
            RequestBody::Stream(body) => Some((body, false)),
            RequestBody::Upgrade(body) => Some((body, true)),
            RequestBody::None | RequestBody::Whole(_) => None,
        }
    }

    /// Puts a body back that did not reach the process.
    pub(crate) fn restore(&mut self, body: Option<RequestBody>) {
        if let Some(body) = body {
            (self.body, self.is_body_taken) = (body, false);
        }
    }

    /// Whether its answer may be a stream: its caller reads it at once.
    pub(crate) fn takes_stream(&self) -> bool {
        matches!(self.told, Told::Caller(_))
    }

    /// Tells of an interim answer.
    pub(crate) fn inform(&mut self, head: HttpHead) {
        if let Told::Caller(caller) = &mut self.told {
            caller.informs(head);
        }
    }

    /// Tells that its answer has begun.
    pub(crate) fn stream(&mut self, answer: StreamedAnswer) {
        if let Told::Caller(caller) = &mut self.told {
            caller.streams(answer);
        }
    }

    /// An instance takes it: from now on its attempt's time runs, where it did not before.
    pub(crate) fn begin_attempt(&mut self) {
        if std::mem::take(&mut self.begins_late) {
            let end = Instant::now() + Duration::from_millis(self.timeout_ms);
            self.expires = self.deadline < end;
            self.deadline = self.deadline.min(end);
        }
    }

    /// Gives a call of the direct path back that there was no room for; none of a scheduled attempt.
    pub fn into_direct(self, code: &Arc<Code>) -> Option<Box<Invocation>> {
        let Told::Caller(caller) = self.told else { return None };
        Some(Box::new(Invocation {
            num: self.num,
            code: Arc::clone(code),
            params: self.params,
            body: self.body,
            request: self.request.unwrap_or_default(),
            timeout_ms: self.timeout_ms,
            deadline: self.deadline,
            deadline_unix_ms: self.deadline_unix_ms,
            traceparent: self.traceparent,
            caller,
        }))
    }

    /// What the process is told of the call, in JSON (docs/reference/handler-protocol.md).
    pub(crate) fn context(&self, code: &Code, out: &mut Vec<u8>) {
        // Names and trace contexts hold nothing that JSON escapes.
        let _ = write!(
            out,
            r#"{{"call":{},"function":"{}","version":{},"attempt":{},"deadlineMs":{},"memoryMb":{},"traceparent":"{}""#,
            self.num,
            code.function,
            code.version,
            self.attempt,
            self.deadline_unix_ms,
            code.limits.memory.0 / MB,
            self.traceparent
        );
        if let Some(request) = &self.request {
            out.extend_from_slice(b",\"request\":");
            request.write_context(out);
            if request.has_json {
                out.extend_from_slice(b",\"bodyIsParams\":true");
            }
        }
        out.push(b'}');
    }

    /// The body of its request, byte for byte, where that is no stream.
    pub(crate) fn raw_body(&self) -> Bytes {
        match (self.body.whole(), &self.request) {
            (Some(body), _) => body.clone(),
            (None, Some(request)) if !request.has_json => Bytes::new(),
            (None, _) => self.params.clone(),
        }
    }

    /// Whose end the deadline was: the call's, or only this attempt's.
    fn late(&self, layer: Layer, what: &str) -> (CallStatus, CallError) {
        if self.expires {
            let message = format!("the call reached its maxAgeMs while {what}");
            (CallStatus::Expired, CallError::new(ErrorKind::Expired, layer, message))
        } else {
            let message = format!("the attempt took longer than {} ms while {what}", self.timeout_ms);
            (CallStatus::Timeout, CallError::new(ErrorKind::Timeout, layer, message))
        }
    }
}
