//! One request to the process, and its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use faena_domain::ErrorKind;
use faena_domain::limits::MAX_RESULT;
use faena_header_case::{Head, canonical};
use faena_invoker::{BodyStream, Direction, Meter, Observed, PipeReceiver, RequestBody, Seen, pipe};
use faena_protocol::direct::{Header, HttpHead, HttpRequest};
use faena_protocol::records::Code;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::{HeaderMap, Request, Response, StatusCode, header};
use tokio_util::sync::CancellationToken;

use super::connections::{Client, Outgoing, Sender};
use super::error::ExchangeError;
use super::{Answer, passage};
use crate::call::InstanceCall;
use crate::server::CHUNK;
use crate::server::answer::{ServerResponse, is_passed_on};
use crate::server::stream::StreamBounds;

/// The most interim answers (1xx) of one request: servers send one or two.
const MAX_INTERIMS: usize = 16;

/// A request on its way to the process, with all that it needs.
pub(in crate::server) struct Exchange {
    client: Client,
    request: Result<Request<Outgoing>, ExchangeError>,
    /// The request as it came, for the names of its headers.
    head: Option<Arc<HttpRequest>>,
    /// The bytes that the client sends after the handshake of a WebSocket.
    upgrade: Option<BodyStream>,
    is_sent: Arc<AtomicBool>,
    /// Whether the answer may be a stream.
    takes_stream: bool,
    meter: Meter,
    upload: Arc<Upload>,
}

/// How a request's body stands that is a stream.
#[derive(Debug, Default)]
struct Upload {
    /// All of it has passed.
    has_ended: AtomicBool,
    /// The client left before it had sent all of it.
    has_left: AtomicBool,
}

impl Exchange {
    /// Takes the request out of a call.
    pub(in crate::server) fn new(client: &Client, code: &Code, call: &mut InstanceCall) -> Self {
        call.is_sent.store(false, Ordering::Relaxed);
        let (meter, upload) = (Meter::default(), Arc::<Upload>::default());
        let metered = |body: BodyStream| {
            let (meter, upload) = (meter.clone(), Arc::clone(&upload));
            let observe = move |seen: Seen<'_>| match seen {
                Seen::Data(data) => meter.add(Direction::Request, data.len()),
                Seen::End => upload.has_ended.store(true, Ordering::Relaxed),
                Seen::Broken => upload.has_left.store(true, Ordering::Relaxed),
            };
            Observed::new(body, observe).boxed_unsync()
        };
        let (body, upgrade) = match call.take_stream() {
            Some((body, false)) => (Either::Right(metered(body)), None),
            Some((body, true)) => {
                // The handshake itself has no body.
                upload.has_ended.store(true, Ordering::Relaxed);
                (Either::Left(Full::default()), Some(metered(body)))
            }
            None => {
                upload.has_ended.store(true, Ordering::Relaxed);
                (Either::Left(Full::new(call.raw_body())), None)
            }
        };
        Self {
            client: client.clone(),
            request: build(call, code, body, upgrade.is_some()),
            head: call.request.clone(),
            upgrade,
            is_sent: Arc::clone(&call.is_sent),
            takes_stream: call.takes_stream(),
            meter,
            upload,
        }
    }

    /// Sends the request and reads the answer. An answer that is a stream is written to a pipe, whose reading side `begin` takes;
    /// `begin` returns false if the call has ended meanwhile. Interim answers go to `inform`.
    pub(in crate::server) async fn run(
        self,
        bounds: StreamBounds,
        inform: impl Fn(HttpHead) + Send + Sync + 'static,
        begin: impl FnOnce(HttpHead, PipeReceiver) -> bool,
    ) -> Result<Answer, ExchangeError> {
        let mut request = self.request?;
        let flooded = CancellationToken::new();
        let take = interims(inform, flooded.clone());
        hyper::ext::on_informational(&mut request, move |interim| take(interim.status(), interim.headers()));
        let sent = tokio::select! {
            sent = send(&self.client, request, self.head.as_deref(), &self.is_sent) => sent,
            () = flooded.cancelled() => {
                let message = format!("the function sent more than {MAX_INTERIMS} interim answers");
                return Err(ExchangeError::new(ErrorKind::Output, message));
            }
        };
        let (sender, response) = match sent {
            Ok(sent) => sent,
            // The function is told by its connection, and is not to blame.
            Err(_) if self.upload.has_left.load(Ordering::Relaxed) => return Err(ExchangeError::client_left()),
            Err(error) => {
                let body = error.body.or(self.upgrade.map(RequestBody::Upgrade));
                return Err(ExchangeError { body, ..error });
            }
        };
        let head = head_of(&response, sender.names.take_head());
        let length = response.body().size_hint().exact();
        let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let is_short = length.is_some_and(|length| length <= CHUNK as u64);
        let is_wanted = if is_upgrade { self.upgrade.is_some() } else { is_passed_on(head.status) };
        if !is_wanted || !self.takes_stream || (is_short && !is_upgrade) {
            let body = read(response).await?;
            keep(&self.client, sender, &self.upload);
            return Ok(Answer::Whole(ServerResponse { head, body }));
        }
        let (to, receiver) = pipe(length);
        if !begin(head.clone(), receiver) {
            return Err(ExchangeError::new(ErrorKind::Cancelled, "the call has ended"));
        }
        let end = match self.upgrade {
            Some(client) if is_upgrade => passage::tunnel(head, (response, client), to, &self.meter, bounds).await,
            _ => {
                let has_left = || self.upload.has_left.load(Ordering::Relaxed);
                passage::pass_on(head, (response.into_body(), has_left), to, &self.meter, bounds).await
            }
        };
        if end.failure.is_none() && !is_upgrade {
            keep(&self.client, sender, &self.upload);
        }
        Ok(Answer::Streamed(end))
    }
}

