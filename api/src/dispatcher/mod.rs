//! One task knows every worker and every call that has no row.
//!
//! Calls with a row are claimed in db for a worker that has a free slot, and only then sent to it; the worker ends them
//! there. A waited call has no row: it gets its epoch here, its outcome comes here, and it is written once, whole,
//! behind its answer. Where its wait runs out first, it is given its row before the client hears 202, and an outcome
//! that comes meanwhile waits for that.

mod fleet;
mod questions;
mod sync_call;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use faena_db_client::DbClient;
use faena_domain::queue::LEASE_MS;
use faena_domain::{CallNum, EngineKind, Epoch, FunctionName, Namespace, Owner};
use faena_protocol::db::{BuildFinish, BuildsClaim, CallFinish, CallPersist, CallsClaim};
use faena_protocol::node::{Lease, Question, Reply, TYPE, ToApi, ToWorker};
use faena_protocol::records::{BuildJob, CallJob, CallRecord, CallSpec, EndedCall, Outcome};
use faena_protocol::{DbError, DbRequest, Envelope};
use faena_transport::{Peer, Server, ServerEvent, ServerHandle, boot_id, boot_ms};
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::completions::{BacklogPermit, CompletionWriter};
use crate::in_flight::InFlight;
use crate::worker_connections::WorkerConnections;
use fleet::Fleet;
pub(crate) use fleet::WorkerView;
use questions::Questions;
pub(crate) use sync_call::{Answer, SyncCall, unix_ms};

/// Calls without a row that wait for a slot, and commands that wait for this task.
const QUEUE: usize = 10_000;
/// How often db is asked for work that nobody announced: retries that are due, builds given back.
const TICK: Duration = Duration::from_millis(500);
/// How long a worker may be away before what it ran without a row counts as lost: one lease.
const AWAY: Duration = Duration::from_secs(30);
/// The most calls of one claim: their params travel in one message.
const CLAIM: u32 = 16;
/// Replies to one question that may wait; further ones are dropped.
const REPLIES: usize = 64;
/// Ends of calls that a follower may be behind before it has to look for itself.
const ENDS: usize = 1024;

enum Command {
    Submit(Box<SyncCall>),
    Abandon(CallNum),
    Workers(oneshot::Sender<Vec<WorkerView>>),
    Cancel(CallNum, oneshot::Sender<Option<CallRecord>>),
    Stop(Owner, CallNum, Epoch),
    Forget(Namespace, FunctionName),
    Ask(Question, mpsc::Sender<Reply>),
    Claimed(Box<Claimed>),
    Persisted(CallNum, Box<Result<CallRecord, DbError>>),
}

/// What db claimed for a worker.
struct Claimed {
    owner: Owner,
    calls: Vec<CallJob>,
    builds: Vec<BuildJob>,
    lease: Lease,
}

/// The way to the dispatcher; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct DispatcherHandle {
    commands: mpsc::Sender<Command>,
    poke: Arc<Notify>,
    ends: broadcast::Sender<CallNum>,
    completions: CompletionWriter,
    in_flight: InFlight,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

impl DispatcherHandle {
    /// Hands over a waited call; its answer comes through its own channel. False if the dispatcher's queue is full.
    pub(crate) fn submit(&self, call: SyncCall) -> bool {
        self.commands.try_send(Command::Submit(Box::new(call))).is_ok()
    }

    /// Says that nobody waits for a call any longer: it gets its row, and its channel says when it has.
    pub(crate) async fn abandon(&self, num: CallNum) {
        // Where the dispatcher has gone, so has the channel that would answer.
        let _ = self.commands.send(Command::Abandon(num)).await;
    }

