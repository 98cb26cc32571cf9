//! The one thread that writes: many requests, one commit, then all the answers.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use faena_protocol::DbError;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use serde_json::value::RawValue;
use tracing::error;

use super::clock::Clock;
use super::requests::WriteJob;
use super::{WAL_LIMIT, internal};
use crate::Responder;
use crate::metrics::Metrics;

/// The most requests that wait; beyond it the asker hears [`DbError::Full`].
const QUEUE: usize = 4096;
/// The most requests of one transaction.
const GROUP: usize = 256;
/// What the process ends with when it cannot know whether a commit is durable (sysexits.h, `EX_IOERR`).
const EXIT_IO: i32 = 74;

/// A request and who waits for it.
pub(crate) type Task = (WriteJob, Responder);

/// The queue before the writing thread.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: Option<SyncSender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn start(connection: Connection, clock: Clock, wal: PathBuf, metrics: Metrics) -> std::io::Result<Self> {
        let (queue, tasks) = sync_channel(QUEUE);
        let writing = Writing { connection, clock, wal, metrics };
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
        let ended = self.thread.take().map(JoinHandle::join);
        if matches!(ended, Some(Err(_))) {
            error!("the writing thread panicked");
        }
    }
}

struct Writing {
    connection: Connection,
    clock: Clock,
    wal: PathBuf,
    metrics: Metrics,
}

type Answer = (Responder, Result<Box<RawValue>, DbError>);

impl Writing {
    fn run(mut self, tasks: &Receiver<Task>) {
        while let Ok(first) = tasks.recv() {
            let group: Vec<Task> = std::iter::once(first).chain(tasks.try_iter().take(GROUP - 1)).collect();
            for (respond, answer) in self.group(group) {
                respond(answer);
            }
            self.truncate_wal();
        }
    }

    /// Runs a group in one transaction; nobody is answered before it is durable.
    fn group(&mut self, group: Vec<Task>) -> Vec<Answer> {
        let now = self.clock.now();
        let begun = Instant::now();
        let mut transaction = match self.connection.transaction_with_behavior(TransactionBehavior::Immediate) {
            Ok(transaction) => transaction,
            Err(error) => {
                let error = internal("beginning a transaction", &error);
                return group.into_iter().map(|(_, respond)| (respond, Err(error.clone()))).collect();
            }
        };
        let mut answers = Vec::with_capacity(group.len());
        for (job, respond) in group {
            answers.push((respond, in_savepoint(&mut transaction, job, now)));
        }
        match transaction.commit() {
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
                error!(%error, "a commit failed; ending, because nobody can know what is durable");
                std::process::exit(EXIT_IO);
            }
        }
    }

    fn truncate_wal(&self) {
        let length = std::fs::metadata(&self.wal).map_or(0, |metadata| metadata.len());
        if length > WAL_LIMIT {
            let truncated = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            if let Err(error) = truncated {
                error!(%error, length, "the write-ahead log could not be truncated");
            }
        }
    }
}

fn in_savepoint(
    transaction: &mut rusqlite::Transaction<'_>,
    job: WriteJob,
    now: i64,
) -> Result<Box<RawValue>, DbError> {
    let savepoint = transaction.savepoint().map_err(|error| internal("setting a savepoint", &error))?;
    let reply = job(&savepoint, now)?;
    savepoint.commit().map_err(|error| internal("releasing a savepoint", &error))?;
    Ok(reply)
}
