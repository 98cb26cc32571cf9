//! The side that connects: to a socket of this machine by a DEALER, or to another machine by the front. A connection is
//! replaced by a new one whenever its server falls silent.

use std::time::{Duration, Instant};

use bytes::Bytes;
use faena_protocol::front::Channel;
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;
use zeromq::util::PeerIdentity;
use zeromq::{
    DealerRecvHalf, DealerSendHalf, DealerSocket, Socket, SocketEvent, SocketOptions, SocketRecv, SocketSend,
    ZmqMessage,
};

use crate::event_sink::{EventSink, Told};
use crate::front::{CarryEnd, FrontDialer};
use crate::{Endpoint, HEARTBEAT, QUEUE, SILENCE};

/// How long one try to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// The pause after a try that failed.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between tries to reach another machine, which grow up to it.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What a link connects to.
#[derive(Clone, Debug)]
pub enum Target {
    /// A socket of this machine.
    Socket(Endpoint),
    /// A channel of the front of a platform.
    Front(FrontDialer, Channel),
}

impl From<Endpoint> for Target {
    fn from(endpoint: Endpoint) -> Self {
        Self::Socket(endpoint)
    }
}

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
    _open: OpenLink,
}

/// A connection that is not there yet: what is sent through its handle waits for it.
#[derive(Debug)]
pub struct UnopenedLink(mpsc::Receiver<Bytes>);

/// Holds a connection open. Dropping it closes the socket.
#[derive(Debug)]
pub struct OpenLink {
    _stop: DropGuard,
}

impl UnopenedLink {
    /// The connection, and what sends through it.
    pub fn new() -> (LinkHandle, Self) {
        let (outgoing, queue) = mpsc::channel(QUEUE);
        (LinkHandle { outgoing }, Self(queue))
    }

    /// Starts connecting, and never stops trying. Events are handed over on the socket's own task, which waits for it:
    /// this is for those who are quick, and saves a change of tasks.
    pub fn open(self, target: impl Into<Target>, on_event: impl FnMut(LinkEvent) + Send + 'static) -> OpenLink {
        self.open_to(target.into(), Told(on_event))
    }

    fn open_to(self, target: Target, on_event: impl EventSink<LinkEvent> + 'static) -> OpenLink {
        let stop = CancellationToken::new();
        let task = Task { queue: self.0, on_event };
        let run = async move {
            match target {
                Target::Socket(endpoint) => task.run(endpoint).await,
                Target::Front(dialer, channel) => task.run_through(dialer, channel).await,
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(run));
        OpenLink { _stop: stop.drop_guard() }
    }
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
    pub fn connect(target: impl Into<Target>) -> Self {
        let (handle, link) = UnopenedLink::new();
        let (on_event, events) = mpsc::channel(QUEUE);
        Self { events, handle, _open: link.open_to(target.into(), on_event) }
    }

    /// The next event; cancel-safe.
    pub async fn next(&mut self) -> Option<LinkEvent> {
        self.events.recv().await
    }

    /// What sends.
    pub fn handle(&self) -> LinkHandle {
        self.handle.clone()
    }
}

struct Task<E> {
    queue: mpsc::Receiver<Bytes>,
    on_event: E,
}

/// Hands frames over as messages.
struct Messages<'a, E>(&'a mut E);

impl<E: EventSink<LinkEvent>> EventSink<Bytes> for Messages<'_, E> {
    async fn hear(&mut self, frame: Bytes) -> bool {
        self.0.hear(LinkEvent::Message(frame)).await
    }
}

/// Why a connection was left.
enum End {
    /// The server is gone: try again.
    Connection,
    /// Nobody uses the link any more.
    Link,
}

