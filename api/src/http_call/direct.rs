//! Calls without a row before the reply, handed to an instance that answers many: in this process, or over one connection
//! to a worker. Nothing is written before the reply.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use faena_auth::AccountId;
use faena_blob::{BlobError, NamespaceBlobs};
use faena_domain::payload::MAX_INLINE;
use faena_domain::plan::CallPath;
use faena_domain::{CallError, CallNum, CallStatus, ErrorKind, FunctionId, FunctionName, Layer, Payload};
use faena_header_case::HeadNames;
use faena_invoker::{Caller, Direction, Invocation, Invoker, Meter, RequestBody, StreamedAnswer};
use faena_protocol::direct::{HttpHead, HttpRequest, InvocationEnd, Streamed};
use faena_protocol::records::{CallRecord, Code, EndedCall};
use faena_scheduler::statistics::CallSample;
use faena_scheduler::{BacklogPermit, DirectInFlight, unix_ms};
use tokio::sync::oneshot;

use super::recorded::{self, RecordedBody};
use super::stream;
use super::websocket::Handshake;
use super::{HttpCall, QUEUE_MS, Waiting, reply};
use crate::app::App;
use crate::body;
use crate::entrance::Entrance;
use crate::problem::{Reply, busy, stopping};
use crate::trace::Timing;
use crate::versions::Current;

/// How much later than its caller a call is judged by its age: one that began at once has run out of its own time by then, and
/// its record says so.
const AFTER_CALLER: Duration = Duration::from_millis(100);

/// What is known of a call from its beginning.
struct RunningDirect {
    num: CallNum,
    function: FunctionId,
    code: Arc<Code>,
    params: Bytes,
    body: RecordedBody,
    request: Arc<HttpRequest>,
    created_at: i64,
    traceparent: Arc<str>,
    account: Option<AccountId>,
    /// Counts the bytes of bodies that are streams.
    meter: Meter,
    /// What has it.
    invoker: Arc<dyn Invoker>,
}

impl RunningDirect {
    /// The record without what it was called with.
    fn head(&self) -> CallRecord {
        let head = CallRecord::begin(self.num, &self.code, self.created_at, self.traceparent.to_string());
        CallRecord { request: Some(Arc::clone(&self.request)), account: self.account.clone(), ..head }
    }

    /// The bytes that have passed until now; none if no body is a stream.
    fn streamed(&self) -> Option<Streamed> {
        (self.body.is_stream() || self.meter.total() > 0).then(|| Streamed {
            request_bytes: self.meter.passed(Direction::Request),
            response_bytes: self.meter.passed(Direction::Response),
            request_cut: self.body.is_cut(),
        })
    }

    /// The bytes that have passed in all. `answered` is the worker's count, if the answer was a stream; `whole` is the length of an
    /// answer that was not.
    fn streamed_in_all(&self, answered: Option<Streamed>, whole: usize) -> Option<Streamed> {
        let passed = self.meter.passed(Direction::Response);
        if answered.is_none() && !self.body.is_stream() && passed == 0 {
            return None;
        }
        // The worker sends no count of a stream that was cancelled.
        let response_bytes = answered.map_or(passed.max(whole as u64), |streamed| streamed.response_bytes);
        let request_bytes = self.meter.passed(Direction::Request);
        Some(Streamed { request_bytes, response_bytes, request_cut: self.body.is_cut() })
    }
}

impl DirectInFlight for RunningDirect {
    fn function(&self) -> &FunctionName {
        &self.code.function
    }

    fn record(&self) -> CallRecord {
        let params = inline(&self.params).unwrap_or_else(Payload::empty);
        let body = self.body.bytes().as_deref().and_then(inline);
        CallRecord { params, body, status: CallStatus::Running, streamed: self.streamed(), ..self.head() }
    }

    fn cancel(&self) {
        // One that has ended meanwhile is not there any more.
        self.invoker.cancel(self.num);
    }
}

/// Bytes that a record holds itself; none where they belong into the blob store.
fn inline(bytes: &[u8]) -> Option<Payload> {
    // However long it is, the length is told at once.
    let bytes = (bytes.len() <= MAX_INLINE).then_some(bytes)?;
    Some(Payload::Text(std::str::from_utf8(bytes).ok()?.to_owned()))
}