    /// Cancels a call that has no row; none where it has one, or has ended.
    pub(crate) async fn cancel(&self, num: CallNum) -> Option<CallRecord> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Cancel(num, reply)).await;
        answer.await.ok().flatten()
    }

    /// Has a worker stop a call that was cancelled in db.
    pub(crate) async fn stop(&self, owner: Owner, num: CallNum, epoch: Epoch) {
        // Where the dispatcher has gone the worker hears of it at its next renewal.
        let _ = self.commands.send(Command::Stop(owner, num, epoch)).await;
    }

    /// Has every worker let go of what waits for calls of a function that is deleted.
    pub(crate) async fn forget(&self, namespace: Namespace, function: FunctionName) {
        // Where the dispatcher has gone, so have the workers' connections.
        let _ = self.commands.send(Command::Forget(namespace, function)).await;
    }

    /// Tells followers of a call that its status has changed.
    pub(crate) fn tell(&self, num: CallNum) {
        // Nobody may follow it.
        let _ = self.ends.send(num);
    }

    /// Says that db has work.
    pub(crate) fn poke(&self) {
        self.poke.notify_one();
    }

    /// Asks every worker that is connected; replies come as they are given, and end when all have replied.
    pub(crate) async fn ask(&self, question: Question) -> mpsc::Receiver<Reply> {
        let (sender, replies) = mpsc::channel(REPLIES);
        // Where the dispatcher has gone there is no reply.
        let _ = self.commands.send(Command::Ask(question, sender)).await;
        replies
    }

    /// The workers that are connected.
    pub(crate) async fn workers(&self) -> Vec<WorkerView> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Workers(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Numbers of calls that have ended, or have been given back.
    pub(crate) fn ends(&self) -> broadcast::Receiver<CallNum> {
        self.ends.subscribe()
    }

    pub(crate) fn completions(&self) -> &CompletionWriter {
        &self.completions
    }

    pub(crate) fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }
}

/// The task.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    db: DbClient,
    server: ServerHandle,
    connections: WorkerConnections,
    completions: CompletionWriter,
    in_flight: InFlight,
    commands: mpsc::Receiver<Command>,
    sender: mpsc::Sender<Command>,
    poke: Arc<Notify>,
    ends: broadcast::Sender<CallNum>,
    fleet: Fleet,
    /// Calls without a row, and those of them that wait for a slot.
    waited: HashMap<CallNum, SyncCall>,
    queue: VecDeque<CallNum>,
    questions: Questions,
    /// Whether db may have work that nobody has claimed.
    dirty: bool,
    /// Cancelled when the api begins to stop: nothing more is claimed.
    draining: CancellationToken,
}

impl Dispatcher {
    pub(crate) fn new(
        db: DbClient,
        server: ServerHandle,
        connections: WorkerConnections,
        draining: CancellationToken,
    ) -> (Self, DispatcherHandle) {
        let (sender, commands) = mpsc::channel(QUEUE);
        let (ends, _) = broadcast::channel(ENDS);
        let (poke, in_flight) = (Arc::new(Notify::new()), InFlight::default());
        let completions = CompletionWriter::new(db.clone(), in_flight.clone());
        let handle = DispatcherHandle {
            commands: sender.clone(),
            poke: Arc::clone(&poke),
            ends: ends.clone(),
            completions: completions.clone(),
            in_flight: in_flight.clone(),
        };
        let dispatcher = Self {
            db,
            server,
            connections,
            completions,
            in_flight,
            commands,
            sender,
            poke,
            ends,
            fleet: Fleet::default(),
            waited: HashMap::new(),
            queue: VecDeque::new(),
            questions: Questions::default(),
            dirty: true,
            draining,
        };
        (dispatcher, handle)
    }

