//! The way to the scheduler's task.

use std::collections::HashSet;
use std::sync::Arc;

use faena_db_client::DbClient;
use faena_domain::{CallNum, Epoch, FunctionId, Owner};
use faena_protocol::DbError;
use faena_protocol::node::{Lease, Question, Reply};
use faena_protocol::records::{BuildJob, CallJob, CallRecord};
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};

use crate::completions::CompletionWriter;
use crate::fleet::WorkerStatus;
use crate::in_flight::InFlight;
use crate::statistics::Statistics;
use crate::sync_call::SyncCall;

/// Calls without a row that wait for a slot, and commands that wait for the task.
const QUEUE: usize = 10_000;
/// Replies to one question that may wait; further ones are dropped.
const REPLIES: usize = 64;
/// Ends of calls that a follower may be behind before it has to look for itself.
const ENDS: usize = 1024;

/// What the task is told.
pub(crate) enum Command {
    Submit(Box<SyncCall>),
    Abandon(CallNum),
    Workers(oneshot::Sender<Vec<WorkerStatus>>),
    Cancel(CallNum, oneshot::Sender<Option<CallRecord>>),
    Stop(Owner, CallNum, Epoch),
    Forget(FunctionId),
    Ask(Question, mpsc::Sender<Reply>),
    ClaimReply(Box<ClaimReply>),
    Persisted(CallNum, Box<Result<CallRecord, DbError>>),
}

/// What db claimed for a worker.
pub(crate) struct ClaimReply {
    pub(crate) owner: Owner,
    pub(crate) calls: Vec<CallJob>,
    pub(crate) builds: Vec<BuildJob>,
    pub(crate) lease: Lease,
}

/// The way to the scheduler; clones share it.
#[derive(Clone, Debug)]
pub struct SchedulerHandle {
    commands: mpsc::Sender<Command>,
    poke: Arc<Notify>,
    poked: Arc<Mutex<HashSet<FunctionId>>>,
    ends: broadcast::Sender<CallNum>,
    completions: CompletionWriter,
    in_flight: InFlight,
    statistics: Statistics,
}

/// What the task shares with its handles.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) sender: mpsc::Sender<Command>,
    pub(crate) poke: Arc<Notify>,
    /// The functions that db has got work for since they were looked at.
    pub(crate) poked: Arc<Mutex<HashSet<FunctionId>>>,
    pub(crate) ends: broadcast::Sender<CallNum>,
    pub(crate) completions: CompletionWriter,
    pub(crate) in_flight: InFlight,
    pub(crate) statistics: Statistics,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

impl SchedulerHandle {
    /// A handle, and what the task keeps.
    pub(crate) fn new(db: DbClient) -> (Self, Shared) {
        let (sender, commands) = mpsc::channel(QUEUE);
        let (ends, _) = broadcast::channel(ENDS);
        let (poke, poked, in_flight) = (Arc::new(Notify::new()), Arc::default(), InFlight::default());
        let completions = CompletionWriter::new(db, in_flight.clone());
        let handle = Self {
            commands: sender.clone(),
            poke: Arc::clone(&poke),
            poked: Arc::clone(&poked),
            ends: ends.clone(),
            completions: completions.clone(),
            in_flight: in_flight.clone(),
            statistics: Statistics::default(),
        };
        let statistics = handle.statistics.clone();
        (handle, Shared { commands, sender, poke, poked, ends, completions, in_flight, statistics })
    }

    /// Hands over a waited call; its answer comes through its own channel. False if the scheduler's queue is full.
    pub fn submit(&self, call: SyncCall) -> bool {
        self.commands.try_send(Command::Submit(Box::new(call))).is_ok()
    }

    /// Says that nobody waits for a call any longer: it gets its row, and its channel says when it has.
    pub async fn abandon(&self, num: CallNum) {
        // Where the scheduler has gone, so has the channel that would answer.
        let _ = self.commands.send(Command::Abandon(num)).await;
    }

    /// Cancels a call that has no row; none where it has one, or has ended.
    pub async fn cancel(&self, num: CallNum) -> Option<CallRecord> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Cancel(num, reply)).await;
        answer.await.ok().flatten()
    }

    /// Has a worker stop a call that was cancelled in db.
    pub async fn stop(&self, owner: Owner, num: CallNum, epoch: Epoch) {
        // Where the scheduler has gone the worker hears of it at its next renewal.
        let _ = self.commands.send(Command::Stop(owner, num, epoch)).await;
    }

    /// Has every worker let go of what waits for calls of a function that is deleted.
    pub async fn forget(&self, function: FunctionId) {
        // Where the scheduler has gone, so have the workers' connections.
        let _ = self.commands.send(Command::Forget(function)).await;
    }

    /// Tells followers of a call that its status has changed.
    pub fn tell(&self, num: CallNum) {
        // Nobody may follow it.
        let _ = self.ends.send(num);
    }

    /// Says that db has got work for a function.
    pub fn poke(&self, function: FunctionId) {
        self.poked.lock().insert(function);
        self.poke.notify_one();
    }

    /// Asks every worker that is connected; replies come as they are given, and end when all have replied.
    pub async fn ask(&self, question: Question) -> mpsc::Receiver<Reply> {
        let (sender, replies) = mpsc::channel(REPLIES);
        // Where the scheduler has gone there is no reply.
        let _ = self.commands.send(Command::Ask(question, sender)).await;
        replies
    }

    /// The workers that are connected.
    pub async fn workers(&self) -> Vec<WorkerStatus> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Workers(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Numbers of calls that have ended, or have been given back.
    pub fn ends(&self) -> broadcast::Receiver<CallNum> {
        self.ends.subscribe()
    }

    /// What writes calls that have ended.
    pub fn completions(&self) -> &CompletionWriter {
        &self.completions
    }

    /// What functions have done.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// The calls that have no row.
    pub fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }
}