/// An event for the client of a call.
enum Told {
    /// All of its answer, or why there is none.
    Whole(WholeAnswer),
    /// Its answer has begun.
    Streams(StreamedAnswer),
}

/// An end as far as it concerns the client.
struct WholeAnswer {
    status: CallStatus,
    result: Bytes,
    head: Option<HttpHead>,
    error: Option<CallError>,
    timing: Timing,
}

/// Tells the client of a call, and records its end, whether or not the client still waits.
struct Teller {
    app: App,
    begun: Arc<RunningDirect>,
    permit: BacklogPermit,
    /// The call holds memory for its body until it is written.
    held: Option<body::Whole>,
    /// The client's connection, where the client takes interim answers.
    interim: Option<HeadNames>,
    entrance: Entrance,
    tell: Option<oneshot::Sender<Told>>,
}

impl Teller {
    fn tell(&mut self, told: Told) {
        if let Some(tell) = self.tell.take() {
            // The client may have gone.
            let _ = tell.send(told);
        }
    }
}

impl Caller for Teller {
    fn informs(&mut self, head: HttpHead) {
        if let (Some(connection), Some(_)) = (&self.interim, &self.tell) {
            connection.write_interim(&reply::interim(&head, self.entrance));
        }
    }

    fn streams(&mut self, answer: StreamedAnswer) {
        self.tell(Told::Streams(answer));
    }

    fn ended(mut self: Box<Self>, end: InvocationEnd) {
        let told = self.tell.is_some().then(|| {
            let timing = Timing::from(&end.attempt);
            let (result, head, error) = (end.result.clone(), end.head.clone(), end.error.clone());
            Told::Whole(WholeAnswer { status: end.status, result, head, error, timing })
        });
        let tell = self.tell.take();
        let Self { app, begun, permit, held, .. } = *self;
        record(&app, &begun, end, (permit, held));
        if let (Some(tell), Some(told)) = (tell, told) {
            // The client may have gone.
            let _ = tell.send(told);
        }
    }
}

/// Hands a call to an instance and replies with its end, or with its answer while that comes. The call is recorded behind
/// the reply, whether or not the client still waits for it.
pub(super) async fn run(
    app: &App,
    invoker: &Arc<dyn Invoker>,
    current: &Current,
    call: HttpCall,
    (permit, waiting): (BacklogPermit, Waiting),
    handshake: Option<Handshake>,
) -> Reply<Response<Body>> {
    let HttpCall {
        num,
        request,
        private,
        params,
        body,
        traceparent,
        held,
        is_head,
        timeout_ms,
        ends_by,
        interim,
        entrance,
    } = call;
    let meter = Meter::default();
    let (body, recorded) = recorded::observe(body, &meter);
    let begun = Arc::new(RunningDirect {
        num,
        function: current.code.function_id(),
        code: Arc::clone(&current.code),
        params,
        body: recorded,
        request,
        created_at: unix_ms(),
        traceparent: traceparent.into(),
        account: waiting.account(),
        meter,
        invoker: Arc::clone(invoker),
    });
    app.in_flight().direct(begun.function.namespace.clone(), num, Arc::<RunningDirect>::clone(&begun));
    let (tell, told) = oneshot::channel();
    let caller =
        Teller { app: app.clone(), begun: Arc::clone(&begun), permit, held, interim, entrance, tell: Some(tell) };
    let request = HttpRequest::with_headers(&begun.request, &private);
    let call = invocation(&begun, (body, request), (timeout_ms, ends_by), caller);
    if invoker.submit(call).is_err() {
        app.in_flight().remove(num);
        return Err(busy());
    }
    let Ok(told) = told.await else {
        app.in_flight().remove(num);
        return Err(stopping());
    };
    let (mut response, timing) = match told {
        Told::Whole(ended) => {
            let timing = ended.timing;
            (respond(ended, entrance, is_head), timing)
        }
        Told::Streams(answer) => {
            let timing = Timing::begun(answer.start_ms, answer.run_ms);
            (stream::respond(app, entrance, answer, &begun.meter, (waiting, handshake)), timing)
        }
    };
    reply::complete(response.headers_mut(), entrance, num, &begun.traceparent, Some(timing));
    Ok(response)
}

