//! The one thread that writes: many requests, one commit, then all the answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use faena_domain::FunctionId;
use faena_protocol::DbError;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use serde_json::value::RawValue;
use tracing::{error, warn};

use super::tx::SqliteTx;
use super::{Shared, WAL_LIMIT, internal};
use crate::metrics::Metrics;
use crate::reserve::Reserve;
use crate::rules::{RequestContext, Work, grant_grace};
use crate::store::Responder;

/// The most requests that wait; beyond it the asker hears [`DbError::Full`].
const QUEUE: usize = 4096;
/// The most requests of one transaction.
const GROUP: usize = 256;
/// How often the disk is looked at, in milliseconds.
const LOOK_MS: i64 = 1000;
/// Requests come every second at least (the service asks itself to reap); without any for this long we were stopped.
const STALL_MS: i64 = 5000;
/// What the process ends with when it cannot know whether a commit is durable (sysexits.h, `EX_IOERR`).
const EXIT_IO: i32 = 74;

/// A request and who waits for it.
pub(crate) struct Task {
    pub(crate) work: Work,
    /// The function whose calls may run something else afterwards.
    pub(crate) changes: Option<FunctionId>,
    pub(crate) respond: Responder,
}

/// The queue before the writing thread.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: Option<SyncSender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn start(
        connection: Connection,
        shared: Arc<Shared>,
        files: Files,
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        let (queue, tasks) = sync_channel(QUEUE);
        let last = shared.clock.now();
        let writing = Writing { connection, shared, files, metrics, last, stepped: false };
        let thread = std::thread::Builder::new().name("db-writer".to_owned()).spawn(move || writing.run(&tasks))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Queues a task, or gives it back where the queue is full.
    pub(crate) fn submit(&self, task: Task) -> Result<(), Task> {
        let Some(queue) = &self.queue else { return Err(task) };
        queue.try_send(task).map_err(|error| match error {
            TrySendError::Full(task) | TrySendError::Disconnected(task) => task,
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.take();
        // The last task may be what held the store: then this is the writing thread, which ends by itself.
        let is_ours = |thread: &JoinHandle<()>| thread.thread().id() == std::thread::current().id();
        let ended = self.thread.take().filter(|thread| !is_ours(thread)).map(JoinHandle::join);
        if matches!(ended, Some(Err(_))) {
            error!("the writing thread panicked");
        }
    }
}

struct Writing {
    connection: Connection,
    shared: Arc<Shared>,
    files: Files,
    metrics: Metrics,
    /// When we last were at work, in db time.
    last: i64,
    /// Whether a step of wall time was told.
    stepped: bool,
}

/// What lies beside the database.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) wal: PathBuf,
    pub(crate) reserve: Reserve,
}

type WrittenReply = (Responder, Result<Box<RawValue>, DbError>);

impl Writing {
    fn run(mut self, tasks: &Receiver<Task>) {
        while let Ok(first) = tasks.recv() {
            let stalled = self.look_around();
            let group: Vec<Task> = std::iter::once(first).chain(tasks.try_iter().take(GROUP - 1)).collect();
            let answers = self.group(group, stalled);
            for (respond, answer) in answers {
                respond(answer);
            }
            self.truncate_wal();
        }
    }

    /// Judges the disk once a second, and whether we were away for so long that leases could not be renewed.
    fn look_around(&mut self) -> bool {
        let now = self.shared.clock.now();
        let away = now - self.last;
        if away >= LOOK_MS {
            self.shared.set_disk(self.files.reserve.look());
            self.last = now;
            let step = self.shared.clock.wall_step_ms();
            if step.is_some() != self.stepped {
                self.stepped = step.is_some();
                warn!(step_ms = step, "wall time was set; db time goes on as it was, and only runAt follows");
            }
        }
        away >= STALL_MS
    }

    /// Runs a group in one transaction; no request is answered before it is durable.
    fn group(&mut self, group: Vec<Task>, stalled: bool) -> Vec<WrittenReply> {
        let shared = Arc::clone(&self.shared);
        let context = shared.context();
        let begun = Instant::now();
        let mut transaction = match self.connection.transaction_with_behavior(TransactionBehavior::Immediate) {
            Ok(transaction) => transaction,
            Err(error) => {
                let error = internal("beginning a transaction", &error);
                return group.into_iter().map(|task| (task.respond, Err(error.clone()))).collect();
            }
        };
        if stalled {
            warn!("the database was away; every lease is granted again");
            if let Err(error) = grant_grace(&SqliteTx { connection: &transaction }, context.now) {
                error!(%error, "leases could not be granted again");
            }
        }
        let mut answers = Vec::with_capacity(group.len());
        for Task { work, changes, respond } in group {
            changes.into_iter().for_each(|function| context.changes_function(function));
            answers.push((respond, in_savepoint(&mut transaction, work, &context)));
        }
        match commit(transaction, &context, &shared) {
            Ok(()) => {
                self.metrics.commits.inc();
                self.metrics.commit_seconds.observe(begun.elapsed().as_secs_f64());
                answers
            }
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                let error = internal("committing", &error);
                answers.into_iter().map(|(respond, _)| (respond, Err(error.clone()))).collect()
            }
            // After a failed fsync the kernel has forgotten which pages were dirty: a retry would lie.
            Err(error) => {
                error!(%error, "a commit failed; the process ends, because it cannot be known what is durable");
                std::process::exit(EXIT_IO);
            }
        }
    }

    fn truncate_wal(&self) {
        let length = std::fs::metadata(&self.files.wal).map_or(0, |metadata| metadata.len());
        if length > WAL_LIMIT {
            let truncated = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            if let Err(error) = truncated {
                error!(%error, length, "the write-ahead log could not be truncated");
            }
        }
    }
}

/// Commits a transaction, and counts what it has changed for those who cache it.
fn commit(transaction: Transaction<'_>, context: &RequestContext<'_>, shared: &Shared) -> rusqlite::Result<()> {
    let changed = context.changed.take();
    // From before the commit until after it nothing that is read of functions may be remembered.
    if !changed.is_empty() {
        shared.changes.begin();
    }
    let committed = transaction.commit();
    if !changed.is_empty() {
        shared.changes.end(changed);
    }
    if committed.is_ok() && context.access_changes.get() {
        // After the commit: who reads this number also finds the change.
        shared.access.fetch_add(1, Ordering::SeqCst);
    }
    committed
}

fn in_savepoint(
    transaction: &mut Transaction<'_>,
    job: Work,
    context: &RequestContext<'_>,
) -> Result<Box<RawValue>, DbError> {
    let savepoint = transaction.savepoint().map_err(|error| internal("setting a savepoint", &error))?;
    let reply = job(&SqliteTx { connection: &savepoint }, context)?;
    savepoint.commit().map_err(|error| internal("releasing a savepoint", &error))?;
    Ok(reply)
}
