//! What workers say, and what becomes of calls whose worker is gone.

use std::time::Instant;

use faena_domain::plan::CallPath;
use faena_domain::{CallNum, Epoch, Owner};
use faena_protocol::Envelope;
use faena_protocol::node::{HeldCall, NodeInfo, QueuedEnd, ToApi, ToWorker};
use faena_protocol::records::BuildRef;
use faena_transport::Peer;
use tracing::{debug, info, warn};

use super::{Ask, Scheduler};
use crate::fleet::{Claim, NodeTerms};
use crate::statistics::CallSample;
use crate::sync_call::SyncCall;

/// What a worker says when it is connected.
struct Hello {
    node: NodeInfo,
    calls: Vec<HeldCall>,
    ended: Vec<(CallNum, Epoch)>,
    builds: Vec<BuildRef>,
}

impl Scheduler {
    pub(super) async fn message(&mut self, peer: Peer, bytes: &[u8]) {
        let message = match Envelope::decode(bytes).and_then(|envelope| envelope.parse::<ToApi>()) {
            Ok(message) => message,
            Err(error) => return warn!(%error, "a message of a worker was dropped"),
        };
        if let ToApi::Hello { node, calls, ended, builds } = message {
            return self.joined(peer, Hello { node, calls, ended, builds }).await;
        }
        let Some(owner) = self.fleet.owner(&peer) else {
            return self.say(&peer, &ToWorker::SayHello).await;
        };
        match message {
            ToApi::Accepted { num, epoch } => debug!(call = %num, %epoch, "a worker has taken a call"),
            ToApi::Started { num, epoch } => self.started(num, epoch, &owner),
            ToApi::Ended { num, epoch, outcome, queued } => {
                if self.call_ended(&peer, (num, epoch), queued.map(|queued| *queued)).await {
                    self.ended(num, epoch, &owner, outcome.map(|outcome| *outcome));
                }
            }
            ToApi::BuildEnded { build, is_ready } => self.build_ended(&peer, build, is_ready).await,
            ToApi::Engines { engines } => {
                info!(%owner, engines = ?engines.iter().map(|info| info.engine).collect::<Vec<_>>(), "a worker's engines have changed");
                self.connections.engines(&owner.worker, &engines);
                self.fleet.engines(&peer, engines);
                self.asks(Ask::Work);
            }
            ToApi::Pool { pool } => {
                if self.fleet.pool(&peer, pool) {
                    self.asks(Ask::Work);
                }
            }
            ToApi::Reply { id, reply } => self.questions.reply(id, &peer, reply),
            ToApi::Draining => {
                self.connections.leave(&owner.worker);
                self.fleet.draining(&peer);
            }
            ToApi::Hello { .. } => {}
        }
    }

    /// A call is over on a worker; false where the worker did not have it.
    async fn call_ended(&mut self, peer: &Peer, claim: Claim, queued: Option<QueuedEnd>) -> bool {
        let of = self.fleet.call_ended(peer, claim, Instant::now());
        let had_it = of.is_some();
        if of.as_ref().is_some_and(|of| self.fleet.has_left_reserve(peer, of)) {
            self.asks(Ask::WorkForReserves);
        }
        if let (Some(of), Some(QueuedEnd { status, attempt })) = (of, queued) {
            let sample = CallSample::new(CallPath::Queued, status, Some(&attempt));
            self.shared.statistics.record(&of.function_id(), &sample);
        }
        self.say(peer, &ToWorker::EndedAck { num: claim.0, epoch: claim.1 }).await;
        let is_announced = self.announced.get_mut(peer).is_some_and(|ended| ended.remove(&claim));
        had_it || is_announced
    }

    /// A build is over on a worker. The others are told where a version is ready, and may make instances of it.
    async fn build_ended(&mut self, peer: &Peer, build: BuildRef, is_ready: bool) {
        let was_there = self.fleet.build_ended(peer, &build);
        self.asks(Ask::Work);
        if !is_ready || !was_there {
            return;
        }
        for other in self.fleet.peers().into_iter().filter(|other| other != peer) {
            self.say(&other, &ToWorker::Built { build: build.clone() }).await;
        }
    }

    async fn joined(&mut self, peer: Peer, hello: Hello) {
        let Hello { node, calls, ended, builds } = hello;
        if self.fleet.owner(&peer).as_ref() == Some(&node.owner) {
            // Said again on the same connection: what was sent on it meanwhile is still on its way.
            return self.say(&peer, &ToWorker::Welcome { preload: self.preload }).await;
        }
        info!(worker = node.owner.worker, slots = node.slots, "a worker has joined");
        self.announced.insert(peer.clone(), ended.iter().copied().collect());
        let held: Vec<(CallNum, Epoch)> = calls.iter().map(|call| (call.num, call.epoch)).chain(ended).collect();
        self.never_arrived(&node.owner, &held);
        self.connections.open(&node);
        let worker = node.owner.worker.clone();
        let calls = calls.into_iter().map(|call| ((call.num, call.epoch), call.of)).collect();
        if let Some(gone) = self.fleet.joined(peer.clone(), node, calls, builds) {
            self.owner_lost(&gone);
        }
        self.asks(Ask::Work);
        self.say(&peer, &ToWorker::Welcome { preload: self.preload }).await;
        match self.fleet.is_to_drain(&worker) {
            Some(true) => self.say(&peer, &ToWorker::Drain).await,
            Some(false) => {}
            None => self.directory.look(),
        }
    }

    /// Takes over what an administrator says of nodes.
    pub(super) async fn administer(&mut self) {
        let known = self.directory.known();
        self.connections.administer(&known);
        let terms = known.iter().map(|node| (node.name.clone(), NodeTerms::from(node)));
        for peer in self.fleet.administer(terms.collect()) {
            self.say(&peer, &ToWorker::Drain).await;
        }
        self.asks(Ask::Work);
    }

    /// A worker that is back does not have what was sent to it: that lay in the connection that was lost.
    fn never_arrived(&mut self, owner: &Owner, held: &[(CallNum, Epoch)]) {
        let is_missing = |call: &SyncCall| {
            call.owner.as_ref() == Some(owner)
                && !call.is_being_persisted()
                && !held.contains(&(call.spec.num, call.epoch))
        };
        let missing: Vec<CallNum> =
            self.waited.values().filter(|call| is_missing(call)).map(|call| call.spec.num).collect();
        for num in missing {
            // The lease of one that has its row brings it back.
            if let Some(call) = self.waited.remove(&num).filter(|call| !call.is_persisted()) {
                self.gone_with_its_worker(call);
            }
        }
    }

    /// Dispatched again only if no instance acknowledged its start.
    fn gone_with_its_worker(&mut self, call: SyncCall) {
        if call.has_started() {
            let record = call.lost();
            self.end_waited(call, record);
        } else {
            self.again(call);
        }
    }

    /// A worker is gone for good: what it ran without a row starts elsewhere if it had not begun, and fails otherwise.
    pub(super) fn owner_lost(&mut self, owner: &Owner) {
        let lost: Vec<CallNum> =
            self.waited.values().filter(|call| call.owner.as_ref() == Some(owner)).map(|call| call.spec.num).collect();
        warn!(%owner, calls = lost.len(), "a worker is lost");
        for num in lost {
            let Some(call) = self.waited.remove(&num) else { continue };
            match (call.is_being_persisted(), call.is_persisted()) {
                // The client still has to be told.
                (true, _) => drop(self.waited.insert(num, call)),
                // Its row's lease ends it.
                (false, true) => {}
                (false, false) => self.gone_with_its_worker(call),
            }
        }
    }
}
