//! Calls: those with a row of their own, and completed ones in batches.

use faena_domain::queue::Entry;
use faena_domain::{
    Attempt, CallError, CallNum, CallStatus, EngineKind, Epoch, FunctionId, FunctionName, Namespace, Owner, Version,
};
use faena_protocol::db::CallLog;
use faena_protocol::records::{BuildRef, CallRecord, CallSpec, CompletedBatch, EndedCall, Outcome};

use super::StoreResult;

/// A call about to get its row.
#[derive(Debug)]
pub(crate) struct NewCallRow<'a> {
    pub(crate) spec: &'a CallSpec,
    pub(crate) version: Version,
    pub(crate) engine: Option<EngineKind>,
    pub(crate) entry: Entry,
    /// What it holds while it waits.
    pub(crate) bytes: u64,
    /// Whether it may be claimed at once.
    pub(crate) is_due: bool,
    pub(crate) created_at: i64,
}

/// A call that ended before it had a row.
#[derive(Debug)]
pub(crate) struct EndedRow<'a> {
    pub(crate) spec: CallSpec,
    pub(crate) call: &'a CallRecord,
    /// What its result and log count.
    pub(crate) kept_bytes: u64,
}

/// A call's entry in the queue, and what the record of its attempts needs.
#[derive(Clone, Debug)]
pub(crate) struct StoredEntry {
    pub(crate) num: CallNum,
    pub(crate) entry: Entry,
    pub(crate) function: FunctionId,
    pub(crate) engine: Option<EngineKind>,
    pub(crate) queued_at: i64,
    pub(crate) claimed_at: Option<i64>,
    /// Whether its end has a callback.
    pub(crate) has_callback: bool,
}

/// An entry as it is to be written.
#[derive(Clone, Debug)]
pub(crate) struct SavedEntry {
    pub(crate) num: CallNum,
    pub(crate) entry: Entry,
    pub(crate) queued_at: i64,
    pub(crate) claimed_at: Option<i64>,
    /// Whether it may be claimed, unless it waits for an instant.
    pub(crate) is_due: bool,
    /// The request that has claimed it; with `None` the column stays as it is.
    pub(crate) claim: Option<String>,
}

/// A call that a request has claimed.
#[derive(Debug)]
pub(crate) struct ClaimedCall {
    pub(crate) num: CallNum,
    pub(crate) spec: CallSpec,
    pub(crate) version: Version,
    pub(crate) epoch: Epoch,
    pub(crate) deliveries: u32,
    pub(crate) queued_at: i64,
    pub(crate) expires_at: i64,
}

/// Which calls a list has, newest first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallFilter<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) function: Option<&'a FunctionName>,
    pub(crate) status: Option<CallStatus>,
    /// Dead letters alone.
    pub(crate) dead: bool,
    /// Of those, the ones that were not replayed.
    pub(crate) unreplayed: bool,
    pub(crate) before: CallNum,
    pub(crate) limit: u32,
}

/// The completed calls whose numbers lie in one span.
#[derive(Debug)]
pub(crate) struct CompletedSpan {
    pub(crate) span: i64,
    pub(crate) calls: Vec<EndedCall>,
}

/// The log of a call that has ended.
#[derive(Debug)]
pub(crate) struct EndedLog {
    pub(crate) log: CallLog,
    pub(crate) status: CallStatus,
    pub(crate) created_at: i64,
    pub(crate) ended_at: i64,
}