/// Handles interim answers: passes the first ones on, and ends the exchange if there are too many.
fn interims(
    inform: impl Fn(HttpHead) + Send + Sync + 'static,
    flooded: CancellationToken,
) -> impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static {
    let count = AtomicUsize::new(0);
    move |status, headers| {
        if count.fetch_add(1, Ordering::Relaxed) >= MAX_INTERIMS {
            return flooded.cancel();
        }
        // We said ourselves whether to go on with the body.
        if status != StatusCode::CONTINUE {
            let headers =
                headers.iter().map(|(name, value)| Header(canonical(name.as_str()), value.as_bytes().to_vec()));
            inform(HttpHead { status: status.as_u16(), headers: headers.collect() });
        }
    }
}

/// Keeps a connection for the next call, unless the function answered before the whole request had passed: hyper would go on
/// sending it.
fn keep(client: &Client, sender: Sender, upload: &Upload) {
    if upload.has_ended.load(Ordering::Relaxed) {
        client.keep(sender);
    }
}

/// Sends a request on a kept connection, or on a new one. It is sent again, once and on a new connection, where the kept one
/// had been closed before anything of the request was written, or where the method may be repeated and no answer came (RFC
/// 9110, 9.2.2).
async fn send(
    client: &Client,
    request: Request<Outgoing>,
    head: Option<&HttpRequest>,
    is_sent: &AtomicBool,
) -> Result<(Sender, Response<Incoming>), ExchangeError> {
    let Some(mut sender) = client.kept().await else { return send_anew(client, request, head, is_sent).await };
    sender.write_names(head);
    is_sent.store(true, Ordering::Relaxed);
    let again = repeatable(&request);
    match sender.requests.try_send_request(request).await {
        Ok(response) => Ok((sender, response)),
        Err(mut refused) => match (refused.take_message(), again) {
            (Some(unwritten), _) => {
                is_sent.store(false, Ordering::Relaxed);
                send_anew(client, unwritten, head, is_sent).await
            }
            // What may have ended the process is not tried on another one.
            (None, Some(again)) if !refused.error().is_parse() => send_anew(client, again, head, is_sent)
                .await
                .map_err(|error| ExchangeError { is_unsent: false, ..error }),
            (None, _) => Err(ExchangeError::broken(refused.error())),
        },
    }
}