impl<E: EventSink<LinkEvent>> Task<E> {
    async fn run(mut self, endpoint: Endpoint) {
        loop {
            let Some(socket) = open(&endpoint).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let (mut socket, monitor) = socket;
            // A server that never sent anything would hide behind a connection that the kernel took.
            if greet(&mut socket).await.is_none() {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            if !self.on_event.hear(LinkEvent::Up).await {
                return;
            }
            let end = self.talk(socket, monitor).await;
            if matches!(end, End::Link) || !self.on_event.hear(LinkEvent::Down).await {
                return;
            }
        }
    }

    async fn run_through(mut self, dialer: FrontDialer, channel: Channel) {
        let mut pause = PAUSE;
        loop {
            let frames = match dialer.open(channel.clone()).await {
                Ok((frames, _)) => frames,
                Err(error) => {
                    debug!(%error, ?channel, "connecting failed");
                    // Nodes that have lost one platform together do not come back together.
                    tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
            };
            pause = PAUSE;
            if !self.on_event.hear(LinkEvent::Up).await {
                return;
            }
            let end = frames.carry(&mut self.queue, &mut Messages(&mut self.on_event)).await;
            if end == CarryEnd::Unused || !self.on_event.hear(LinkEvent::Down).await {
                return;
            }
        }
    }

    async fn talk(&mut self, socket: DealerSocket, mut monitor: impl Stream<Item = SocketEvent> + Unpin) -> End {
        let (mut sending, mut receiving) = socket.split();
        let mut tick = tokio::time::interval(HEARTBEAT);
        let (mut last_heard, mut last_tick) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                message = self.queue.recv() => {
                    let Some(message) = message else { return End::Link };
                    if !send(&mut sending, message) {
                        return End::Connection;
                    }
                }
                bytes = receive(&mut receiving) => {
                    let Some(bytes) = bytes else { return End::Connection };
                    last_heard = Instant::now();
                    if !bytes.is_empty() && !self.on_event.hear(LinkEvent::Message(bytes)).await {
                        return End::Link;
                    }
                }
                Some(event) = monitor.next() => {
                    if matches!(event, SocketEvent::Disconnected(_)) {
                        return End::Connection;
                    }
                }
                _ = tick.tick() => {
                    // A process that was stopped has heard from nobody, and nobody from it: a server that has given us up does not
                    // say so, and a shorter stop is a new start for it.
                    if last_tick.elapsed() + HEARTBEAT >= SILENCE {
                        return End::Connection;
                    }
                    if last_tick.elapsed() > 2 * HEARTBEAT {
                        last_heard = Instant::now();
                    }
                    last_tick = Instant::now();
                    if last_heard.elapsed() > SILENCE || !send(&mut sending, Bytes::new()) {
                        return End::Connection;
                    }
                }
            }
        }
    }
}

/// A new socket under a new identity: an old one would let the server's late cleanup throw us out.
async fn open(endpoint: &Endpoint) -> Option<(DealerSocket, impl Stream<Item = SocketEvent> + Unpin + use<>)> {
    if !endpoint.path().exists() {
        return None;
    }
    let identity = uuid::Uuid::new_v4().simple().to_string();
    let mut options = SocketOptions::default();
    options.peer_identity(PeerIdentity::try_from(identity.into_bytes()).ok()?).connect_timeout(CONNECT_TIMEOUT);
    let mut socket = DealerSocket::with_options(options);
    let monitor = socket.monitor();
    match tokio::time::timeout(2 * CONNECT_TIMEOUT, socket.connect(&endpoint.uri())).await {
        Ok(Ok(())) => Some((socket, monitor)),
        Ok(Err(error)) => {
            debug!(%error, endpoint = %endpoint.path().display(), "connecting failed");
            None
        }
        Err(_) => None,
    }
}

async fn greet(socket: &mut DealerSocket) -> Option<()> {
    socket.send(ZmqMessage::from(Bytes::new())).await.ok()?;
    tokio::time::timeout(SILENCE, socket.recv()).await.ok()?.ok().map(drop)
}

async fn receive(half: &mut DealerRecvHalf) -> Option<Bytes> {
    let message = half.recv().await.ok()?;
    Some(message.into_vec().pop().unwrap_or_default())
}

/// Queues a message; false where the connection is gone, or its queue is full: the server has not read for 100,000 messages.
/// The one case in which a send is begun and not finished is then the end of its socket.
fn send(half: &mut DealerSendHalf, bytes: Bytes) -> bool {
    half.send(ZmqMessage::from(bytes)).now_or_never().is_some_and(|sent| sent.is_ok())
}
