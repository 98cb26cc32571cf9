//! The connections to one process: kept ones first, then one that its agent makes.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use faena_domain::ErrorKind;
use faena_header_case::{HeadNames, HeadStream};
use faena_invoker::BodyStream;
use faena_protocol::direct::{Header, HttpRequest};
use http_body_util::{Either, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, MutexGuard};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::error::ExchangeError;
use crate::server::Protocol;

/// The body of a request to the process.
pub(super) type Outgoing = Either<Full<Bytes>, BodyStream>;

/// The longest head of an answer, and the most bytes that are read ahead of its reader.
const BUFFER: usize = 64 * 1024;

/// A connection on which a request can be sent.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) requests: SendRequest<Outgoing>,
    pub(super) names: HeadNames,
    /// The task that reads and writes it. Dropping a sender closes the connection.
    _connection: AbortOnDropHandle<Result<(), hyper::Error>>,
}

impl Sender {
    /// Has the headers of the next request written with the names that they came with.
    pub(super) fn write_names(&self, head: Option<&HttpRequest>) {
        let headers = head.map_or(&[][..], |head| &head.headers);
        self.names.write_next(headers.iter().map(|Header(name, _)| name.as_str()));
    }
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
pub(in crate::server) async fn wanted(protocol: &Protocol) {
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
fn connection(error: Option<String>, fds: Vec<OwnedFd>) -> Result<TcpStream, String> {
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
    pub(in crate::server) fn connected(&self, error: Option<String>, fds: Vec<OwnedFd>) {
        if let Some(waiting) = self.state().waiting.pop_front() {
            // The call that wanted it may have gone; the connection is closed then.
            let _ = waiting.send(connection(error, fds));
        }
    }

    /// No connections are made any more; calls that wait for one fail.
    pub(in crate::server) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        state.waiting.clear();
        state.idle.clear();
    }

    /// Closes connections that no call uses: a server counts the time that they are idle, and may close one while its
    /// process is frozen.
    pub(in crate::server) fn close_idle(&self) {
        self.state().idle.clear();
    }

    /// Keeps a connection for the next call.
    pub(super) fn keep(&self, sender: Sender) {
        let mut state = self.state();
        if !state.is_closed {
            state.idle.push(sender);
        }
    }

    /// A new connection.
    pub(super) async fn connect(&self) -> Result<Sender, ExchangeError> {
        let (give, given) = oneshot::channel();
        let gone = || ExchangeError::unsent(ErrorKind::Infrastructure, "the instance is gone");
        {
            let mut state = self.state();
            if state.is_closed {
                return Err(gone());
            }
            state.waiting.push_back(give);
            state.wanted += 1;
        }
        self.0.wanted.notify_one();
        let refused =
            |error| ExchangeError::unsent(ErrorKind::Exception, format!("the function takes no connection: {error}"));
        let stream = given.await.map_err(|_| gone())?.map_err(refused)?;
        let broken =
            |error: hyper::Error| ExchangeError::unsent(ErrorKind::Exception, format!("the function's HTTP: {error}"));
        let stream = HeadStream::new(stream);
        let names = stream.names();
        let handshake =
            http1::Builder::new().title_case_headers(true).max_buf_size(BUFFER).handshake(TokioIo::new(stream));
        let (requests, connection) = handshake.await.map_err(broken)?;
        // It ends with the process, or when the process closes it; the next request on it learns that.
        let running = AbortOnDropHandle::new(tokio::spawn(connection.with_upgrades()));
        Ok(Sender { requests, names, _connection: running })
    }

    /// A connection that was kept, and still stands.
    pub(super) async fn kept(&self) -> Option<Sender> {
        loop {
            let mut sender = self.state().idle.pop()?;
            if sender.requests.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }
}
