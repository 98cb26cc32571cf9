//! A server on a node whose clients are on the platform's machine: the front listens there for it.

use std::collections::HashSet;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use faena_protocol::front::{Channel, LaneFrame};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::dialer::FrontDialer;
use super::frames::CarryEnd;
use crate::event_sink::{EventSink, Told};
use crate::server::{OpenServer, Outgoing, Peer, ServerEvent, UnopenedServer};

/// The pause before the front is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// The front numbers the connections of its side.
fn peer_of(number: u32) -> Peer {
    Peer(Bytes::copy_from_slice(&number.to_le_bytes()))
}

impl From<Outgoing> for Bytes {
    fn from(Outgoing { peer, message }: Outgoing) -> Self {
        let number = peer.0[..].try_into().map_or(0, u32::from_le_bytes);
        let mut frame = BytesMut::with_capacity(LaneFrame::LENGTH + message.len());
        frame.put_slice(&LaneFrame { peer: number, is_end: false }.encode());
        frame.put_slice(&message);
        frame.freeze()
    }
}

/// Hands frames over as events.
struct Lane<E> {
    on_event: E,
    peers: HashSet<u32>,
}

impl<E: EventSink<ServerEvent>> EventSink<Bytes> for Lane<E> {
    async fn hear(&mut self, frame: Bytes) -> bool {
        match LaneFrame::decode(&frame) {
            Some(LaneFrame { peer, is_end: true }) => {
                !self.peers.remove(&peer) || self.on_event.hear(ServerEvent::Lost(peer_of(peer))).await
            }
            Some(LaneFrame { peer, is_end: false }) => {
                self.peers.insert(peer);
                let message = frame.slice(LaneFrame::LENGTH..);
                self.on_event.hear(ServerEvent::Message(peer_of(peer), message)).await
            }
            None => true,
        }
    }
}

impl UnopenedServer {
    /// Serves through the front, for one thread of this worker; never stops trying. Events are handed over as by
    /// [`UnopenedServer::open`].
    pub fn open_through(
        self,
        dialer: FrontDialer,
        lane: u16,
        on_event: impl FnMut(ServerEvent) + Send + 'static,
    ) -> OpenServer {
        let stop = CancellationToken::new();
        let run = self.run_through(dialer, lane, Told(on_event));
        tokio::spawn(stop.clone().run_until_cancelled_owned(run));
        OpenServer::new(stop.drop_guard())
    }

    async fn run_through(mut self, dialer: FrontDialer, number: u16, on_event: impl EventSink<ServerEvent>) {
        let mut lane = Lane { on_event, peers: HashSet::new() };
        loop {
            match dialer.open(Channel::Direct { lane: number }).await {
                Ok((frames, _)) => {
                    let end = frames.carry(&mut self.queue, &mut lane).await;
                    for peer in std::mem::take(&mut lane.peers) {
                        lane.on_event.hear(ServerEvent::Lost(peer_of(peer))).await;
                    }
                    if end == CarryEnd::Unused {
                        return;
                    }
                }
                Err(error) => {
                    debug!(%error, lane = number, "calls cannot be sent here directly; they go by the scheduler");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
