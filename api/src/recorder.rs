//! Waited calls are written behind their answer. Until they are, they can be read here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use faena_db_client::DbClient;
use faena_domain::{CallNum, Namespace};
use faena_protocol::db::CallRecordEnded;
use faena_protocol::records::CallRecord;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::error;

/// Calls that may be on their way: running without a row, or ended and not yet written.
const BACKLOG: u32 = 10_000;

/// Keeps waited calls until db has them.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    db: DbClient,
    calls: Arc<Mutex<HashMap<CallNum, (Namespace, CallRecord)>>>,
    room: Arc<Semaphore>,
}

/// A place in the backlog; free again when the call is written or has a row of its own.
pub(crate) type Place = OwnedSemaphorePermit;

impl Recorder {
    pub(crate) fn new(db: DbClient) -> Self {
        Self { db, calls: Arc::default(), room: Arc::new(Semaphore::new(BACKLOG as usize)) }
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<CallNum, (Namespace, CallRecord)>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more call, if there is one.
    pub(crate) fn place(&self) -> Option<Place> {
        Arc::clone(&self.room).try_acquire_owned().ok()
    }

    /// Shows a call that has no row, as it stands.
    pub(crate) fn show(&self, namespace: &Namespace, call: CallRecord) {
        self.calls().insert(call.num, (namespace.clone(), call));
    }

    /// A call that has no row yet.
    pub(crate) fn get(&self, namespace: &Namespace, num: CallNum) -> Option<CallRecord> {
        self.calls().get(&num).filter(|(space, _)| space == namespace).map(|(_, call)| call.clone())
    }

    /// Forgets a call that has a row now.
    pub(crate) fn forget(&self, num: CallNum) {
        self.calls().remove(&num);
    }

    /// Writes a call that has ended, however often db has to be asked.
    pub(crate) fn write(&self, namespace: Namespace, call: CallRecord, place: Place) {
        self.show(&namespace, call.clone());
        let recorder = self.clone();
        tokio::spawn(async move {
            let (num, request) = (call.num, CallRecordEnded { namespace, call });
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
            error!(calls = self.calls().len(), "calls that were answered could not be recorded before the stop");
        }
    }
}
