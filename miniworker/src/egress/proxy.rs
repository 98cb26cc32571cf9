//! Streams from a listener on an instance's own loopback to the world, for programs that take a proxy from their
//! environment: counted, bounded, and gone with the call.

use std::io;
use std::sync::Arc;

use faena_egress::{Destination, PATIENCE, Reason, Refusal, Tunnel, Way, read_head};
use faena_gateway::Blocked;
use faena_gateway::server_name::{self, Verdict};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::account::Account;
use super::gateway::explained;
use super::request::{Malformed, Request};
use super::{Outlet, Wait};

/// Streams of one instance at once.
const STREAMS: usize = 64;
/// The most connections that a kernel keeps in a backlog (net.core.somaxconn, by default).
const BACKLOG: usize = 4096;
/// What one direction of a stream may hold on its way; the rest waits in the sender's socket.
const CREDIT: usize = 32 * 1024;

/// The proxy of one instance; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Proxy {
    /// The listener once more, for connections that nothing has accepted when their call ends.
    backlog: Option<std::net::TcpListener>,
    _stop: DropGuard,
}

impl Proxy {
    /// Serves an instance's listener.
    pub(super) fn serve(listener: std::net::TcpListener, outlet: Arc<Outlet>) -> Self {
        let stop = CancellationToken::new();
        let backlog = listener.try_clone().ok();
        let serving = stop.clone();
        tokio::spawn(async move {
            if let Some(Err(error)) = serving.run_until_cancelled(accept_all(listener, outlet)).await {
                debug!(%error, "the listener of an instance failed");
            }
        });
        Self { backlog, _stop: stop.drop_guard() }
    }

    /// Closes what a call that has ended had asked for and nothing has accepted yet.
    pub(super) fn close_backlog(&self) {
        let waiting = std::iter::from_fn(|| self.backlog.as_ref()?.accept().ok());
        let closed = waiting.take(BACKLOG).count();
        if closed > 0 {
            debug!(closed, "connections of a call that has ended were never opened");
        }
    }
}

async fn accept_all(listener: std::net::TcpListener, outlet: Arc<Outlet>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let streams = Arc::new(Semaphore::new(STREAMS));
    loop {
        let Ok(permit) = Arc::clone(&streams).acquire_owned().await else { return Ok(()) };
        let (stream, end_of_call) = accept(&listener, &outlet).await?;
        let outlet = Arc::clone(&outlet);
        tokio::spawn(async move {
            let _ = end_of_call.run_until_cancelled(Stream(outlet).serve(stream)).await;
            drop(permit);
        });
    }
}

/// A connection, and what ends it: the end of the call that runs at the moment when it is accepted.
async fn accept(listener: &TcpListener, outlet: &Outlet) -> io::Result<(TcpStream, CancellationToken)> {
    std::future::poll_fn(|context| {
        let call = outlet.call.lock();
        listener.poll_accept(context).map_ok(|(stream, _)| (stream, call.end.clone()))
    })
    .await
}

/// One stream.
struct Stream(Arc<Outlet>);

impl Stream {
    async fn serve(self, mut inside: TcpStream) {
        let Ok(Ok(head)) = tokio::time::timeout(PATIENCE, read_head(&mut inside)).await else { return };
        let (status, why) = match Request::parse(&head) {
            Ok(request) => match self.carry(&mut inside, &request, &head).await {
                Ok(()) => return,
                Err(refusal) => (refusal.status(), refusal.to_string()),
            },
            Err(Malformed) => (400, Malformed.to_string()),
        };
        let reply = format!(
            "HTTP/1.1 {status} Faena\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{why}",
            why.len()
        );
        // An instance that has gone is not told.
        let _ = inside.write_all(reply.as_bytes()).await;
    }

