//! The side that connects: a DEALER that is replaced by a new one whenever its server falls silent.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use zeromq::util::PeerIdentity;
use zeromq::{
    DealerRecvHalf, DealerSendHalf, DealerSocket, Socket, SocketEvent, SocketOptions, SocketRecv, SocketSend,
    ZmqMessage,
};

use crate::{Endpoint, HEARTBEAT, QUEUE, SILENCE};

/// How long one try to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// The pause after a try that failed.
const PAUSE: Duration = Duration::from_millis(50);

/// What a link hears.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Connected, perhaps to another process than before.
    Up,
    /// The server sent this.
    Message(Bytes),
    /// The connection is over; what was sent and not answered may be lost.
    Down,
}

/// A connection that comes back. Dropping it closes the socket.
#[derive(Debug)]
pub struct Link {
    events: mpsc::Receiver<LinkEvent>,
    handle: LinkHandle,
    stop: CancellationToken,
}

/// Sends through a [`Link`].
#[derive(Clone, Debug)]
pub struct LinkHandle {
    outgoing: mpsc::Sender<Bytes>,
}

impl LinkHandle {
    /// Queues a message without waiting for room; false where there is none, or the link has stopped.
    pub fn try_send(&self, message: impl Into<Bytes>) -> bool {
        self.outgoing.try_send(message.into()).is_ok()
    }

    /// Queues a message for whichever connection is up next. Returns false when the link has stopped.
    pub async fn send(&self, message: impl Into<Bytes>) -> bool {
        self.outgoing.send(message.into()).await.is_ok()
    }
}

impl Link {
    /// Starts connecting, and never stops trying.
    pub fn connect(endpoint: Endpoint) -> Self {
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let (heard, events) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let task = Task { endpoint, queue, heard };
        tokio::spawn(stop.clone().run_until_cancelled_owned(task.run()));
        Self { events, handle: LinkHandle { outgoing }, stop }
    }

    /// The next thing heard; cancel-safe.
    pub async fn next(&mut self) -> Option<LinkEvent> {
        self.events.recv().await
    }

    /// What sends.
    pub fn handle(&self) -> LinkHandle {
        self.handle.clone()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Task {
    endpoint: Endpoint,
    queue: mpsc::Receiver<Bytes>,
    heard: mpsc::Sender<LinkEvent>,
}

/// Why a connection was left.
enum End {
    /// The server is gone: try again.
    Connection,
    /// Nobody uses the link any more.
    Link,
}

impl Task {
    async fn run(mut self) {
        loop {
            let Some(socket) = self.open().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let (mut socket, monitor) = socket;
            // A server that was never heard would hide behind a connection that the kernel took.
            if self.greet(&mut socket).await.is_none() {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            if self.heard.send(LinkEvent::Up).await.is_err() {
                return;
            }
            let end = self.talk(socket, monitor).await;
            if matches!(end, End::Link) || self.heard.send(LinkEvent::Down).await.is_err() {
                return;
            }
        }
    }

    /// A new socket under a new identity: an old one would let the server's late cleanup throw us out.
    async fn open(&self) -> Option<(DealerSocket, impl Stream<Item = SocketEvent> + Unpin + use<>)> {
        if !self.endpoint.path().exists() {
            return None;
        }
        let identity = uuid::Uuid::new_v4().simple().to_string();
        let mut options = SocketOptions::default();
        options.peer_identity(PeerIdentity::try_from(identity.into_bytes()).ok()?).connect_timeout(CONNECT_TIMEOUT);
        let mut socket = DealerSocket::with_options(options);
        let monitor = socket.monitor();
        match tokio::time::timeout(2 * CONNECT_TIMEOUT, socket.connect(&self.endpoint.uri())).await {
            Ok(Ok(())) => Some((socket, monitor)),
            Ok(Err(error)) => {
                debug!(%error, endpoint = %self.endpoint.path().display(), "connecting failed");
                None
            }
            Err(_) => None,
        }
    }

    async fn greet(&self, socket: &mut DealerSocket) -> Option<()> {
        socket.send(ZmqMessage::from(Bytes::new())).await.ok()?;
        tokio::time::timeout(SILENCE, socket.recv()).await.ok()?.ok().map(drop)
    }

    async fn talk(&mut self, socket: DealerSocket, mut monitor: impl Stream<Item = SocketEvent> + Unpin) -> End {
        let (sending, mut receiving) = socket.split();
        let (outgoing, queue) = mpsc::channel(QUEUE);
        tokio::spawn(send_all(sending, queue));
        let mut tick = tokio::time::interval(HEARTBEAT);
        let (mut last_heard, mut last_tick) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                message = self.queue.recv() => {
                    let Some(message) = message else { return End::Link };
                    // A full queue means that the server has not read for thousands of messages.
                    if outgoing.try_send(message).is_err() {
                        return End::Connection;
                    }
                }
                bytes = receive(&mut receiving) => {
                    let Some(bytes) = bytes else { return End::Connection };
                    last_heard = Instant::now();
                    if !bytes.is_empty() && self.heard.send(LinkEvent::Message(bytes)).await.is_err() {
                        return End::Link;
                    }
                }
                Some(event) = monitor.next() => {
                    if matches!(event, SocketEvent::Disconnected(_)) {
                        return End::Connection;
                    }
                }
                _ = tick.tick() => {
                    // Who was stopped itself has heard nobody, and was not heard: a server that has given us up does not
                    // say so, and a shorter stop is a new start for it.
                    if last_tick.elapsed() + HEARTBEAT >= SILENCE {
                        return End::Connection;
                    }
                    if last_tick.elapsed() > 2 * HEARTBEAT {
                        last_heard = Instant::now();
                    }
                    last_tick = Instant::now();
                    if last_heard.elapsed() > SILENCE || outgoing.try_send(Bytes::new()).is_err() {
                        return End::Connection;
                    }
                }
            }
        }
    }
}

async fn receive(half: &mut DealerRecvHalf) -> Option<Bytes> {
    let message = half.recv().await.ok()?;
    Some(message.into_vec().pop().unwrap_or_default())
}

/// Owns the sending half: a send that is begun is never cancelled.
async fn send_all(mut half: DealerSendHalf, mut queue: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = queue.recv().await {
        if half.send(ZmqMessage::from(bytes)).await.is_err() {
            return;
        }
    }
}
