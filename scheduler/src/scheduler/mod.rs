//! The task: it takes one event after the other, and does what the pure parts decide.

mod calls;
mod claims;
mod workers;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use faena_db_client::{DbClient, NodeDirectory};
use faena_domain::{CallNum, EngineKind, FunctionId, Namespace, Preload};
use faena_protocol::Envelope;
use faena_protocol::node::{CallOf, TYPE, ToWorker};
use faena_transport::{Peer, Server, ServerEvent, ServerHandle, boot_ms};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::fleet::{Assigned, Claim, Fleet};
use crate::handle::{Command, SchedulerHandle, Shared};
use crate::questions::Questions;
use crate::sync_call::SyncCall;
use crate::turns::Turns;
use crate::worker_connections::WorkerConnections;
use claims::lease;

/// How often db is asked for work that nobody announced: retries that are due, builds given back, calls for a reserve.
const TICK: Duration = Duration::from_millis(500);
/// How long a worker may be away before what it ran without a row counts as lost: one lease.
const AWAY: Duration = Duration::from_secs(30);

/// What db has to be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Ask {
    /// Nothing: all that it has is claimed.
    #[default]
    Nothing,
    /// It may have work for free slots.
    Work,
    /// The same, and work for the reserve of workers whose slots one function holds.
    WorkForReserves,
}

/// The task.
#[derive(Debug)]
pub struct Scheduler {
    db: DbClient,
    directory: NodeDirectory,
    server: ServerHandle,
    connections: WorkerConnections,
    shared: Shared,
    fleet: Fleet<Peer>,
    /// Calls without a row, and those of them that wait for a slot.
    waited: HashMap<CallNum, SyncCall>,
    queue: Turns<CallNum>,
    questions: Questions,
    /// Ends that a worker announced when it connected: of calls that it had before, of which no more is known here.
    announced: HashMap<Peer, HashSet<Claim>>,
    ask: Ask,
    /// What workers keep waiting for calls, where nothing nearer says so.
    preload: Preload,
    /// Cancelled when the api begins to stop: nothing more is claimed.
    draining: CancellationToken,
}

impl Scheduler {
    /// A scheduler of the workers behind a socket, and its handle.
    pub fn new(
        (db, directory): (DbClient, NodeDirectory),
        server: ServerHandle,
        connections: WorkerConnections,
        (preload, draining): (Preload, CancellationToken),
    ) -> (Self, SchedulerHandle) {
        let (handle, shared) = SchedulerHandle::new(db.clone());
        let scheduler = Self {
            db,
            directory,
            server,
            connections,
            shared,
            fleet: Fleet::default(),
            waited: HashMap::new(),
            queue: Turns::default(),
            questions: Questions::default(),
            announced: HashMap::new(),
            ask: Ask::Work,
            preload,
            draining,
        };
        (scheduler, handle)
    }

    /// Schedules until it is aborted.
    pub async fn run(mut self, mut workers: Server) {
        let mut tick = tokio::time::interval(TICK);
        let poke = std::sync::Arc::clone(&self.shared.poke);
        let mut known = self.directory.subscribe();
        // `changed` does not report the list that was read before the subscription.
        self.administer().await;
        loop {
            tokio::select! {
                Some(command) = self.shared.commands.recv() => self.command(command).await,
                event = workers.next() => match event {
                    Some(ServerEvent::Message(peer, bytes)) => self.message(peer, &bytes).await,
                    Some(ServerEvent::Lost(peer)) => {
                        self.fleet.lost(&peer, Instant::now());
                        self.questions.lost(&peer);
                        self.announced.remove(&peer);
                    }
                    None => return,
                },
                () = poke.notified() => self.poked(),
                Ok(()) = known.changed() => self.administer().await,
                _ = tick.tick() => self.tick(),
            }
            self.schedule().await;
            // Direct calls prefer workers that these calls leave slots.
            for (worker, slots) in self.fleet.changed_slots() {
                self.connections.scheduled(&worker, slots);
            }
        }
    }