/// Which calls take the same step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CallSelection<'a> {
    /// Those that wait in a function's queue.
    WaitingOf(&'a FunctionId),
    /// Those that wait for a version.
    WaitingFor(&'a BuildRef),
    /// Those that earlier runs of a worker hold.
    OfEarlierRuns(&'a Owner),
    /// Those whose leases ended before an instant, so many at most.
    LeaseEndedBefore(i64, u32),
    /// Those that wait and whose age ends at an instant or before, so many at most.
    AgeEndedBy(i64, u32),
}

/// Rows of calls.
pub(crate) trait CallRows {
    /// Reserves numbers; the first of them.
    fn reserve_numbers(&self, count: u32) -> StoreResult<CallNum>;

    /// A call that has a row.
    fn call(&self, namespace: &Namespace, num: CallNum) -> StoreResult<Option<CallRecord>>;

    /// What a call was accepted with, where it has a row.
    fn call_spec(&self, namespace: &Namespace, num: CallNum) -> StoreResult<Option<CallSpec>>;

    /// Those of these calls that have a row.
    fn existing_calls(&self, calls: &[CallNum]) -> StoreResult<Vec<CallNum>>;

    /// Calls that have rows, as a list shows them.
    fn calls(&self, filter: &CallFilter<'_>) -> StoreResult<Vec<CallRecord>>;

    /// Adds calls that wait, PENDING.
    fn insert_calls(&self, calls: &[NewCallRow<'_>]) -> StoreResult<()>;

    /// Adds calls that ended before they had a row; one that is there already stays.
    fn insert_ended(&self, calls: &[EndedRow<'_>]) -> StoreResult<()>;

    /// Marks a call as running whose epoch was assigned before it had a row.
    fn set_running(&self, num: CallNum, owner: &Owner, epoch: Epoch, lease_end: i64, now: i64) -> StoreResult<()>;

    /// The entries of these calls, of those that have a row.
    fn entries_for_update(&self, calls: &[CallNum]) -> StoreResult<Vec<StoredEntry>>;

    /// Writes entries back.
    fn save_entries(&self, entries: &[SavedEntry]) -> StoreResult<()>;

    /// Appends to the record of a call's attempts.
    fn append_attempt(&self, num: CallNum, attempt: &Attempt) -> StoreResult<()>;

    /// Writes that a call has ended, and why it did not succeed. The headers that were kept apart are forgotten.
    fn end_call(&self, num: CallNum, error: Option<&CallError>, at: i64) -> StoreResult<()>;

    /// Writes what the last attempt put out.
    fn put_outcome(&self, num: CallNum, outcome: &Outcome, kept_bytes: u64) -> StoreResult<()>;

    /// The numbers of the calls that match.
    fn select_calls(&self, which: CallSelection<'_>) -> StoreResult<Vec<CallNum>>;

    /// No retry or redelivery of this function's running calls begins after this.
    fn stop_retries(&self, function: &FunctionId, now: i64) -> StoreResult<()>;

    /// Calls that wait for this version can run on this engine from now on.
    fn make_ready(&self, build: &BuildRef, engine: Option<EngineKind>, now: i64) -> StoreResult<()>;

    /// Calls whose instant of wall time has come wait like others from now on, and calls whose pause is over can be claimed.
    fn promote(&self, now: i64, wall: i64) -> StoreResult<()>;

    /// What a request has claimed, by number.
    fn claimed_calls(&self, claim: &str) -> StoreResult<Vec<ClaimedCall>>;

    /// Every lease of a call or a build ends at an instant.
    fn set_all_leases(&self, end: i64) -> StoreResult<()>;

    /// Adds a call to the dead letters, unless it is there already.
    fn insert_dead_letter(&self, num: CallNum, function: &FunctionId) -> StoreResult<()>;

    /// Notes the call that repeats a dead letter, where there is one.
    fn mark_replayed(&self, dead: CallNum, replay: CallNum) -> StoreResult<()>;

    /// Removes a call from the dead letters; false where it is not among them.
    fn delete_dead_letter(&self, namespace: &Namespace, num: CallNum) -> StoreResult<bool>;

    /// Adds batches of completed calls; one that is there already stays.
    fn insert_batches(&self, batches: &[CompletedBatch]) -> StoreResult<()>;

    /// A completed call that lies in a batch.
    fn completed_call(&self, namespace: &Namespace, num: CallNum) -> StoreResult<Option<EndedCall>>;

    /// The newest span up to this one that has batches, of a function or of all.
    fn completed_span(
        &self,
        namespace: &Namespace,
        function: Option<&FunctionName>,
        up_to: i64,
    ) -> StoreResult<Option<CompletedSpan>>;

    /// The logs of a function's calls that have ended and have rows, newest first.
    fn ended_logs(&self, function: &FunctionId, before: CallNum, limit: usize) -> StoreResult<Vec<EndedLog>>;
}