    /// Dispatches until it is aborted.
    pub(crate) async fn run(mut self, mut workers: Server) {
        let mut tick = tokio::time::interval(TICK);
        let poke = Arc::clone(&self.poke);
        loop {
            tokio::select! {
                Some(command) = self.commands.recv() => self.command(command).await,
                event = workers.next() => match event {
                    Some(ServerEvent::Message(peer, bytes)) => self.message(peer, &bytes).await,
                    Some(ServerEvent::Lost(peer)) => {
                        self.fleet.lost(&peer);
                        self.questions.lost(&peer);
                    }
                    None => return,
                },
                () = poke.notified() => self.dirty = true,
                _ = tick.tick() => self.tick(),
            }
            self.schedule().await;
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Submit(call) => self.submit(*call),
            Command::Abandon(num) => self.abandon(num),
            Command::Workers(reply) => drop(reply.send(self.fleet.views())),
            Command::Cancel(num, reply) => drop(reply.send(self.cancel(num).await)),
            Command::Stop(owner, num, epoch) => self.stop(&owner, num, epoch).await,
            Command::Forget(namespace, function) => {
                for peer in self.fleet.peers() {
                    let (namespace, function) = (namespace.clone(), function.clone());
                    self.say(&peer, &ToWorker::Forget { namespace, function }).await;
                }
            }
            Command::Ask(question, replies) => {
                let peers = self.fleet.peers();
                let id = self.questions.begin(replies, &peers);
                for peer in peers {
                    self.say(&peer, &ToWorker::Ask { id, question: question.clone() }).await;
                }
            }
            Command::Claimed(claimed) => self.claimed(*claimed),
            Command::Persisted(num, result) => self.persisted(num, *result).await,
        }
    }

    /// Ends a call without a row on somebody's word.
    async fn cancel(&mut self, num: CallNum) -> Option<CallRecord> {
        // One that is given its row is cancelled there.
        let call = self.waited.get(&num).filter(|call| !call.is_persisted())?;
        let (record, running) = (call.cancelled(), call.owner.clone().map(|owner| (owner, call.epoch)));
        self.queue.retain(|queued| *queued != num);
        let call = self.waited.remove(&num)?;
        self.end_waited(call, record.clone());
        if let Some((owner, epoch)) = running {
            self.stop(&owner, num, epoch).await;
        }
        Some(record)
    }

    async fn stop(&mut self, owner: &Owner, num: CallNum, epoch: Epoch) {
        if let Some(peer) = self.fleet.peer(owner) {
            self.say(&peer, &ToWorker::Cancel { num, epoch }).await;
        }
        self.dirty = true;
    }

    async fn say(&self, peer: &Peer, message: &ToWorker) {
        match Envelope::new("", TYPE, message).and_then(|envelope| envelope.encode()) {
            Ok(bytes) => drop(self.server.send(peer, bytes).await),
            Err(error) => warn!(%error, "a message to a worker cannot be sent"),
        }
    }