    async fn carry(&self, inside: &mut TcpStream, request: &Request, head: &[u8]) -> Result<(), Refusal> {
        let Outlet { judge, account, .. } = &*self.0;
        let refused = |reason| Refusal { target: request.host.clone(), reason };
        if account.left() == 0 {
            let most = judge.policy().bytes;
            return Err(refused(Reason::Unreachable(format!("the {most} that may pass in one call have passed"))));
        }
        let tunnel = if request.plain.is_none() { Tunnel::Yes } else { Tunnel::No };
        let connected = judge.connect((&request.host, request.port), tunnel).await;
        let destination = connected.inspect_err(|refusal| {
            if refusal.is_denied() {
                account.refused(refusal);
            }
        })?;
        account.reached(request.host.clone());
        account.proxied_connection();
        let relayed = match destination {
            Destination::World(stream, way) => {
                let names = judge.server_names(&request.host, request.port).filter(|_| tunnel == Tunnel::Yes);
                relay(inside, stream, (request, head), (&way, names), account).await
            }
            Destination::Function(name) => {
                let (stream, _wait) = (self.0.call(name).await?, Wait::of(&self.0));
                relay(inside, stream, (request, head), (&Way::Direct, None), account).await
            }
        };
        relayed.map_err(|error| refused(Reason::Unreachable(error.to_string())))
    }
}

/// Passes a request on, and everything after it. `names` are those that the first message of TLS may name, where not all may
/// be named.
async fn relay(
    inside: &mut TcpStream,
    mut outside: impl AsyncRead + AsyncWrite + Unpin,
    (request, head): (&Request, &[u8]),
    (way, names): (&Way, Option<Vec<String>>),
    account: &Account,
) -> io::Result<()> {
    match &request.plain {
        None => inside.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?,
        Some(plain) => {
            let rewritten = match way {
                Way::Direct => plain.for_server(),
                Way::Through { credentials } => plain.for_proxy(credentials),
            };
            outside.write_all(&rewritten).await?;
        }
    }
    let ((inner_read, inner_write), (outer_read, outer_write)) = (inside.split(), tokio::io::split(outside));
    // What came with the request is the first that is passed on.
    let from = head[request.head..].chain(inner_read);
    let target = format!("{}:{}", request.host, request.port);
    let up = async {
        match names {
            None => pass(from, outer_write, account, true).await,
            Some(names) => pass_named(from, outer_write, account, (&names, &target)).await,
        }
    };
    let down = pass(outer_read, inner_write, account, false);
    // Either side may go at any time; there is nothing left to be told.
    if matches!(way, Way::Direct) && faena_domain::identity::internal_name(&request.host).is_some() {
        // A function says nothing after its answer.
        let _ = tokio::select! {
            ended = async { up.await?; std::future::pending::<io::Result<()>>().await } => ended,
            ended = down => ended,
        };
    } else {
        let _ = tokio::try_join!(up, down);
    }
    Ok(())
}

/// [`pass`] from an instance, where the server that the first message of TLS names has to be one of these.
async fn pass_named(
    mut from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    account: &Account,
    (names, target): (&[String], &str),
) -> io::Result<()> {
    let mut first = Vec::new();
    loop {
        let has_ended = from.read_buf(&mut first).await? == 0;
        match server_name::judge(&first, names) {
            Verdict::Unfinished if !has_ended => {}
            Verdict::Permitted => break,
            Verdict::Unfinished if first.is_empty() => break,
            Verdict::Unfinished | Verdict::Refused => {
                account.refused(explained(Blocked::ServerName, target));
                return Err(io::ErrorKind::PermissionDenied.into());
            }
        }
    }
    pass(first.chain(from), to, account, true).await
}

/// Copies one direction to its end, or until nothing more may pass.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    account: &Account,
    is_sent: bool,
) -> io::Result<()> {
    let mut buffer = vec![0; CREDIT];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        if account.left() < read as u64 {
            account.proxied(account.left(), is_sent);
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        account.proxied(read as u64, is_sent);
        to.write_all(&buffer[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_passes_than_may() {
        let account = Account::new(10).unwrap();
        let mut passed = Vec::new();
        assert!(pass(&b"12345678"[..], &mut passed, &account, true).await.is_ok());
        assert!(pass(&b"12345678"[..], &mut passed, &account, false).await.is_err());
        assert_eq!((passed.as_slice(), account.left()), (&b"12345678"[..], 0));
    }
}
