//! Streams from a listener on an instance's own loopback to the world: counted, bounded, and gone with the call.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use faena_egress::{Asker, EgressPolicy, PATIENCE, Refusal, Way, connect, read_head};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::request::Request;

/// Streams of one instance at once.
const STREAMS: usize = 64;
/// Hosts that a call's record names.
const MAX_HOSTS: usize = 100;
/// The most connections that a kernel keeps in a backlog (net.core.somaxconn, by default).
const BACKLOG: usize = 4096;
/// What one direction of a stream may hold on its way; the rest waits in the sender's socket.
const CREDIT: usize = 32 * 1024;

/// The proxy of one instance; its streams end when it does.
#[derive(Debug)]
pub(crate) struct Egress {
    proxy: Proxy,
    /// The listener once more, for connections that nothing has accepted when their call ends.
    backlog: Option<std::net::TcpListener>,
    _stop: DropGuard,
}

impl Egress {
    /// Serves an instance's listener until dropped.
    pub(crate) fn serve(listener: std::net::TcpListener, policy: Arc<EgressPolicy>, asker: Asker) -> Self {
        let stop = CancellationToken::new();
        let left = Arc::new(AtomicU64::new(policy.bytes.0));
        let proxy =
            Proxy { policy, asker, hosts: Arc::default(), left, call: Arc::new(Mutex::new(stop.child_token())), stop };
        let stop = proxy.stop.clone().drop_guard();
        let accepting = proxy.clone();
        let backlog = listener.try_clone().ok();
        tokio::spawn(async move {
            if let Err(error) = accepting.accept_all(listener).await {
                debug!(%error, "the listener of an instance failed");
            }
        });
        Self { proxy, backlog, _stop: stop }
    }

    /// The hosts that were reached so far, while other calls go on.
    pub(crate) fn hosts(&self) -> Vec<String> {
        self.proxy.hosts.lock().iter().cloned().collect()
    }

    /// Ends the streams of a call, and tells the hosts that it reached; the next call begins with all its bytes. What the
    /// call had asked for and nothing has accepted yet is closed.
    pub(crate) fn end_call(&self) -> Vec<String> {
        let Proxy { policy, hosts, left, call, stop, .. } = &self.proxy;
        {
            let mut call = call.lock();
            call.cancel();
            *call = stop.child_token();
            // Nothing else accepts while the lock is held.
            let waiting = std::iter::from_fn(|| self.backlog.as_ref()?.accept().ok());
            let closed = waiting.take(BACKLOG).count();
            if closed > 0 {
                debug!(closed, "connections of a call that has ended were never opened");
            }
        }
        left.store(policy.bytes.0, Ordering::Relaxed);
        std::mem::take(&mut *hosts.lock()).into_iter().collect()
    }
}

#[derive(Clone, Debug)]
struct Proxy {
    policy: Arc<EgressPolicy>,
    asker: Asker,
    hosts: Arc<Mutex<BTreeSet<String>>>,
    /// Bytes that may still pass, both ways together.
    left: Arc<AtomicU64>,
    /// Ends the streams of the call that runs.
    call: Arc<Mutex<CancellationToken>>,
    /// Ends all of it.
    stop: CancellationToken,
}

impl Proxy {
    async fn accept_all(self, listener: std::net::TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let streams = Arc::new(Semaphore::new(STREAMS));
        loop {
            let Ok(permit) = Arc::clone(&streams).acquire_owned().await else { return Ok(()) };
            let (stream, stop) = tokio::select! {
                accepted = self.accept(&listener) => accepted?,
                () = self.stop.cancelled() => return Ok(()),
            };
            let proxy = self.clone();
            tokio::spawn(async move {
                let _ = stop.run_until_cancelled(proxy.stream(stream)).await;
                drop(permit);
            });
        }
    }

    /// A connection, and what ends it: the end of the call that runs at the moment when it is accepted.
    async fn accept(&self, listener: &TcpListener) -> io::Result<(TcpStream, CancellationToken)> {
        std::future::poll_fn(|context| {
            let call = self.call.lock();
            listener.poll_accept(context).map_ok(|(stream, _)| (stream, call.clone()))
        })
        .await
    }

    async fn stream(self, mut inside: TcpStream) {
        let Ok(Ok(head)) = tokio::time::timeout(PATIENCE, read_head(&mut inside)).await else { return };
        let carried = match Request::parse(&head) {
            Ok(request) => self.carry(&mut inside, &request, &head).await,
            Err(refusal) => Err(refusal),
        };
        if let Err((status, why)) = carried {
            let reply = format!(
                "HTTP/1.1 {status} Faena\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{why}",
                why.len()
            );
            let _ = inside.write_all(reply.as_bytes()).await;
        }
    }

    async fn carry(&self, inside: &mut TcpStream, request: &Request, head: &[u8]) -> Result<(), Refusal> {
        if self.left.load(Ordering::Relaxed) == 0 {
            return Err((403, format!("the {} that may pass in one call or build are used up", self.policy.bytes)));
        }
        let tunnel = request.plain.is_none();
        let (mut outside, way) = connect(&self.policy, &self.asker, (&request.host, request.port), tunnel).await?;
        self.tell(&request.host);
        let failed = |error: io::Error| (502, format!("{}: {error}", request.host));
        match &request.plain {
            None => inside.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.map_err(failed)?,
            Some(plain) => {
                let rewritten = match &way {
                    Way::Direct => plain.for_server(),
                    Way::Through { credentials } => plain.for_proxy(credentials),
                };
                outside.write_all(&rewritten).await.map_err(failed)?;
            }
        }
        outside.write_all(&head[request.head..]).await.map_err(failed)?;
        let ((inner_read, inner_write), (outer_read, outer_write)) = (inside.split(), outside.split());
        // Either side may go at any time; there is nobody left to tell.
        let _ = tokio::try_join!(pass(inner_read, outer_write, &self.left), pass(outer_read, inner_write, &self.left));
        Ok(())
    }

    fn tell(&self, host: &str) {
        let mut hosts = self.hosts.lock();
        if hosts.len() < MAX_HOSTS {
            hosts.insert(host.to_owned());
        }
    }
}

/// Copies one direction to its end, or until nothing more may pass.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, left: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; CREDIT];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let may = |left: u64| left.checked_sub(read as u64);
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, may).is_err() {
            left.store(0, Ordering::Relaxed);
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        to.write_all(&buffer[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_passes_than_may() {
        let left = AtomicU64::new(10);
        let mut passed = Vec::new();
        assert!(pass(&b"12345678"[..], &mut passed, &left).await.is_ok());
        assert!(pass(&b"12345678"[..], &mut passed, &left).await.is_err());
        assert_eq!((passed.as_slice(), left.into_inner()), (&b"12345678"[..], 0));
    }
}