    async fn message(&mut self, peer: Peer, bytes: &[u8]) {
        let message = match Envelope::decode(bytes).and_then(|envelope| envelope.parse::<ToApi>()) {
            Ok(message) => message,
            Err(error) => return warn!(%error, "a message of a worker was dropped"),
        };
        if let ToApi::Hello { node, calls, builds } = message {
            if self.fleet.owner(&peer).as_ref() == Some(&node.owner) {
                // Said again on the same connection: what was sent on it meanwhile is still on its way.
                return self.say(&peer, &ToWorker::Welcome).await;
            }
            info!(worker = node.owner.worker, slots = node.slots, "a worker has joined");
            self.never_arrived(&node.owner, &calls);
            self.connections.open(&node);
            if let Some(gone) = self.fleet.joined(peer.clone(), node, calls, builds) {
                self.owner_lost(&gone);
            }
            self.dirty = true;
            return self.say(&peer, &ToWorker::Welcome).await;
        }
        let Some(owner) = self.fleet.owner(&peer) else {
            return self.say(&peer, &ToWorker::SayHello).await;
        };
        match message {
            ToApi::Accepted { num, epoch } => debug!(call = %num, %epoch, "a worker has taken a call"),
            ToApi::Started { num, epoch } => self.started(num, epoch),
            ToApi::Ended { num, epoch, outcome } => {
                self.fleet.call_ended(&peer, (num, epoch));
                self.say(&peer, &ToWorker::EndedAck { num, epoch }).await;
                self.ended(num, epoch, &owner, outcome.map(|outcome| *outcome));
            }
            ToApi::BuildEnded { build, is_ready } => {
                self.fleet.build_ended(&peer, &build);
                self.dirty = true;
                for other in self.fleet.peers().into_iter().filter(|other| is_ready && *other != peer) {
                    self.say(&other, &ToWorker::Built { build: build.clone() }).await;
                }
            }
            ToApi::Engines { engines } => {
                info!(%owner, engines = ?engines.iter().map(|info| info.engine).collect::<Vec<_>>(), "a worker's engines have changed");
                self.connections.engines(&owner.worker, &engines);
                self.fleet.engines(&peer, engines);
                self.dirty = true;
            }
            ToApi::Pool { pool } => self.fleet.pool(&peer, pool),
            ToApi::Reply { id, reply } => self.questions.reply(id, &peer, reply),
            ToApi::Draining => {
                self.connections.leave(&owner.worker);
                self.fleet.draining(&peer);
            }
            ToApi::Hello { .. } => {}
        }
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

    fn submit(&mut self, mut call: SyncCall) {
        if !call.code.engine.is_some_and(|engine| self.fleet.offers(engine)) {
            return self.finish_unrun(call);
        }
        let num = call.spec.num;
        self.in_flight.sync(&call.spec.namespace, call.record());
        call.queued();
        self.waited.insert(num, call);
        self.queue.push_back(num);
    }

    fn finish_unrun(&self, call: SyncCall) {
        let record = call.unavailable();
        self.end_waited(call, record);
    }

    /// Answers a waited call and writes it behind the answer.
    fn end_waited(&self, mut call: SyncCall, record: CallRecord) {
        let num = call.spec.num;
        match call.permit.take() {
            Some(permit) => {
                let CallSpec { namespace, direct, timeout_ms, .. } = call.spec.clone();
                self.completions.write(EndedCall { namespace, call: record.clone(), direct, timeout_ms }, permit);
            }
            None => self.in_flight.remove(num),
        }
        call.answer(Answer::Ended(Box::new(record)));
        // Nobody may follow it.
        let _ = self.ends.send(num);
    }

    fn started(&mut self, num: CallNum, epoch: Epoch) {
        if let Some(call) = self.waited.get_mut(&num).filter(|call| call.epoch == epoch) {
            call.started();
            // A call that has its row is read from there.
            if !call.is_persisted() {
                self.in_flight.sync(&call.spec.namespace, call.record());
            }
        }
    }

    /// The end of a call: of one with a row, which db has already, or of a waited one, whose end is judged here.
    fn ended(&mut self, num: CallNum, epoch: Epoch, owner: &Owner, outcome: Option<Outcome>) {
        self.dirty = true;
        let current = self.waited.get(&num).is_some_and(|call| call.epoch == epoch);
        if !current {
            match outcome {
                // An api before us gave the call its row, or it is too late and db says so.
                Some(_) => {
                    self.finish(CallFinish { num, epoch, owner: owner.clone(), outcome }, self.completions.permit());
                }
                None => drop(self.ends.send(num)),
            }
            return;
        }
        let Some(mut call) = self.waited.remove(&num) else { return };
        if call.is_persisted() {
            call.owner = Some(owner.clone());
            return self.end_persisted(call, outcome);
        }
        match outcome {
            Some(outcome) => {
                let record = call.ended(&outcome);
                self.end_waited(call, record);
            }
            // A worker that stops gives back what it had not finished.
            None => self.again(call),
        }
    }

    fn again(&mut self, mut call: SyncCall) {
        if !call.code.engine.is_some_and(|engine| self.fleet.offers(engine)) {
            return self.finish_unrun(call);
        }
        let num = call.spec.num;
        call.queued();
        self.waited.insert(num, call);
        self.queue.push_front(num);
    }

    /// A call that was given its row ends there.
    fn end_persisted(&mut self, mut call: SyncCall, outcome: Option<Outcome>) {
        if call.is_being_persisted() {
            call.outcome = Some(outcome);
            self.waited.insert(call.spec.num, call);
            return;
        }
        let Some(owner) = call.owner.clone() else { return };
        let finish = CallFinish { num: call.spec.num, epoch: call.epoch, owner, outcome };
        // A stop waits for it, as for every other write behind an answer.
        let permit = call.permit.take().or_else(|| self.completions.permit());
        self.finish(finish, permit);
    }

    /// Ends a row on behalf of a worker; a stop waits until that is done.
    fn finish(&self, finish: CallFinish, permit: Option<BacklogPermit>) {
        let (db, ends, poke) = (self.db.clone(), self.ends.clone(), Arc::clone(&self.poke));
        tokio::spawn(async move {
            deliver(&db, &finish).await;
            drop(permit);
            let _ = ends.send(finish.num);
            poke.notify_one();
        });
    }

    /// The wait of a client has run out: the call gets its row, and the client hears 202 when it has.
    fn abandon(&mut self, num: CallNum) {
        let Some(call) = self.waited.get_mut(&num) else { return };
        let running = call.owner.clone();
        if running.is_none() {
            self.queue.retain(|queued| *queued != num);
        }
        call.persisting();
        let persist = CallPersist {
            spec: call.spec.clone(),
            version: call.code.version,
            created_at: call.created_at,
            elapsed_ms: call.elapsed_ms(),
            epoch: call.epoch,
            running,
        };
        let (db, sender) = (self.db.clone(), self.sender.clone());
        tokio::spawn(async move {
            // Whether it was done must be known: a row that nobody knows of would contradict the answer.
            let result = db.ask_until_known(&persist).await;
            let _ = sender.send(Command::Persisted(num, Box::new(result))).await;
        });
    }

    async fn persisted(&mut self, num: CallNum, result: Result<CallRecord, DbError>) {
        if result.is_ok() {
            self.in_flight.remove(num);
        }
        let Some(mut call) = self.waited.remove(&num) else { return };
        match result {
            Ok(record) => {
                call.answer(Answer::Persisted(Box::new(record)));
                call.persisted();
                if let Some(outcome) = call.outcome.take() {
                    self.end_persisted(call, outcome);
                } else if let Some(owner) = call.owner.clone() {
                    // From now on its lease is db's to judge.
                    let epoch = call.epoch;
                    drop(call.permit.take());
                    self.waited.insert(num, call);
                    if let Some(peer) = self.fleet.peer(&owner) {
                        self.say(&peer, &ToWorker::Persisted { num, epoch }).await;
                    }
                } else {
                    self.dirty = true;
                }
            }
            Err(error) => {
                // Without a row there is no 202; the call goes on and is recorded when it ends.
                call.answer(Answer::Refused(error));
                call.not_persisted();
                match (call.outcome.take(), call.owner.is_some()) {
                    (Some(Some(outcome)), _) => {
                        let record = call.ended(&outcome);
                        self.end_waited(call, record);
                    }
                    (None, true) => drop(self.waited.insert(num, call)),
                    (Some(None), _) | (None, false) => self.again(call),
                }
            }
        }
    }

    /// A worker is gone for good: what it ran without a row starts elsewhere if it had not begun, and fails otherwise.
    fn owner_lost(&mut self, owner: &Owner) {
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

    fn tick(&mut self) {
        self.dirty = true;
        self.questions.forget_abandoned();
        for owner in self.fleet.forget_away(AWAY) {
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
            self.queue.iter().filter(|num| self.waited.get(num).is_some_and(SyncCall::is_late)).copied().collect();
        for num in late {
            self.queue.retain(|queued| *queued != num);
            if let Some(call) = self.waited.remove(&num) {
                let record = call.expired();
                self.end_waited(call, record);
            }
        }
    }

    /// Sends waiting calls to workers with free slots, and claims in db for the slots that are left.
    async fn schedule(&mut self) {
        let mut left = VecDeque::new();
        while let Some(num) = self.queue.pop_front() {
            let Some(call) = self.waited.get_mut(&num) else { continue };
            let engine = call.code.engine.unwrap_or(EngineKind::Sandbox);
            let claim = (num, call.epoch.next());
            match self.fleet.assign(engine, claim) {
                Some((peer, owner)) => {
                    let job = call.dispatch(owner);
                    self.say(&peer, &ToWorker::Call { job: Box::new(job), lease: lease(boot_ms()) }).await;
                }
                None => left.push_back(num),
            }
        }
        self.queue = left;
        if std::mem::take(&mut self.dirty) && !self.draining.is_cancelled() {
            self.claim();
        }
    }

    fn claim(&mut self) {
        for capacity in self.fleet.capacities() {
            let (db, sender) = (self.db.clone(), self.sender.clone());
            let request = uuid::Uuid::new_v4().simple().to_string();
            tokio::spawn(async move {
                let owner = capacity.owner.clone();
                // Db grants the lease no earlier than now.
                let lease = lease(boot_ms());
                let calls = CallsClaim {
                    request: request.clone(),
                    owner: owner.clone(),
                    engines: capacity.engines.clone(),
                    limit: capacity.calls.min(CLAIM),
                };
                let builds =
                    BuildsClaim { request, owner: owner.clone(), engines: capacity.engines, limit: capacity.builds };
                // The same claim is asked until it is answered: what db took for us must not be left lying.
                let calls = if calls.limit > 0 { db.ask_until_known(&calls).await } else { Ok(Vec::new()) };
                let builds = if builds.limit > 0 { db.ask_until_known(&builds).await } else { Ok(Vec::new()) };
                for error in [calls.as_ref().err(), builds.as_ref().err()].into_iter().flatten() {
                    debug!(%error, "nothing could be claimed");
                }
                let (calls, builds) = (calls.unwrap_or_default(), builds.unwrap_or_default());
                let _ = sender.send(Command::Claimed(Box::new(Claimed { owner, calls, builds, lease }))).await;
            });
        }
    }

    fn claimed(&mut self, claimed: Claimed) {
        let Claimed { owner, calls, builds, lease } = claimed;
        self.dirty |= !calls.is_empty() || !builds.is_empty();
        let Some(peer) = self.fleet.claimed(&owner, &calls, &builds) else {
            return self.give_back(&owner, calls, builds);
        };
        let server = self.server.clone();
        let calls = calls.into_iter().map(|job| ToWorker::Call { job: Box::new(job), lease: lease.clone() });
        let builds = builds.into_iter().map(|job| ToWorker::Build { job: Box::new(job), lease: lease.clone() });
        let messages: Vec<ToWorker> = calls.chain(builds).collect();
        tokio::spawn(async move {
            for message in messages {
                match Envelope::new("", TYPE, &message).and_then(|envelope| envelope.encode()) {
                    Ok(bytes) => drop(server.send(&peer, bytes).await),
                    Err(error) => warn!(%error, "a job cannot be sent"),
                }
            }
        });
    }

    /// The worker went while db claimed for it: nothing has begun.
    fn give_back(&self, owner: &Owner, calls: Vec<CallJob>, builds: Vec<BuildJob>) {
        let (db, owner) = (self.db.clone(), owner.clone());
        tokio::spawn(async move {
            for job in calls {
                deliver(&db, &CallFinish { num: job.num, epoch: job.epoch, owner: owner.clone(), outcome: None }).await;
            }
            for job in builds {
                let (namespace, function) = (job.code.namespace, job.code.function);
                let (version, epoch, owner) = (job.code.version, job.epoch, owner.clone());
                deliver(&db, &BuildFinish { namespace, function, version, epoch, owner, outcome: None }).await;
            }
        });
    }
}

/// A lease that was granted at this instant or later, for workers that share our clock.
fn lease(granted_ms: u64) -> Lease {
    Lease { boot: boot_id().to_owned(), until_ms: granted_ms + LEASE_MS.unsigned_abs() }
}

/// Writes, and does not give up while the answer is not known.
async fn deliver<R: DbRequest>(db: &DbClient, request: &R) {
    if let Err(error) = db.ask_until_known(request).await {
        debug!(%error, request = R::TYPE, "db refuses a write");
    }
}
