//! The side that binds: a ROUTER with one task that receives and one that sends.

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};
use zeromq::{RouterRecvHalf, RouterSendHalf, RouterSocket, Socket, SocketEvent, SocketRecv, SocketSend, ZmqMessage};

use crate::event_sink::{EventSink, Told};
use crate::{Endpoint, HEARTBEAT, QUEUE, SILENCE};

/// One connection of a client; a client that connects again is another peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer(pub(crate) Bytes);

/// What a server hears.
#[derive(Debug)]
pub enum ServerEvent {
    /// A peer sent this.
    Message(Peer, Bytes),
    /// A peer has gone, or was silent for too long.
    Lost(Peer),
}

/// A bound ROUTER. Dropping it closes the socket.
#[derive(Debug)]
pub struct Server {
    events: mpsc::Receiver<ServerEvent>,
    handle: ServerHandle,
    _open: OpenServer,
}

/// A ROUTER that is not bound yet: what is sent through its handle waits for it.
#[derive(Debug)]
pub struct UnopenedServer {
    handle: ServerHandle,
    pub(crate) queue: mpsc::Receiver<Outgoing>,
}

/// A message that is to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) peer: Peer,
    pub(crate) message: Bytes,
}

/// Holds a ROUTER open. Dropping it closes the socket.
#[derive(Debug)]
pub struct OpenServer {
    _stop: DropGuard,
}

impl OpenServer {
    pub(crate) fn new(stop: DropGuard) -> Self {
        Self { _stop: stop }
    }
}

impl UnopenedServer {
    /// The server, and what sends through it.
    pub fn new() -> (ServerHandle, Self) {
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let handle = ServerHandle { outgoing };
        (handle.clone(), Self { handle, queue })
    }

    /// Binds; a socket file that stands there already is replaced. Events are handed over on the socket's own task, which
    /// waits for it: this is for those who are quick, and saves a change of tasks.
    ///
    /// # Errors
    /// What the operating system says of that path.
    pub async fn open(
        self,
        endpoint: &Endpoint,
        on_event: impl FnMut(ServerEvent) + Send + 'static,
    ) -> std::io::Result<OpenServer> {
        self.open_to(endpoint, Told(on_event)).await
    }

    async fn open_to(
        self,
        endpoint: &Endpoint,
        on_event: impl EventSink<ServerEvent> + 'static,
    ) -> std::io::Result<OpenServer> {
        let mut socket = RouterSocket::new();
        let monitor = socket.monitor();
        socket.bind_listener(listen(endpoint)?).await.map_err(std::io::Error::other)?;
        let (sending, receiving) = socket.split();
        let stop = CancellationToken::new();
        tokio::spawn(send_all(sending, self.queue));
        let receiver = Receiver { handle: self.handle, on_event, seen: HashMap::new() };
        tokio::spawn(receiver.run(receiving, monitor, stop.clone()));
        Ok(OpenServer::new(stop.drop_guard()))
    }
}

/// Sends through a [`Server`].
#[derive(Clone, Debug)]
pub struct ServerHandle {
    outgoing: mpsc::Sender<Outgoing>,
}

impl ServerHandle {
    /// Queues a message without waiting for room; false where there is none, or the server has stopped.
    pub fn try_send(&self, peer: &Peer, message: impl Into<Bytes>) -> bool {
        self.outgoing.try_send(Outgoing { peer: peer.clone(), message: message.into() }).is_ok()
    }

    /// Queues a message for a peer; one that has gone loses it silently, as after any connection's end.
    ///
    /// Returns false when the server has stopped.
    pub async fn send(&self, peer: &Peer, message: impl Into<Bytes>) -> bool {
        self.outgoing.send(Outgoing { peer: peer.clone(), message: message.into() }).await.is_ok()
    }
}

