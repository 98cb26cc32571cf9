//! Threads that read, each on a connection of its own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use parking_lot::Mutex;
use rusqlite::Connection;

use super::Shared;
use super::tx::SqliteTx;
use crate::rules::Work;
use crate::store::Responder;

/// The most requests that wait.
const QUEUE: usize = 4096;

/// A request and who waits for it.
pub(crate) type Task = (Work, Responder);

/// The queue before the reading threads; they end when it is dropped.
#[derive(Debug)]
pub(crate) struct Readers {
    queue: SyncSender<Task>,
}

impl Readers {
    pub(crate) fn start(connections: Vec<Connection>, shared: &Arc<Shared>) -> std::io::Result<Self> {
        let (queue, tasks) = sync_channel(QUEUE);
        let tasks = Arc::new(Mutex::new(tasks));
        for connection in connections {
            let (tasks, shared) = (Arc::clone(&tasks), Arc::clone(shared));
            std::thread::Builder::new()
                .name("db-reader".to_owned())
                .spawn(move || run(&connection, &tasks, &shared))?;
        }
        Ok(Self { queue })
    }

    /// Queues a task, or gives it back where the queue is full.
    pub(crate) fn submit(&self, task: Task) -> Result<(), Task> {
        self.queue.try_send(task).map_err(|error| match error {
            TrySendError::Full(task) | TrySendError::Disconnected(task) => task,
        })
    }
}

fn run(connection: &Connection, tasks: &Mutex<Receiver<Task>>, shared: &Shared) {
    loop {
        let task = tasks.lock().recv();
        let Ok((job, respond)) = task else { return };
        respond(job(&SqliteTx { connection }, &shared.context()));
    }
}
