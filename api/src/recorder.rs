//! Waited calls are written behind their answer, many at once. Until they are, they can be read here.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use faena_db_client::DbClient;
use faena_domain::units::{KB, MB};
use faena_domain::{CallNum, CallStatus, FunctionName, Namespace, Payload};
use faena_protocol::db::CallsRecord;
use faena_protocol::records::{CallRecord, EndedCall, SEGMENT_SPAN, Segment};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::error;

use crate::batch;

/// Calls that may be on their way: running without a row, or ended and not yet written.
const BACKLOG: u32 = 10_000;
/// What they may hold in memory before no further one is taken.
const BACKLOG_BYTES: u64 = 64 * MB;
/// How long ends are gathered before they are written: a message and a commit cost much more than one call's part.
const GATHER: Duration = Duration::from_millis(20);

/// Keeps waited calls until db has them.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    calls: Arc<Mutex<Shown>>,
    room: Arc<Semaphore>,
    queue: mpsc::UnboundedSender<Ended>,
}

/// A call that is to be written. There are never more than places.
type Ended = (Arc<EndedCall>, Place);

/// What is known of a call that runs without a row; its record is made when somebody asks.
pub(crate) trait Running: Send + Sync {
    /// Its function.
    fn function(&self) -> &FunctionName;

    /// The call as it stands.
    fn record(&self) -> CallRecord;
}

/// A call that has no row.
enum Entry {
    /// It waits or runs, as it was when it was shown.
    Standing(Namespace, Box<CallRecord>),
    /// It runs in an instance of this process.
    Running(Namespace, Arc<dyn Running>),
    /// It has ended, and what it answered, which is so many bytes, is on its way into the blob store.
    Stored(Namespace, Arc<dyn Running>, u64),
    /// It has ended and is being written.
    Ended(Arc<EndedCall>),
}

impl Entry {
    fn namespace(&self) -> &Namespace {
        match self {
            Self::Standing(namespace, _) | Self::Running(namespace, _) | Self::Stored(namespace, ..) => namespace,
            Self::Ended(ended) => &ended.namespace,
        }
    }

    fn is_running(&self, namespace: &Namespace, function: &FunctionName) -> bool {
        match self {
            Self::Standing(of, call) => {
                call.status == CallStatus::Running && of == namespace && call.function == *function
            }
            Self::Running(of, running) => of == namespace && running.function() == function,
            Self::Stored(..) | Self::Ended(_) => false,
        }
    }

    fn record(&self) -> CallRecord {
        match self {
            Self::Standing(_, call) => (**call).clone(),
            Self::Running(_, running) | Self::Stored(_, running, _) => running.record(),
            Self::Ended(ended) => ended.call.clone(),
        }
    }

    /// The bytes of a call that lie in memory; what is large lies in the blob store.
    fn bytes(&self) -> u64 {
        match self {
            Self::Standing(_, call) => held_by(call),
            Self::Running(..) => KB,
            Self::Stored(_, _, bytes) => KB + bytes,
            Self::Ended(ended) => held_by(&ended.call),
        }
    }
}

/// The calls that have no row, and how much of them lies in memory.
#[derive(Default)]
struct Shown {
    calls: HashMap<CallNum, Entry>,
    bytes: u64,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shown").field("calls", &self.calls.len()).field("bytes", &self.bytes).finish()
    }
}

impl Shown {
    fn put(&mut self, num: CallNum, entry: Entry) {
        self.bytes += entry.bytes();
        let before = self.calls.insert(num, entry);
        self.bytes -= before.map_or(0, |entry| entry.bytes());
    }

    fn remove(&mut self, num: CallNum) {
        let before = self.calls.remove(&num);
        self.bytes -= before.map_or(0, |entry| entry.bytes());
    }
}

fn held_by(call: &CallRecord) -> u64 {
    let payloads = [&call.params, &call.result, &call.logs].into_iter().chain(&call.body);
    // What went wrong is told twice, each time with the end of what was written.
    let errors = if call.error.is_some() { 8 * KB } else { 0 };
    KB + errors + payloads.map(Payload::inline_len).sum::<u64>()
}

/// A place in the backlog; free again when the call is written or has a row of its own.
pub(crate) type Place = OwnedSemaphorePermit;

impl Recorder {
    /// A recorder, and the task that writes, which ends when nobody can hand it a call any more.
    pub(crate) fn new(db: DbClient) -> Self {
        let (queue, ended) = mpsc::unbounded_channel();
        let calls = Arc::<Mutex<Shown>>::default();
        tokio::spawn(write_all(db, Arc::clone(&calls), ended));
        Self { calls, room: Arc::new(Semaphore::new(BACKLOG as usize)), queue }
    }

