//! The direct road: from the request to an instance and back, within our process or over one connection.
//!
//! It takes what an instance that answers many calls can take at once; everything else goes by the dispatcher. Nothing
//! is written before the answer. Whoever waits may go: the call's end is recorded by whoever ends it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use axum::response::IntoResponse;
use bytes::Bytes;
use faena_domain::limits::MAX_BODY;
use faena_domain::payload::MAX_INLINE;
use faena_domain::{CallError, CallNum, CallStatus, Contract, ErrorKind, FunctionName, FunctionStatus, Layer, Payload};
use faena_protocol::direct::{DirectCall, DirectEnd, DirectRoad, HttpHead, HttpRequest};
use faena_protocol::records::{CallRecord, Code, EndedCall};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use crate::app::{App, Caller};
use crate::body;
use crate::dispatcher::unix_ms;
use crate::guard;
use crate::handed::{self, Handed, PREFIX};
use crate::problem::{Problem, Reply};
use crate::recorder::{Place, Running};
use crate::routes::direct::{self, QUEUE_MS};
use crate::routes::trace;
use crate::versions::Current;

/// The route that its requests are counted under.
pub(crate) const ROUTE: &str = "/f/{name}";

/// A request that is for this road, or the request itself where it is not.
pub(crate) enum Taken {
    Answered(Response<Body>),
    Not(Request<Incoming>),
}

/// Answers a request, if it can be answered here.
pub(crate) async fn take(app: &App, request: Request<Incoming>) -> Taken {
    if !request.uri().path().starts_with(PREFIX) {
        return Taken::Not(request);
    }
    let begun = Instant::now();
    // What is turned away is told by the road that everything else takes; nothing is asked of db for it.
    if guard::judge(app, request.uri(), request.headers()).is_err() {
        return Taken::Not(request);
    }
    let Some((road, current)) = target(app, &request).await else { return Taken::Not(request) };
    let response = call(app, &road, &current, request).await.unwrap_or_else(Problem::into_response);
    let metrics = app.metrics();
    match response.status() {
        StatusCode::OK => metrics.direct_ok.inc(),
        status => metrics.request(ROUTE, status.as_u16()).inc(),
    };
    metrics.request_seconds.observe(begun.elapsed().as_secs_f64());
    Taken::Answered(response)
}

/// The version that a request calls, where its instances can be called from here.
async fn target(app: &App, request: &Request<Incoming>) -> Option<(Arc<dyn DirectRoad>, Arc<Current>)> {
    let name = request.uri().path().strip_prefix(PREFIX)?.split('/').next()?;
    if request.headers().contains_key("idempotency-key") {
        return None;
    }
    let current = match app.versions().known(name) {
        Some(current) => current,
        // Whatever is wrong is told by the road that everything else takes.
        None => app.versions().of(&Caller::local().namespace, &name.parse::<FunctionName>().ok()?, None).await.ok()?,
    };
    let is_ours = current.status == FunctionStatus::Ready
        && current.code.serving.contract != Contract::Command
        && current.code.concurrency.is_none();
    let road = app.roads().iter().find(|road| is_ours && road.offers(&current.code))?;
    Some((Arc::clone(road), current))
}

/// What is known of a call from its beginning.
struct Begun {
    num: CallNum,
    code: Arc<Code>,
    params: Bytes,
    /// The body, where it is not the params.
    body: Option<Bytes>,
    request: Arc<HttpRequest>,
    created_at: i64,
    traceparent: Arc<str>,
}

impl Begun {
    /// The record without what it was called with.
    fn head(&self) -> CallRecord {
        let head = CallRecord::begin(self.num, &self.code, self.created_at, self.traceparent.to_string());
        CallRecord { request: Some(Arc::clone(&self.request)), ..head }
    }
}

impl Running for Begun {
    fn function(&self) -> &FunctionName {
        &self.code.function
    }

