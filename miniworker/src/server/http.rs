//! Calls of a process that speaks HTTP on its own loopback, over connections that its agent makes and hands out.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use faena_domain::limits::MAX_RESULT;
use faena_domain::{CallError, ErrorKind, Layer};
use faena_header_case::{Head, HeadNames, HeadStream, canonical};
use faena_protocol::direct::{Header, HttpHead, HttpRequest};
use faena_protocol::records::Code;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, MutexGuard};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};

use super::Protocol;
use crate::call::{InstanceCall, InstanceEnd};

/// Where the process listens: `$PORT`.
pub(crate) const PORT: u16 = 8080;

/// A connection on which a request can be sent.
#[derive(Debug)]
struct Sender {
    requests: SendRequest<Full<Bytes>>,
    names: HeadNames,
}

/// What the process answered.
pub(super) struct ServerResponse {
    pub(super) head: HttpHead,
    pub(super) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct ExchangeError {
    kind: ErrorKind,
    message: String,
    /// Nothing of the request was written: another instance may have it.
    pub(super) is_unsent: bool,
}

fn failure(kind: ErrorKind, message: impl Into<String>) -> ExchangeError {
    ExchangeError { kind, message: message.into(), is_unsent: false }
}

fn unsent(kind: ErrorKind, message: impl Into<String>) -> ExchangeError {
    ExchangeError { is_unsent: true, ..failure(kind, message) }
}

/// Connections to one process; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Client(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<Connections>,
    /// Notified when the agent has to make another connection.
    wanted: Notify,
}

#[derive(Debug, Default)]
struct Connections {
    idle: Vec<Sender>,
    waiting: VecDeque<oneshot::Sender<Result<TcpStream, String>>>,
    /// Connections that are wanted and not asked for yet.
    wanted: usize,
    is_closed: bool,
}

/// Returns when a connection is wanted of the agent.
pub(super) async fn wanted(protocol: &Protocol) {
    let Protocol::Http(client) = protocol else { return std::future::pending().await };
    loop {
        {
            let mut state = client.state();
            if state.wanted > 0 {
                state.wanted -= 1;
                return;
            }
        }
        client.0.wanted.notified().await;
    }
}

/// A connection that an agent handed over.
pub(super) fn stream(error: Option<String>, fds: Vec<OwnedFd>) -> Result<TcpStream, String> {
    if let Some(error) = error {
        return Err(error);
    }
    let fd = fds.into_iter().next().ok_or("no connection came")?;
    let stream = std::net::TcpStream::from(fd);
    stream.set_nonblocking(true).map_err(|error| error.to_string())?;
    // A request is written whole; waiting for more would only delay it.
    let _ = stream.set_nodelay(true);
    TcpStream::from_std(stream).map_err(|error| error.to_string())
}

impl Client {
    fn state(&self) -> MutexGuard<'_, Connections> {
        self.0.state.lock()
    }

    /// The agent has made a connection, or could not.
    pub(super) fn connected(&self, error: Option<String>, fds: Vec<OwnedFd>) {
        if let Some(waiting) = self.state().waiting.pop_front() {
            // The call that wanted it may have gone; the connection is closed then.
            let _ = waiting.send(stream(error, fds));
        }
    }

    /// No connections are made any more; calls that wait for one fail.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        state.waiting.clear();
        state.idle.clear();
    }

    /// Closes connections that no call uses: a server counts the time that they are idle, and may close one while its
    /// process is frozen.
    pub(super) fn close_idle(&self) {
        self.state().idle.clear();
    }

    async fn connect(&self) -> Result<Sender, ExchangeError> {
        let (give, given) = oneshot::channel();
        {
            let mut state = self.state();
            if state.is_closed {
                return Err(unsent(ErrorKind::Infrastructure, "the instance is gone"));
            }
            state.waiting.push_back(give);
            state.wanted += 1;
        }
        self.0.wanted.notify_one();
        let gone = |_| unsent(ErrorKind::Infrastructure, "the instance is gone");
        let refused = |error| unsent(ErrorKind::Exception, format!("the function takes no connection: {error}"));
        let stream = given.await.map_err(gone)?.map_err(refused)?;
        let broken = |error: hyper::Error| unsent(ErrorKind::Exception, format!("the function's HTTP: {error}"));
        let stream = HeadStream::new(stream);
        let names = stream.names();
        let handshake = http1::Builder::new().title_case_headers(true).handshake(TokioIo::new(stream));
        let (requests, connection) = handshake.await.map_err(broken)?;
        // It ends with the process, or when the process closes it; the next request on it learns that.
        tokio::spawn(connection);
        Ok(Sender { requests, names })
    }

    /// A connection that was kept, and still stands.
    async fn kept(&self) -> Option<Sender> {
        loop {
            let mut sender = self.state().idle.pop()?;
            if sender.requests.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    /// Sends a call and reads its answer. The future owns all it needs.
    pub(super) fn exchange(
        &self,
        code: &Code,
        call: &InstanceCall,
    ) -> impl Future<Output = Result<ServerResponse, ExchangeError>> + Send + use<> {
        let client = self.clone();
        let (request, head) = (build(call, code), call.request.clone());
        let is_sent = Arc::clone(&call.is_sent);
        is_sent.store(false, Ordering::Relaxed);
        async move {
            let (sender, response) = client.send(request?, head.as_deref(), &is_sent).await?;
            let answer = read(response, sender.names.take_head()).await?;
            client.state().idle.push(sender);
            Ok(answer)
        }
    }

    /// Sends a request on a kept connection, or on a new one. It is sent again, once and on a new connection, where the
    /// kept one had been closed before anything of the request was written, or where the method may be repeated and no
    /// answer came (RFC 9110, 9.2.2).
    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        head: Option<&HttpRequest>,
        is_sent: &AtomicBool,
    ) -> Result<(Sender, Response<Incoming>), ExchangeError> {
        let broken = |error: hyper::Error| failure(ErrorKind::Exception, format!("the function's HTTP: {error}"));
        let Some(mut sender) = self.kept().await else {
            let mut sender = self.connect().await?;
            is_sent.store(true, Ordering::Relaxed);
            sender.write_names(head);
            let response = sender.requests.send_request(request).await.map_err(broken)?;
            return Ok((sender, response));
        };
        sender.write_names(head);
        is_sent.store(true, Ordering::Relaxed);
        let again = request.method().is_idempotent().then(|| request.clone());
        let (request, was_written) = match sender.requests.try_send_request(request).await {
            Ok(response) => return Ok((sender, response)),
            Err(mut refused) => match (refused.take_message(), again) {
                (Some(unwritten), _) => {
                    is_sent.store(false, Ordering::Relaxed);
                    (unwritten, false)
                }
                (None, Some(again)) if !refused.error().is_parse() => (again, true),
                (None, _) => return Err(broken(refused.into_error())),
            },
        };
        // What may have ended the process is not tried on another one.
        let lost = |failure: ExchangeError| ExchangeError { is_unsent: failure.is_unsent && !was_written, ..failure };
        let mut sender = self.connect().await.map_err(lost)?;
        is_sent.store(true, Ordering::Relaxed);
        sender.write_names(head);
        let response = sender.requests.send_request(request).await.map_err(broken)?;
        Ok((sender, response))
    }
}