    fn calls(&self) -> MutexGuard<'_, Shown> {
        lock(&self.calls)
    }

    /// A place for one more call, if there is one.
    pub(crate) fn place(&self) -> Option<Place> {
        let has_memory = self.calls().bytes < BACKLOG_BYTES;
        Arc::clone(&self.room).try_acquire_owned().ok().filter(|_| has_memory)
    }

    /// Shows a call that has no row, as it stands.
    pub(crate) fn show(&self, namespace: &Namespace, call: CallRecord) {
        self.calls().put(call.num, Entry::Standing(namespace.clone(), Box::new(call)));
    }

    /// Shows a call that runs in this process.
    pub(crate) fn show_running(&self, namespace: Namespace, num: CallNum, running: Arc<dyn Running>) {
        self.calls().put(num, Entry::Running(namespace, running));
    }

    /// Shows a call that has ended, while so many bytes of it are written elsewhere.
    pub(crate) fn show_stored(&self, namespace: Namespace, num: CallNum, running: Arc<dyn Running>, bytes: u64) {
        self.calls().put(num, Entry::Stored(namespace, running, bytes));
    }

    /// A call that has no row yet.
    pub(crate) fn get(&self, namespace: &Namespace, num: CallNum) -> Option<CallRecord> {
        self.calls().calls.get(&num).filter(|entry| entry.namespace() == namespace).map(Entry::record)
    }

    /// Calls of a function that run and have no row, some of them.
    pub(crate) fn running(&self, namespace: &Namespace, function: &FunctionName, most: usize) -> Vec<CallRecord> {
        let calls = self.calls();
        let theirs = calls.calls.values().filter(|entry| entry.is_running(namespace, function));
        theirs.take(most).map(Entry::record).collect()
    }

    /// Forgets a call that has a row now.
    pub(crate) fn forget(&self, num: CallNum) {
        self.calls().remove(num);
    }

    /// Writes a call that has ended, however often db has to be asked.
    pub(crate) fn write(&self, ended: EndedCall, place: Place) {
        let ended = Arc::new(ended);
        self.calls().put(ended.call.num, Entry::Ended(Arc::clone(&ended)));
        // The task ends only after the last of us.
        let _ = self.queue.send((ended, place));
    }

    /// Waits until everything is written, within reason.
    pub(crate) async fn flush(&self, most: Duration) {
        let empty = self.room.acquire_many(BACKLOG);
        if tokio::time::timeout(most, empty).await.is_err() {
            error!(calls = self.calls().calls.len(), "calls that were answered could not be recorded before the stop");
        }
    }
}

fn lock(calls: &Mutex<Shown>) -> MutexGuard<'_, Shown> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes what has ended while the last was being written: one message, one commit.
async fn write_all(db: DbClient, shown: Arc<Mutex<Shown>>, mut queue: mpsc::UnboundedReceiver<Ended>) {
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
            // What is wrong with one of them is nothing to the others; one that is there already stays as it is.
            Err(_) if batch.len() > 1 => {
                for (ended, _) in &batch {
                    record_one(&db, ended).await;
                }
            }
            Err(error) => error!(%error, call = %batch[0].0.call.num, "a call could not be recorded"),
        }
        let mut shown = lock(&shown);
        batch.iter().for_each(|(ended, _)| shown.remove(ended.call.num));
    }
}

async fn record_one(db: &DbClient, ended: &Arc<EndedCall>) {
    let request = CallsRecord { calls: vec![Arc::clone(ended)], segments: Vec::new() };
    if let Err(error) = db.ask_until_known(&request).await {
        error!(%error, call = %ended.call.num, "a call could not be recorded");
    }
}

/// What is kept of a call in a segment is all there is to keep: it went well, and nothing of it lies elsewhere.
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
    let mut request = CallsRecord { calls: Vec::new(), segments: Vec::new() };
    for ended in ended {
        if is_plain(&ended) {
            let key = (ended.namespace.clone(), ended.call.function.key(), ended.call.num.0 / SEGMENT_SPAN);
            groups.entry(key).or_default().push(ended);
        } else {
            request.calls.push(ended);
        }
    }
    for group in groups.into_values() {
        match segment(&group) {
            Some(segment) => request.segments.push(segment),
            None => request.calls.extend(group),
        }
    }
    request
}

fn segment(group: &[Arc<EndedCall>]) -> Option<Segment> {
    let any = group.first()?;
    Some(Segment {
        first: group.iter().map(|ended| ended.call.num).min()?,
        namespace: any.namespace.clone(),
        function: any.call.function.clone(),
        ended_at: group.iter().filter_map(|ended| ended.call.ended_at).max()?,
        count: u32::try_from(group.len()).ok()?,
        records: serde_json::value::to_raw_value(group).ok()?,
    })
}