    fn record(&self) -> CallRecord {
        let params = inline(&self.params).unwrap_or_else(Payload::empty);
        let body = self.body.as_deref().and_then(inline);
        CallRecord { params, body, status: CallStatus::Running, ..self.head() }
    }
}

/// Bytes that a record holds itself; none where they belong into the blob store.
fn inline(bytes: &[u8]) -> Option<Payload> {
    // However long it is, the length is told at once.
    let bytes = (bytes.len() <= MAX_INLINE).then_some(bytes)?;
    Some(Payload::Text(std::str::from_utf8(bytes).ok()?.to_owned()))
}

async fn call(
    app: &App,
    road: &Arc<dyn DirectRoad>,
    current: &Current,
    request: Request<Incoming>,
) -> Reply<Response<Body>> {
    app.room().disk()?;
    let busy = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many calls are waited for").retry_after(1);
    let place = app.recorder().place().ok_or_else(busy)?;
    let Code { namespace, function, .. } = &*current.code;
    let _waiting = app.follow(namespace, function)?;
    let (parts, incoming) = request.into_parts();
    let held =
        body::read(app.room(), &parts.headers, Body::new(incoming), Some((namespace, function)), MAX_BODY).await?;
    let contract = current.code.serving.contract;
    let Handed { params, body, request } =
        handed::hand((&parts.method, &parts.uri, &parts.headers), contract, held.bytes())?;
    let num = app.numbers().next().await?;
    let traceparent: Arc<str> = trace::parent(&parts.headers).into();
    let timeout_ms = current.code.limits.timeout.0;
    let created_at = unix_ms();
    let begun = Arc::new(Begun {
        num,
        code: Arc::clone(&current.code),
        params,
        body,
        request,
        created_at,
        traceparent: Arc::clone(&traceparent),
    });
    let namespace = begun.code.namespace.clone();
    app.recorder().show_running(namespace, num, Arc::<Begun>::clone(&begun));
    let (tell, ended) = oneshot::channel();
    let call = DirectCall {
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
            move |end: DirectEnd| {
                let answer = (end.status, end.result.clone(), end.head.clone(), end.error.clone(), end.attempt.clone());
                // The call holds memory for its body whoever waits, until it is written.
                record(&app, &begun, end, (place, held));
                // Whoever waited may have gone.
                let _ = tell.send(answer);
            }
        }),
    };
    if road.submit(call).is_err() {
        app.recorder().forget(num);
        return Err(busy());
    }
    let Ok((status, result, head, error, attempt)) = ended.await else {
        app.recorder().forget(num);
        return Err(
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the platform is stopping").retry_after(1)
        );
    };
    let mut response = respond((status, result), head, error, parts.method == Method::HEAD);
    direct::seal(response.headers_mut());
    trace::tell(response.headers_mut(), num.0, &traceparent, Some(&attempt));
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
        (_, Some(head), error) => direct::passed_on(head, result, error.is_some(), is_head),
        (CallStatus::Done, None, _) => direct::bytes(result),
        (_, None, Some(error)) => direct::failed(&error),
        (_, None, None) => direct::failed(&missing()),
    }
}

fn missing() -> CallError {
    let message = "the call ended without a word";
    CallError::new(ErrorKind::Infrastructure, Layer::Run, message)
}

/// Writes a call behind its answer.
fn record(app: &App, begun: &Arc<Begun>, end: DirectEnd, (place, held): (Place, body::Whole)) {
    let DirectEnd { status, result, error, log, mut attempt, head } = end;
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
        return app.recorder().write(EndedCall { call, ..ended }, place);
    }
    let (app, begun) = (app.clone(), Arc::clone(begun));
    let bytes = (result.len() + log.len()) as u64;
    app.recorder().show_stored(ended.namespace.clone(), begun.num, Arc::<Begun>::clone(&begun), bytes);
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
        app.recorder().write(whole, place);
        drop(held);
    });
}
