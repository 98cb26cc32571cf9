//! The calls that have no row: in flight, or ended and not yet written. Who asks for such a call finds it here.
//!
//! One table knows the namespace, the call path and the record of each. It is sharded by call number, since every call on the
//! direct path enters and leaves it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use faena_domain::units::KB;
use faena_domain::{CallNum, CallStatus, FunctionName, Namespace, Payload};
use faena_protocol::records::{CallRecord, EndedCall};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// More than there are threads that own connections.
const SHARDS: usize = 16;

/// A call on the direct path. Its record is built on demand.
pub trait DirectInFlight: Send + Sync {
    /// Its function.
    fn function(&self) -> &FunctionName;

    /// The call as it stands.
    fn record(&self) -> CallRecord;

    /// Ends it early.
    fn cancel(&self);
}

/// A call that has no row.
enum Entry {
    /// The scheduler has it: as it was when it was last entered.
    Sync(Namespace, Box<CallRecord>),
    /// An instance has it.
    Direct(Namespace, Arc<dyn DirectInFlight>),
    /// It has ended, and its result of so many bytes is on its way into the blob store.
    Storing(Namespace, Arc<dyn DirectInFlight>, u64),
    /// It has ended and is being written.
    Ended(Arc<EndedCall>),
}

/// What can be done to end a call that has no row.
pub enum Cancel {
    /// Ask the instance that has it.
    Direct(Arc<dyn DirectInFlight>),
    /// Ask the scheduler.
    Sync,
    /// Nothing: it has ended like this.
    Ended(CallStatus),
}

impl Entry {
    fn namespace(&self) -> &Namespace {
        match self {
            Self::Sync(namespace, _) | Self::Direct(namespace, _) | Self::Storing(namespace, ..) => namespace,
            Self::Ended(ended) => &ended.namespace,
        }
    }

    fn is_running(&self, namespace: &Namespace, function: &FunctionName) -> bool {
        match self {
            Self::Sync(of, call) => call.status == CallStatus::Running && of == namespace && call.function == *function,
            Self::Direct(of, call) => of == namespace && call.function() == function,
            Self::Storing(..) | Self::Ended(_) => false,
        }
    }

    fn record(&self) -> CallRecord {
        match self {
            Self::Sync(_, call) => (**call).clone(),
            Self::Direct(_, call) | Self::Storing(_, call, _) => call.record(),
            Self::Ended(ended) => ended.call.clone(),
        }
    }

    fn cancel(&self) -> Cancel {
        match self {
            Self::Sync(_, call) if call.status.is_terminal() => Cancel::Ended(call.status),
            Self::Sync(..) => Cancel::Sync,
            Self::Direct(_, call) | Self::Storing(_, call, _) => Cancel::Direct(Arc::clone(call)),
            Self::Ended(ended) => Cancel::Ended(ended.call.status),
        }
    }

    /// The bytes of a call that lie in memory; what is large lies in the blob store.
    fn bytes(&self) -> u64 {
        match self {
            Self::Sync(_, call) => held_by(call),
            Self::Direct(..) => KB,
            Self::Storing(_, _, bytes) => KB + bytes,
            Self::Ended(ended) => held_by(&ended.call),
        }
    }
}

/// What a record holds of memory.
pub(crate) fn held_by(call: &CallRecord) -> u64 {
    let payloads = [&call.params, &call.result, &call.logs].into_iter().chain(&call.body);
    // What went wrong is kept twice, each time with the end of standard error.
    let errors = if call.error.is_some() { 8 * KB } else { 0 };
    KB + errors + payloads.map(Payload::inline_len).sum::<u64>()
}

/// The table; clones share it.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<Table>);

#[derive(Default)]
struct Table {
    shards: [Mutex<HashMap<CallNum, Entry>>; SHARDS],
    bytes: AtomicU64,
    /// Notified whenever a call ends or leaves.
    changed: Notify,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl InFlight {
    fn shard(&self, num: CallNum) -> MutexGuard<'_, HashMap<CallNum, Entry>> {
        let index = usize::try_from(num.0.unsigned_abs() % SHARDS as u64).unwrap_or(0);
        self.0.shards[index].lock()
    }

    fn put(&self, num: CallNum, entry: Entry) {
        self.0.bytes.fetch_add(entry.bytes(), Ordering::Relaxed);
        let before = self.shard(num).insert(num, entry);
        self.0.bytes.fetch_sub(before.map_or(0, |entry| entry.bytes()), Ordering::Relaxed);
    }

    /// Enters a call that the scheduler has, as it stands.
    pub fn sync(&self, namespace: &Namespace, call: CallRecord) {
        self.put(call.num, Entry::Sync(namespace.clone(), Box::new(call)));
    }

    /// Enters a call that an instance has.
    pub fn direct(&self, namespace: Namespace, num: CallNum, call: Arc<dyn DirectInFlight>) {
        self.put(num, Entry::Direct(namespace, call));
    }

    /// Notes that a call has ended whose result of so many bytes is being stored.
    pub fn storing(&self, namespace: Namespace, num: CallNum, call: Arc<dyn DirectInFlight>, bytes: u64) {
        self.put(num, Entry::Storing(namespace, call, bytes));
    }