/// A copy of a request that may be sent twice.
fn repeatable(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    let Either::Left(body) = request.body() else { return None };
    if !request.method().is_idempotent() {
        return None;
    }
    let mut copy = Request::new(Either::Left(body.clone()));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    Some(copy)
}

/// Sends a request on a new connection. Where there is none its body is returned, for another instance.
async fn send_anew(
    client: &Client,
    request: Request<Outgoing>,
    head: Option<&HttpRequest>,
    is_sent: &AtomicBool,
) -> Result<(Sender, Response<Incoming>), ExchangeError> {
    let mut sender = match client.connect().await {
        Ok(sender) => sender,
        Err(error) => {
            let Either::Right(body) = request.into_body() else { return Err(error) };
            return Err(ExchangeError { body: Some(RequestBody::Stream(body)), ..error });
        }
    };
    is_sent.store(true, Ordering::Relaxed);
    sender.write_names(head);
    let response = sender.requests.send_request(request).await.map_err(|error| ExchangeError::broken(&error))?;
    Ok((sender, response))
}

/// The request that goes to the process: the call's own, or its params as JSON.
fn build(
    call: &InstanceCall,
    code: &Code,
    body: Outgoing,
    is_upgrade: bool,
) -> Result<Request<Outgoing>, ExchangeError> {
    let json = || HttpRequest {
        method: "POST".to_owned(),
        path: "/".to_owned(),
        headers: vec![Header("content-type".to_owned(), b"application/json".to_vec())],
        ..HttpRequest::default()
    };
    let request = call.request.clone().unwrap_or_else(|| Arc::new(json()));
    let mut built = Request::builder().method(request.method.as_str()).uri(request.target().as_str());
    if !request.headers.iter().any(|Header(name, _)| name.eq_ignore_ascii_case("host")) {
        built = built.header("host", "localhost");
    }
    built = built
        .header("faena-call", call.num.0)
        .header("faena-function", code.function.to_string())
        .header("traceparent", &*call.traceparent);
    for Header(name, value) in
        request.headers.iter().filter(|Header(name, _)| !name.eq_ignore_ascii_case("traceparent"))
    {
        built = built.header(name.as_str(), value.as_slice());
    }
    if is_upgrade {
        built = built.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "websocket");
    } else if body.size_hint().exact() == Some(0) {
        // A request of a method that has a body says that there is none (RFC 9110, 8.6).
        if matches!(request.method.as_str(), "POST" | "PUT" | "PATCH") {
            built = built.header(header::CONTENT_LENGTH, 0);
        }
    } else if body.size_hint().exact().is_none() {
        // hyper would send a body of unknown length with some methods only.
        built = built.header(header::TRANSFER_ENCODING, "chunked");
    }
    let invalid =
        |error| ExchangeError::new(ErrorKind::Infrastructure, format!("the request cannot be passed on: {error}"));
    built.body(body).map_err(invalid)
}

/// The head of an answer, with the names of its headers as they were written.
fn head_of(response: &Response<Incoming>, written: Option<Head>) -> HttpHead {
    let headers = response.headers().iter().map(|(name, value)| {
        let written = written.as_ref().and_then(|head| head.name(name.as_str()));
        Header(written.map_or_else(|| canonical(name.as_str()), str::to_owned), value.as_bytes().to_vec())
    });
    HttpHead { status: response.status().as_u16(), headers: headers.collect() }
}

/// Reads the body of an answer.
async fn read(response: Response<Incoming>) -> Result<Bytes, ExchangeError> {
    let most = usize::try_from(MAX_RESULT).unwrap_or(usize::MAX);
    match Limited::new(response.into_body(), most).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ExchangeError::new(ErrorKind::Output, format!("the answer is over the limit of {MAX_RESULT} bytes")))
        }
        Err(error) => Err(ExchangeError::new(ErrorKind::Exception, format!("the function's HTTP: {error}"))),
    }
}
