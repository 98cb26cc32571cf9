//! Calls without a row before the reply, handed to an instance that answers many: in this process, or over one connection
//! to a worker. Nothing is written before the reply.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use faena_domain::payload::MAX_INLINE;
use faena_domain::plan::CallPath;
use faena_domain::{CallError, CallNum, CallStatus, ErrorKind, FunctionId, FunctionName, Layer, Payload};
use faena_invoker::{Invocation, Invoker};
use faena_protocol::direct::{HttpHead, HttpRequest, InvocationEnd};
use faena_protocol::records::{CallRecord, Code, EndedCall};
use faena_scheduler::statistics::CallSample;
use faena_scheduler::{BacklogPermit, DirectInFlight, unix_ms};
use tokio::sync::oneshot;

use super::{HttpCall, QUEUE_MS, reply};
use crate::app::App;
use crate::body;
use crate::problem::{Reply, busy, stopping};
use crate::trace::Timing;
use crate::versions::Current;

/// What is known of a call from its beginning.
struct RunningDirect {
    num: CallNum,
    function: FunctionId,
    code: Arc<Code>,
    params: Bytes,
    /// The body, where it is not the params.
    body: Option<Bytes>,
    request: Arc<HttpRequest>,
    created_at: i64,
    traceparent: Arc<str>,
    /// What has it.
    invoker: Arc<dyn Invoker>,
}

impl RunningDirect {
    /// The record without what it was called with.
    fn head(&self) -> CallRecord {
        let head = CallRecord::begin(self.num, &self.code, self.created_at, self.traceparent.to_string());
        CallRecord { request: Some(Arc::clone(&self.request)), ..head }
    }
}

impl DirectInFlight for RunningDirect {
    fn function(&self) -> &FunctionName {
        &self.code.function
    }

    fn record(&self) -> CallRecord {
        let params = inline(&self.params).unwrap_or_else(Payload::empty);
        let body = self.body.as_deref().and_then(inline);
        CallRecord { params, body, status: CallStatus::Running, ..self.head() }
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

/// Hands a call to an instance and replies with its end. The call is recorded behind the reply, whether or not the client
/// still waits for it.
pub(super) async fn run(
    app: &App,
    invoker: &Arc<dyn Invoker>,
    current: &Current,
    call: HttpCall,
    permit: BacklogPermit,
) -> Reply<Response<Body>> {
    let HttpCall { num, request, params, body, traceparent, held, is_head } = call;
    let traceparent: Arc<str> = traceparent.into();
    let timeout_ms = current.code.limits.timeout.0;
    let created_at = unix_ms();
    let begun = Arc::new(RunningDirect {
        num,
        function: current.code.function_id(),
        code: Arc::clone(&current.code),
        params,
        body,
        request,
        created_at,
        traceparent: Arc::clone(&traceparent),
        invoker: Arc::clone(invoker),
    });
    app.in_flight().direct(begun.function.namespace.clone(), num, Arc::<RunningDirect>::clone(&begun));
    let (tell, ended) = oneshot::channel();
    let call = Invocation {
        num,
        code: Arc::clone(&begun.code),
        params: begun.params.clone(),
        body: begun.body.clone(),
        request: Arc::clone(&begun.request),
        timeout_ms,
        deadline: Instant::now() + Duration::from_millis(timeout_ms + QUEUE_MS),
        deadline_unix_ms: created_at.saturating_add(i64::try_from(timeout_ms).unwrap_or(i64::MAX)),
        traceparent: Arc::clone(&traceparent),
        done: Box::new({
            let (app, begun) = (app.clone(), Arc::clone(&begun));
            move |end: InvocationEnd| {
                let timing = Timing::from(&end.attempt);
                let answer = (end.status, end.result.clone(), end.head.clone(), end.error.clone(), timing);
                // The call holds memory for its body until it is written, whether or not its client waits.
                record(&app, &begun, end, (permit, held));
                // The client may have gone.
                let _ = tell.send(answer);
            }
        }),
    };
    if invoker.submit(call).is_err() {
        app.in_flight().remove(num);
        return Err(busy());
    }
    let Ok((status, result, head, error, timing)) = ended.await else {
        app.in_flight().remove(num);
        return Err(stopping());
    };
    let mut response = respond((status, result), head, error, is_head);
    reply::complete(response.headers_mut(), num, &traceparent, Some(timing));
    Ok(response)
}

/// The answer of a call that has ended: the function's own, or what went wrong.
fn respond(
    (status, result): (CallStatus, Bytes),
    head: Option<HttpHead>,
    error: Option<CallError>,
    is_head: bool,
) -> Response<Body> {
    match (status, head, error) {
        (_, Some(head), error) => reply::passed_on(head, result, error.is_some(), is_head),
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
fn record(app: &App, begun: &Arc<RunningDirect>, end: InvocationEnd, (permit, held): (BacklogPermit, body::Whole)) {
    let InvocationEnd { status, result, error, log, mut attempt, head } = end;
    let sample = CallSample::new(CallPath::Direct, status, Some(&attempt));
    app.scheduler().statistics().record(&begun.function, &sample);
    attempt.error.clone_from(&error);
    if let Some(error) = &error {
        // One line for each failed call, wherever it ran.
        tracing::info!(call = %begun.num, function = %begun.code.function, kind = ?error.kind, layer = ?error.layer, "a call failed");
    }
    // Its headers went with the answer; the record tells its status.
    let head = head.map(|head| HttpHead { headers: Vec::new(), ..head });
    let ended_at = Some(unix_ms());
    let call = CallRecord { status, error, head, attempts: vec![attempt], ended_at, ..begun.head() };
    let ended = EndedCall { namespace: begun.code.namespace.clone(), call, direct: true, timeout_ms: None };
    let body = match &begun.body {
        None => Some(None),
        Some(body) => inline(body).map(Some),
    };
    if let (Some(params), Some(result), Some(logs), Some(body)) =
        (inline(&begun.params), inline(&result), inline(&log), body)
    {
        let call = CallRecord { params, body, result, logs, ..ended.call };
        return app.completions().write(EndedCall { call, ..ended }, permit);
    }
    let (app, begun) = (app.clone(), Arc::clone(begun));
    let bytes = (result.len() + log.len()) as u64;
    app.in_flight().storing(ended.namespace.clone(), begun.num, Arc::<RunningDirect>::clone(&begun), bytes);
    // Naming a large payload by its digest, and writing it, takes a while.
    app.shared().clone().spawn(async move {
        let blobs = app.blobs();
        let stored = async {
            let params = blobs.payload(begun.params.clone()).await?;
            let (result, logs) = (blobs.payload(result).await?, blobs.payload(log).await?);
            let body = match &begun.body {
                Some(body) => Some(blobs.payload(body.clone()).await?),
                None => None,
            };
            Ok::<_, faena_blob::BlobError>(EndedCall {
                call: CallRecord { params, body, result, logs, ..ended.call.clone() },
                ..ended.clone()
            })
        };
        let whole = stored.await.unwrap_or_else(|error| {
            tracing::error!(%error, call = %begun.num, "the payloads of a call could not be kept");
            ended
        });
        app.completions().write(whole, permit);
        drop(held);
    });
}
