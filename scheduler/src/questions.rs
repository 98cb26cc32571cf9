//! Questions to workers that have not been answered by all of them.

use std::collections::{HashMap, HashSet};

use faena_protocol::node::Reply;
use faena_transport::Peer;
use tokio::sync::mpsc;

/// One question.
#[derive(Debug)]
struct Open {
    /// Workers that have not replied.
    missing: HashSet<Peer>,
    /// Closed when the last one has.
    replies: mpsc::Sender<Reply>,
}

/// The open questions by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    last: u64,
    open: HashMap<u64, Open>,
}

impl Questions {
    /// Expects a reply from each of these workers; returns the number of the question.
    pub(crate) fn begin(&mut self, replies: mpsc::Sender<Reply>, peers: &[Peer]) -> u64 {
        self.last += 1;
        if !peers.is_empty() {
            self.open.insert(self.last, Open { missing: peers.iter().cloned().collect(), replies });
        }
        self.last
    }

    /// Passes a reply on. One that was not expected is dropped.
    pub(crate) fn reply(&mut self, id: u64, peer: &Peer, reply: Reply) {
        let Some(open) = self.open.get_mut(&id) else { return };
        if open.missing.remove(peer) {
            // The asker has enough, or does not listen any more.
            let _ = open.replies.try_send(reply);
        }
        if open.missing.is_empty() {
            self.open.remove(&id);
        }
    }

    /// A worker that is gone does not reply.
    pub(crate) fn lost(&mut self, peer: &Peer) {
        self.open.retain(|_, open| {
            open.missing.remove(peer);
            !open.missing.is_empty()
        });
    }

    /// Forgets questions whose askers do not wait any more.
    pub(crate) fn forget_abandoned(&mut self) {
        self.open.retain(|_, open| !open.replies.is_closed());
    }
}