    /// Notes that a call has ended and is being written.
    pub fn ended(&self, ended: Arc<EndedCall>) {
        self.put(ended.call.num, Entry::Ended(ended));
        self.0.changed.notify_waiters();
    }

    /// Removes a call: it has a row now, or never was accepted.
    pub fn remove(&self, num: CallNum) {
        let before = self.shard(num).remove(&num);
        self.0.bytes.fetch_sub(before.map_or(0, |entry| entry.bytes()), Ordering::Relaxed);
        self.0.changed.notify_waiters();
    }

    fn with<T>(&self, namespace: &Namespace, num: CallNum, look: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.shard(num).get(&num).filter(|entry| entry.namespace() == namespace).map(look)
    }

    /// A call as it stands; none where it has a row, or is another namespace's.
    pub fn get(&self, namespace: &Namespace, num: CallNum) -> Option<CallRecord> {
        self.with(namespace, num, Entry::record)
    }

    /// How a call can be ended; none where it has a row, or is another namespace's.
    pub fn cancel(&self, namespace: &Namespace, num: CallNum) -> Option<Cancel> {
        self.with(namespace, num, Entry::cancel)
    }

    /// Calls of a function that run, some of them.
    pub fn running(&self, namespace: &Namespace, function: &FunctionName, most: usize) -> Vec<CallRecord> {
        let mut found = Vec::new();
        for shard in &self.0.shards {
            let shard = shard.lock();
            let theirs = shard.values().filter(|entry| entry.is_running(namespace, function));
            found.extend(theirs.take(most - found.len()).map(Entry::record));
        }
        found
    }

    /// Waits until a call has ended, and returns it; none once it has a row.
    pub async fn end_of(&self, namespace: &Namespace, num: CallNum) -> Option<CallRecord> {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let call = self.get(namespace, num)?;
            if call.status.is_terminal() {
                return Some(call);
            }
            changed.await;
        }
    }

    /// Waits until a call that has ended has its row, or is not in flight at all.
    pub async fn written(&self, namespace: &Namespace, num: CallNum) {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            match self.get(namespace, num) {
                Some(call) if call.status.is_terminal() => changed.await,
                _ => return,
            }
        }
    }

    /// What all of them hold of memory, in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use faena_domain::{Epoch, Version};

    use super::*;

    fn record(num: i64, status: CallStatus) -> CallRecord {
        serde_json::from_value(serde_json::json!({
            "num": num, "function": "dice", "version": Version(1), "params": {"text": "{}"}, "body": null, "request": null,
            "status": status, "result": {"text": ""}, "head": null, "error": null, "logs": {"text": ""}, "engine": null,
            "attempts": [], "createdAt": Epoch(1), "endedAt": null, "traceparent": "", "replayOf": null, "runAt": null,
            "callback": null, "replayedAs": null
        }))
        .expect("a record")
    }

    fn ended(num: i64) -> Arc<EndedCall> {
        let call = record(num, CallStatus::Done);
        Arc::new(EndedCall { namespace: Namespace::default(), call, direct: true, timeout_ms: None })
    }

    #[test]
    fn a_call_is_found_by_its_own_namespace_alone() {
        let (table, ours) = (InFlight::default(), Namespace::default());
        let theirs: Namespace = "team".parse().expect("a name");
        table.sync(&ours, record(7, CallStatus::Running));
        assert!(table.get(&ours, CallNum(7)).is_some() && table.get(&theirs, CallNum(7)).is_none());
        assert!(matches!(table.cancel(&ours, CallNum(7)), Some(Cancel::Sync)));
        assert!(table.cancel(&theirs, CallNum(7)).is_none());
        assert_eq!(table.running(&ours, &"dice".parse().expect("a name"), 9).len(), 1);
        assert!(table.running(&theirs, &"dice".parse().expect("a name"), 9).is_empty());
    }

    #[test]
    fn what_leaves_holds_nothing() {
        let table = InFlight::default();
        for num in 0..100 {
            table.sync(&Namespace::default(), record(num, CallStatus::Pending));
            table.ended(ended(num));
        }
        assert_eq!(table.len(), 100);
        assert!(matches!(table.cancel(&Namespace::default(), CallNum(5)), Some(Cancel::Ended(CallStatus::Done))));
        (0..100).for_each(|num| table.remove(CallNum(num)));
        assert_eq!((table.len(), table.bytes()), (0, 0));
    }

    #[tokio::test]
    async fn who_waits_for_an_end_is_told() {
        let (table, ours) = (InFlight::default(), Namespace::default());
        table.sync(&ours, record(3, CallStatus::Running));
        let waiting = tokio::spawn({
            let (table, ours) = (table.clone(), ours.clone());
            async move { table.end_of(&ours, CallNum(3)).await.map(|call| call.status) }
        });
        assert!(tokio::time::timeout(Duration::ZERO, table.end_of(&ours, CallNum(3))).await.is_err());
        table.ended(ended(3));
        assert_eq!(waiting.await.expect("a task"), Some(CallStatus::Done));
        assert!(tokio::time::timeout(Duration::ZERO, table.written(&ours, CallNum(3))).await.is_err());
        table.remove(CallNum(3));
        table.written(&ours, CallNum(3)).await;
        assert!(table.end_of(&ours, CallNum(3)).await.is_none());
    }
}
