//! Waited calls are written behind their answer. Until they are, they can be read here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use faena_db_client::DbClient;
use faena_domain::units::{KB, MB};
use faena_domain::{CallNum, Namespace, Payload};
use faena_protocol::db::CallRecordEnded;
use faena_protocol::records::{CallRecord, CallSpec};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::error;

/// Calls that may be on their way: running without a row, or ended and not yet written.
const BACKLOG: u32 = 10_000;
/// What they may hold in memory before no further one is taken.
const BACKLOG_BYTES: u64 = 64 * MB;

/// Keeps waited calls until db has them.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    db: DbClient,
    calls: Arc<Mutex<Shown>>,
    room: Arc<Semaphore>,
}

/// The calls that have no row, and how much of them lies in memory.
#[derive(Debug, Default)]
struct Shown {
    calls: HashMap<CallNum, (Namespace, CallRecord)>,
    bytes: u64,
}

impl Shown {
    fn put(&mut self, namespace: &Namespace, call: CallRecord) {
        self.bytes += held_by(&call);
        let before = self.calls.insert(call.num, (namespace.clone(), call));
        self.bytes -= before.map_or(0, |(_, call)| held_by(&call));
    }

    fn remove(&mut self, num: CallNum) {
        let before = self.calls.remove(&num);
        self.bytes -= before.map_or(0, |(_, call)| held_by(&call));
    }
}

/// The bytes of a call that lie in memory; what is large lies in the blob store.
fn held_by(call: &CallRecord) -> u64 {
    let inline = |payload: &Payload| match payload {
        Payload::Text(text) => text.len() as u64,
        Payload::Blob { .. } => 0,
    };
    KB + inline(&call.params) + inline(&call.result) + inline(&call.logs)
}

/// A place in the backlog; free again when the call is written or has a row of its own.
pub(crate) type Place = OwnedSemaphorePermit;

impl Recorder {
    pub(crate) fn new(db: DbClient) -> Self {
        Self { db, calls: Arc::default(), room: Arc::new(Semaphore::new(BACKLOG as usize)) }
    }

    fn calls(&self) -> MutexGuard<'_, Shown> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more call, if there is one.
    pub(crate) fn place(&self) -> Option<Place> {
        let has_memory = self.calls().bytes < BACKLOG_BYTES;
        Arc::clone(&self.room).try_acquire_owned().ok().filter(|_| has_memory)
    }

    /// Shows a call that has no row, as it stands.
    pub(crate) fn show(&self, namespace: &Namespace, call: CallRecord) {
        self.calls().put(namespace, call);
    }

    /// A call that has no row yet.
    pub(crate) fn get(&self, namespace: &Namespace, num: CallNum) -> Option<CallRecord> {
        self.calls().calls.get(&num).filter(|(space, _)| space == namespace).map(|(_, call)| call.clone())
    }

    /// Forgets a call that has a row now.
    pub(crate) fn forget(&self, num: CallNum) {
        self.calls().remove(num);
    }

    /// Writes a call that has ended, however often db has to be asked.
    pub(crate) fn write(&self, spec: &CallSpec, call: CallRecord, place: Place) {
        self.show(&spec.namespace, call.clone());
        let recorder = self.clone();
        let (body, direct, timeout_ms) = (spec.body.clone(), spec.direct, spec.timeout_ms);
        let request = CallRecordEnded { namespace: spec.namespace.clone(), call, body, direct, timeout_ms };
        tokio::spawn(async move {
            let num = request.call.num;
            if let Err(error) = recorder.db.ask_until_known(&request).await {
                error!(%error, call = %num, "a call could not be recorded");
            }
            recorder.forget(num);
            drop(place);
        });
    }

    /// Waits until everything is written, within reason.
    pub(crate) async fn flush(&self, most: Duration) {
        let empty = self.room.acquire_many(BACKLOG);
        if tokio::time::timeout(most, empty).await.is_err() {
            error!(calls = self.calls().calls.len(), "calls that were answered could not be recorded before the stop");
        }
    }
}