    /// Db has got work. Where the function could take a reserve, that is looked at too.
    fn poked(&mut self) {
        let functions = std::mem::take(&mut *self.shared.poked.lock());
        self.fleet.expect(&functions, Instant::now());
        let is_for_reserve = functions.iter().any(|function| self.fleet.has_reserve_for(function));
        self.asks(if is_for_reserve { Ask::WorkForReserves } else { Ask::Work });
    }

    /// Db is asked for this as soon as what has come is dealt with.
    fn asks(&mut self, ask: Ask) {
        self.ask = self.ask.max(ask);
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Submit(call) => self.submit(*call),
            Command::Abandon(num) => self.abandon(num),
            Command::Workers(reply) => drop(reply.send(self.fleet.statuses())),
            Command::Cancel(num, reply) => drop(reply.send(self.cancel(num).await)),
            Command::Stop(owner, num, epoch) => self.stop(&owner, num, epoch).await,
            Command::Forget(FunctionId { namespace, name: function }) => {
                for peer in self.fleet.peers() {
                    let (namespace, function) = (namespace.clone(), function.clone());
                    self.say(&peer, &ToWorker::Forget { namespace, function }).await;
                }
            }
            Command::Ask(question, replies) => {
                let peers = self.fleet.who_knows(&question);
                let id = self.questions.begin(replies, &peers);
                for peer in peers {
                    self.say(&peer, &ToWorker::Ask { id, question: question.clone() }).await;
                }
            }
            Command::ClaimReply(claimed) => self.claimed(*claimed),
            Command::Persisted(num, result) => self.persisted(num, *result).await,
        }
    }

    async fn say(&self, peer: &Peer, message: &ToWorker) {
        match Envelope::new("", TYPE, message).and_then(|envelope| envelope.encode()) {
            Ok(bytes) => drop(self.server.send(peer, bytes).await),
            Err(error) => warn!(%error, "a message to a worker cannot be sent"),
        }
    }

    fn tick(&mut self) {
        self.asks(Ask::WorkForReserves);
        self.questions.forget_abandoned();
        for owner in self.fleet.forget_away(AWAY, Instant::now()) {
            self.connections.close(&owner.worker);
            self.owner_lost(&owner);
        }
        let vanished: Vec<CallNum> =
            self.waited.values().filter(|call| call.has_vanished(AWAY)).map(|call| call.spec.num).collect();
        for num in vanished {
            if let Some(call) = self.waited.remove(&num) {
                let record = call.lost();
                self.end_waited(call, record);
            }
        }
        let late: Vec<CallNum> =
            self.queue.iter().filter(|num| self.waited.get(num).is_some_and(SyncCall::is_late)).collect();
        for num in late {
            if let Some(call) = self.waited.remove(&num) {
                self.queue.remove(&call.code.function_id(), num);
                let record = call.expired();
                self.end_waited(call, record);
            }
        }
    }

    /// Sends waiting calls to workers with free slots, and claims in db for the slots that are left.
    async fn schedule(&mut self) {
        let mut assigned: Vec<(Assigned<Peer>, CallNum)> = Vec::new();
        let (waited, now) = (&self.waited, Instant::now());
        let load = |fleet: &Fleet<Peer>, namespace: &Namespace, weight| fleet.load(namespace, weight);
        self.queue.serve(&mut self.fleet, load, |fleet, num, others_wait| {
            // One that has gone is taken out.
            let Some(call) = waited.get(&num) else { return true };
            let engine = call.code.engine.unwrap_or(EngineKind::Sandbox);
            let claim = (num, call.epoch.next());
            match fleet.assign((engine, &call.code.nodes), claim, &CallOf::of(&call.code), others_wait, now) {
                Some(to) => assigned.push((to, num)),
                None => return false,
            }
            true
        });
        for (Assigned { peer, owner, placement }, num) in assigned {
            let Some(call) = self.waited.get_mut(&num) else { continue };
            let job = Box::new(call.dispatch(owner, placement));
            self.say(&peer, &ToWorker::Call { job, lease: lease(boot_ms()) }).await;
        }
        let ask = std::mem::take(&mut self.ask);
        if ask != Ask::Nothing && !self.draining.is_cancelled() {
            self.claim(ask == Ask::WorkForReserves);
        }
    }
}