/// What an instance is handed of a call.
fn invocation(
    begun: &RunningDirect,
    (body, request): (RequestBody, Arc<HttpRequest>),
    (timeout_ms, ends_by): (u64, Option<Instant>),
    caller: Teller,
) -> Invocation {
    Invocation {
        num: begun.num,
        code: Arc::clone(&begun.code),
        params: begun.params.clone(),
        body,
        request,
        timeout_ms,
        deadline: match ends_by {
            Some(caller) => caller + AFTER_CALLER,
            None => Instant::now() + Duration::from_millis(timeout_ms + QUEUE_MS),
        },
        deadline_unix_ms: begun.created_at.saturating_add(i64::try_from(timeout_ms).unwrap_or(i64::MAX)),
        traceparent: Arc::clone(&begun.traceparent),
        caller: Box::new(caller),
    }
}

/// The answer of a call that has ended: the function's own, or what went wrong.
fn respond(
    WholeAnswer { status, result, head, error, .. }: WholeAnswer,
    entrance: Entrance,
    is_head: bool,
) -> Response<Body> {
    match (status, head, error) {
        (_, Some(head), error) => reply::passed_on((head, result), entrance, error.is_some(), is_head),
        (CallStatus::Done, None, _) => reply::bytes(result),
        (_, None, Some(error)) => reply::failed(&error),
        (_, None, None) => reply::failed(&missing()),
    }
}

fn missing() -> CallError {
    let message = "the call ended without a word";
    CallError::new(ErrorKind::Infrastructure, Layer::Run, message)
}

/// Writes a call behind its answer.
fn record(
    app: &App,
    begun: &Arc<RunningDirect>,
    end: InvocationEnd,
    (permit, held): (BacklogPermit, Option<body::Whole>),
) {
    let InvocationEnd { status, result, error, log, mut attempt, head, streamed } = end;
    let sample = CallSample::new(CallPath::Direct, status, Some(&attempt));
    app.scheduler().statistics().record(&begun.function, &sample);
    attempt.error.clone_from(&error);
    if let Some(error) = &error {
        // One line for each failed call, wherever it ran.
        tracing::info!(call = %begun.num, function = %begun.code.function, kind = ?error.kind, layer = ?error.layer, "a call failed");
    }
    // Its headers went with the answer; the record tells its status.
    let head = head.map(|head| HttpHead { headers: Vec::new(), ..head });
    let streamed = begun.streamed_in_all(streamed, result.len());
    let ended_at = Some(unix_ms());
    let call = CallRecord { status, error, head, streamed, attempts: vec![attempt], ended_at, ..begun.head() };
    let ended = EndedCall { namespace: begun.code.namespace.clone(), call, direct: true, timeout_ms: None };
    let body = begun.body.bytes();
    let kept = match &body {
        None => Some(None),
        Some(body) => inline(body).map(Some),
    };
    if let (Some(params), Some(result), Some(logs), Some(body)) =
        (inline(&begun.params), inline(&result), inline(&log), kept)
    {
        let call = CallRecord { params, body, result, logs, ..ended.call };
        return app.completions().write(EndedCall { call, ..ended }, permit);
    }
    let bytes = (result.len() + log.len()) as u64;
    app.in_flight().storing(ended.namespace.clone(), begun.num, Arc::<RunningDirect>::clone(begun), bytes);
    let payloads = Payloads { params: begun.params.clone(), body, result, log };
    let app = app.clone();
    // Naming a large payload by its digest, and writing it, takes a while.
    app.shared().clone().spawn(async move {
        let whole = payloads.stored(&app.blobs_of(&ended.namespace), &ended).await.unwrap_or_else(|error| {
            tracing::error!(%error, call = %ended.call.num, "the payloads of a call could not be kept");
            ended
        });
        app.completions().write(whole, permit);
        drop(held);
    });
}

/// What a call got and put out, where that is too large for its record.
struct Payloads {
    params: Bytes,
    body: Option<Bytes>,
    result: Bytes,
    log: Vec<u8>,
}

impl Payloads {
    /// The record with these, as texts or names of blobs.
    async fn stored(self, blobs: &NamespaceBlobs, ended: &EndedCall) -> Result<EndedCall, BlobError> {
        let params = blobs.payload(self.params).await?;
        let (result, logs) = (blobs.payload(self.result).await?, blobs.payload(self.log).await?);
        let body = match self.body {
            Some(body) => Some(blobs.payload(body).await?),
            None => None,
        };
        Ok(EndedCall { call: CallRecord { params, body, result, logs, ..ended.call.clone() }, ..ended.clone() })
    }
}