impl Server {
    /// Binds; a socket file that stands there already is replaced.
    ///
    /// # Errors
    /// What the operating system says of that path.
    pub async fn bind(endpoint: &Endpoint) -> std::io::Result<Self> {
        let (handle, server) = UnopenedServer::new();
        let (on_event, events) = mpsc::channel(QUEUE);
        Ok(Self { events, handle, _open: server.open_to(endpoint, on_event).await? })
    }

    /// The next event; cancel-safe.
    pub async fn next(&mut self) -> Option<ServerEvent> {
        self.events.recv().await
    }

    /// What sends.
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }
}

/// Binds under a passing name and moves it into place: a socket that closes later removes the name that it was
/// bound under, which then is no longer its successor's.
fn listen(endpoint: &Endpoint) -> std::io::Result<UnixListener> {
    let mut passing = endpoint.path().as_os_str().to_owned();
    passing.push(format!(".{:08x}", uuid::Uuid::new_v4().as_fields().0));
    let listener = UnixListener::bind(&passing)?;
    std::fs::rename(&passing, endpoint.path())?;
    Ok(listener)
}

/// Owns the sending half: a send that is begun is never cancelled.
async fn send_all(mut half: RouterSendHalf, mut queue: mpsc::Receiver<Outgoing>) {
    while let Some(Outgoing { peer, message }) = queue.recv().await {
        let mut message = ZmqMessage::from(message);
        message.push_front(peer.0);
        if let Err(error) = half.send(message).await {
            debug!(%error, "a message for a peer that has gone was dropped");
        }
    }
}

struct Receiver<E> {
    handle: ServerHandle,
    on_event: E,
    seen: HashMap<Peer, Instant>,
}

impl<E: EventSink<ServerEvent>> Receiver<E> {
    async fn run(
        mut self,
        mut half: RouterRecvHalf,
        mut monitor: impl Stream<Item = SocketEvent> + Unpin,
        stop: CancellationToken,
    ) {
        let mut tick = tokio::time::interval(HEARTBEAT);
        let mut last_tick = Instant::now();
        loop {
            let alive = tokio::select! {
                () = stop.cancelled() => return,
                received = half.recv() => match received {
                    Ok(message) => self.message(message).await,
                    Err(error) => { warn!(%error, "receiving failed"); true }
                },
                Some(event) = monitor.next() => match event {
                    SocketEvent::Disconnected(id) => self.lost(Peer(Bytes::copy_from_slice(id.as_ref()))).await,
                    _ => true,
                },
                _ = tick.tick() => {
                    // A process that was stopped has heard from nobody: every peer gets a new start.
                    if last_tick.elapsed() > 2 * HEARTBEAT {
                        self.seen.values_mut().for_each(|seen| *seen = Instant::now());
                    }
                    last_tick = Instant::now();
                    self.drop_silent().await
                }
            };
            if !alive {
                return;
            }
        }
    }

    async fn message(&mut self, message: ZmqMessage) -> bool {
        let mut frames = message.into_vec().into_iter();
        let (Some(id), Some(bytes), None) = (frames.next(), frames.next(), frames.next()) else {
            return true;
        };
        let peer = Peer(id);
        self.seen.insert(peer.clone(), Instant::now());
        if bytes.is_empty() {
            return self.handle.send(&peer, Bytes::new()).await;
        }
        self.on_event.hear(ServerEvent::Message(peer, bytes)).await
    }

    async fn lost(&mut self, peer: Peer) -> bool {
        self.seen.remove(&peer).is_none() || self.on_event.hear(ServerEvent::Lost(peer)).await
    }

    async fn drop_silent(&mut self) -> bool {
        let silent = |seen: &Instant| seen.elapsed() > SILENCE;
        let gone: Vec<Peer> = self.seen.iter().filter(|(_, seen)| silent(seen)).map(|(peer, _)| peer.clone()).collect();
        for peer in gone {
            if !self.lost(peer).await {
                return false;
            }
        }
        true
    }
}
