//! Completed calls without a row are written behind their replies, many at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use faena_db_client::DbClient;
use faena_domain::units::MB;
use faena_domain::{CallStatus, Namespace, Payload};
use faena_protocol::db::CallsRecord;
use faena_protocol::records::{BATCH_SPAN, CompletedBatch, EndedCall};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::error;

use crate::batch;
use crate::in_flight::{InFlight, held_by};

/// Calls that may be on their way: running without a row, or ended and not yet written.
const BACKLOG: u32 = 10_000;
/// What they may hold in memory before no further one is taken.
const BACKLOG_BYTES: u64 = 64 * MB;
/// How long ends are collected before they are written: a message and a commit cost much more than one call's part.
const GATHER: Duration = Duration::from_millis(20);

/// Writes completed calls; clones share it.
#[derive(Clone, Debug)]
pub struct CompletionWriter {
    in_flight: InFlight,
    backlog: Arc<Semaphore>,
    queue: mpsc::UnboundedSender<Completed>,
}

/// A call that is to be written. There are never more than permits.
type Completed = (Arc<EndedCall>, BacklogPermit);

/// The right of a call to be in the backlog; returned when the call is written or has a row of its own.
pub type BacklogPermit = OwnedSemaphorePermit;

impl CompletionWriter {
    /// A writer, and the task that writes, which ends when no writer is left.
    pub fn new(db: DbClient, in_flight: InFlight) -> Self {
        let (queue, completed) = mpsc::unbounded_channel();
        tokio::spawn(write_all(db, in_flight.clone(), completed));
        Self { in_flight, backlog: Arc::new(Semaphore::new(BACKLOG as usize)), queue }
    }

    /// A permit for one more call, if the backlog has room.
    pub fn permit(&self) -> Option<BacklogPermit> {
        let has_memory = self.in_flight.bytes() < BACKLOG_BYTES;
        Arc::clone(&self.backlog).try_acquire_owned().ok().filter(|_| has_memory)
    }

    /// Writes a call that has ended, however often db has to be asked.
    pub fn write(&self, ended: EndedCall, permit: BacklogPermit) {
        let ended = Arc::new(ended);
        self.in_flight.ended(Arc::clone(&ended));
        // The task ends only after the last writer.
        let _ = self.queue.send((ended, permit));
    }

    /// Waits until everything is written, within reason.
    pub async fn flush(&self, most: Duration) {
        let empty = self.backlog.acquire_many(BACKLOG);
        if tokio::time::timeout(most, empty).await.is_err() {
            error!(calls = self.in_flight.len(), "calls that were answered could not be recorded before the stop");
        }
    }
}

/// Writes the calls that ended during the previous write, in one message and one commit.
async fn write_all(db: DbClient, in_flight: InFlight, mut queue: mpsc::UnboundedReceiver<Completed>) {
    let mut is_behind = false;
    while let Some(first) = queue.recv().await {
        // What a message had no room for has waited long enough.
        if !is_behind && queue.len() < batch::BOUNDS.0 {
            tokio::time::sleep(GATHER).await;
        }
        let batch = batch::gather(first, || queue.try_recv().ok(), |(ended, _)| held_by(&ended.call), batch::BOUNDS);
        is_behind = !queue.is_empty();
        let request = sorted(batch.iter().map(|(ended, _)| Arc::clone(ended)));
        match db.ask_until_known(&request).await {
            Ok(()) => {}
            // One bad call does not affect the others, and a call that is stored already does not change.
            Err(_) if batch.len() > 1 => {
                for (ended, _) in &batch {
                    record_one(&db, ended).await;
                }
            }
            Err(error) => error!(%error, call = %batch[0].0.call.num, "a call could not be recorded"),
        }
        batch.iter().for_each(|(ended, _)| in_flight.remove(ended.call.num));
    }
}

async fn record_one(db: &DbClient, ended: &Arc<EndedCall>) {
    let request = CallsRecord { calls: vec![Arc::clone(ended)], batches: Vec::new() };
    if let Err(error) = db.ask_until_known(&request).await {
        error!(%error, call = %ended.call.num, "a call could not be recorded");
    }
}

/// Whether a batch can hold all of a call: it succeeded, and no part of it is a blob.
fn is_plain(ended: &EndedCall) -> bool {
    let call = &ended.call;
    let is_inline = |payload: &Payload| matches!(payload, Payload::Text(_));
    call.status == CallStatus::Done
        && call.replay_of.is_none()
        && call.callback.is_none()
        && [&call.params, &call.result, &call.logs].into_iter().chain(&call.body).all(is_inline)
}

/// Puts the calls of one function together, and gives those a row each that are not plain.
fn sorted(ended: impl Iterator<Item = Arc<EndedCall>>) -> CallsRecord {
    let mut groups: BTreeMap<(Namespace, String, i64), Vec<Arc<EndedCall>>> = BTreeMap::new();
    let mut request = CallsRecord { calls: Vec::new(), batches: Vec::new() };
    for ended in ended {
        if is_plain(&ended) {
            let key = (ended.namespace.clone(), ended.call.function.key(), ended.call.num.0 / BATCH_SPAN);
            groups.entry(key).or_default().push(ended);
        } else {
            request.calls.push(ended);
        }
    }
    for group in groups.into_values() {
        match batch(&group) {
            Some(batch) => request.batches.push(batch),
            None => request.calls.extend(group),
        }
    }
    request
}

fn batch(group: &[Arc<EndedCall>]) -> Option<CompletedBatch> {
    let any = group.first()?;
    Some(CompletedBatch {
        first: group.iter().map(|ended| ended.call.num).min()?,
        namespace: any.namespace.clone(),
        function: any.call.function.clone(),
        ended_at: group.iter().filter_map(|ended| ended.call.ended_at).max()?,
        count: u32::try_from(group.len()).ok()?,
        records: serde_json::value::to_raw_value(group).ok()?,
    })
}
