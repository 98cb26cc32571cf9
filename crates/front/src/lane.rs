//! Direct calls: for each thread of a node's worker the front has a socket that threads of the api connect to.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use faena_protocol::direct::wire;
use faena_protocol::front::{LaneFrame, Opened};
use faena_transport::front::FrameStream;
use faena_transport::{Endpoint, Peer, ServerEvent, UnopenedServer};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::Shared;
use crate::nodes::Node;
use crate::refusal::{Refused, refuse};
use crate::relay::QUEUE;

/// Threads of one worker.
pub(crate) const LANES: u16 = 256;
/// The next number of a connection. A number is never used again, so a late message reaches no other connection.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// The socket of one thread of a node.
fn endpoint(shared: &Shared, node: &Node, lane: u16) -> Result<Endpoint, String> {
    let path = shared.config.sockets.join(format!("n{}-{lane}.sock", node.number));
    Endpoint::new(path).map_err(|error| error.to_string())
}

/// Where the api reaches a thread that a node names by its number.
pub(crate) fn socket(shared: &Shared, node: &Node, lane: &str) -> Result<String, String> {
    let number = lane.parse::<u16>().ok().filter(|lane| *lane < LANES);
    let number = number.ok_or_else(|| format!("{lane:?} is no number of a thread"))?;
    Ok(endpoint(shared, node, number)?.path().display().to_string())
}

/// The connections of the api's threads to one thread of a node.
#[derive(Default)]
struct Peers {
    numbers: HashMap<Peer, u32>,
    peers: HashMap<u32, Peer>,
}

impl Peers {
    fn number(&mut self, peer: &Peer) -> u32 {
        if let Some(number) = self.numbers.get(peer) {
            return *number;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.numbers.insert(peer.clone(), number);
        self.peers.insert(number, peer.clone());
        number
    }

    fn remove(&mut self, peer: &Peer) -> Option<u32> {
        let number = self.numbers.remove(peer)?;
        self.peers.remove(&number);
        Some(number)
    }
}

fn frame(begin: LaneFrame, message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(LaneFrame::LENGTH + message.len());
    frame.put_slice(&begin.encode());
    frame.put_slice(message);
    frame.freeze()
}

pub(crate) async fn serve(shared: &Arc<Shared>, node: &Arc<Node>, mut frames: FrameStream, lane: u16) {
    let bound = if lane < LANES { endpoint(shared, node, lane) } else { Err(format!("{lane} is no thread")) };
    let endpoint = match bound {
        Ok(endpoint) => endpoint,
        Err(message) => return refuse(&mut frames, Refused::not_permitted(message)).await,
    };
    let (to_node, queue) = mpsc::channel::<Bytes>(QUEUE);
    let (peers, full) = (Arc::new(Mutex::new(Peers::default())), CancellationToken::new());
    let (handle, server) = UnopenedServer::new();
    let (known, noted, is_full) = (Arc::clone(&peers), Arc::clone(node), full.clone());
    let heard = move |event| {
        let frame = match event {
            ServerEvent::Message(peer, message) => {
                if let Some(code) = wire::code_in(&message) {
                    noted.grants.code(&code);
                }
                frame(LaneFrame { peer: known.lock().number(&peer), is_end: false }, &message)
            }
            ServerEvent::Lost(peer) => {
                let Some(number) = known.lock().remove(&peer) else { return };
                frame(LaneFrame { peer: number, is_end: true }, &[])
            }
        };
        if to_node.try_send(frame).is_err() {
            is_full.cancel();
        }
    };
    let _open = match server.open(&endpoint, heard).await {
        Ok(open) => open,
        Err(error) => {
            warn!(node = %node.name, %error, "the socket for direct calls of a node cannot be bound");
            return refuse(&mut frames, Refused::busy("the platform cannot take direct calls for the node")).await;
        }
    };
    if frames.send_json(&Opened::Ready).await.is_err() {
        return;
    }
    let to_api = |frame: Bytes| {
        let Some(begin) = LaneFrame::decode(&frame) else { return false };
        let peer = peers.lock().peers.get(&begin.peer).cloned();
        // A message to a peer that has disconnected is dropped.
        peer.is_none_or(|peer| handle.try_send(&peer, frame.slice(LaneFrame::LENGTH..)))
    };
    tokio::select! {
        () = frames.exchange_with(queue, to_api) => debug!(node = %node.name, lane, "direct calls of a node are over"),
        () = full.cancelled() => warn!(node = %node.name, lane, "a node takes no direct calls; its connection is cut off"),
    }
}