impl Sender {
    /// Has the headers of the next request written with the names that they came with.
    fn write_names(&self, head: Option<&HttpRequest>) {
        let headers = head.map_or(&[][..], |head| &head.headers);
        self.names.write_next(headers.iter().map(|Header(name, _)| name.as_str()));
    }
}

/// The request that goes to the process: the call's own, or its params as JSON.
fn build(call: &InstanceCall, code: &Code) -> Result<Request<Full<Bytes>>, ExchangeError> {
    let body = call.raw_body();
    let json = || HttpRequest {
        method: "POST".to_owned(),
        path: "/".to_owned(),
        headers: vec![Header("content-type".to_owned(), b"application/json".to_vec())],
        ..HttpRequest::default()
    };
    let request = call.request.clone().unwrap_or_else(|| Arc::new(json()));
    let mut built = Request::builder()
        .method(request.method.as_str())
        .uri(request.target().as_str())
        .header("host", "localhost")
        .header("faena-call", call.num.0)
        .header("faena-function", code.function.to_string())
        .header("traceparent", &*call.traceparent);
    for Header(name, value) in
        request.headers.iter().filter(|Header(name, _)| !name.eq_ignore_ascii_case("traceparent"))
    {
        built = built.header(name.as_str(), value.as_slice());
    }
    // A request of a method that has a body says that there is none (RFC 9110, 8.6).
    if body.is_empty() && matches!(request.method.as_str(), "POST" | "PUT" | "PATCH") {
        built = built.header("content-length", 0);
    }
    let invalid = |error| failure(ErrorKind::Infrastructure, format!("the request cannot be passed on: {error}"));
    built.body(Full::new(body)).map_err(invalid)
}

/// Reads an answer, the names of its headers as they were written.
async fn read(response: Response<Incoming>, written: Option<Head>) -> Result<ServerResponse, ExchangeError> {
    let (parts, body) = response.into_parts();
    let headers = parts.headers.iter().map(|(name, value)| {
        let written = written.as_ref().and_then(|head| head.name(name.as_str()));
        Header(written.map_or_else(|| canonical(name.as_str()), str::to_owned), value.as_bytes().to_vec())
    });
    let headers = headers.collect();
    let head = HttpHead { status: parts.status.as_u16(), headers };
    let most = usize::try_from(MAX_RESULT).unwrap_or(usize::MAX);
    match Limited::new(body, most).collect().await {
        Ok(body) => Ok(ServerResponse { head, body: body.to_bytes() }),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(failure(ErrorKind::Output, format!("the answer is over the limit of {MAX_RESULT} bytes")))
        }
        Err(error) => Err(failure(ErrorKind::Exception, format!("the function's HTTP: {error}"))),
    }
}

/// Whether a server says that it failed.
pub(super) fn is_failure(answer: &Result<ServerResponse, ExchangeError>) -> bool {
    answer.as_ref().is_ok_and(|answer| answer.head.status >= 500)
}

/// How a call ended whose function answered with a head of its own: a status of 500 and above says that it failed, and is
/// passed on all the same.
pub(super) fn answered(
    call: &InstanceCall,
    began: Instant,
    ServerResponse { head, body }: ServerResponse,
) -> InstanceEnd {
    if !(200..600).contains(&head.status) {
        let message = format!("the function answered with the status {}, which cannot be passed on", head.status);
        return InstanceEnd::failed(call, began, CallError::new(ErrorKind::Output, Layer::Run, message));
    }
    if head.status < 500 {
        return InstanceEnd { head: Some(head), ..InstanceEnd::done(call, began, body) };
    }
    let message = format!("the function answered with the status {}", head.status);
    let error = CallError::new(ErrorKind::Exception, Layer::Run, message);
    InstanceEnd { head: Some(head), result: body, ..InstanceEnd::failed(call, began, error) }
}

/// How a call over HTTP ended.
pub(super) fn end(call: &InstanceCall, began: Instant, answer: Result<ServerResponse, ExchangeError>) -> InstanceEnd {
    match answer {
        Ok(answer) => answered(call, began, answer),
        Err(ExchangeError { kind, message, .. }) => {
            InstanceEnd::failed(call, began, CallError::new(kind, Layer::Run, message))
        }
    }
}
