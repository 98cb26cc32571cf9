//! Ended calls, which are kept for a while.

use faena_domain::{CallNum, FunctionId, Payload};

use super::StoreResult;

/// The log of an ended call, and its result.
#[derive(Debug)]
pub(crate) struct KeptLog {
    pub(crate) num: CallNum,
    pub(crate) result: Payload,
    pub(crate) log: Payload,
}

/// An ended call, or a batch of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptCalls {
    /// The call, or the first one of a batch.
    pub(crate) num: CallNum,
    pub(crate) bytes: u64,
    pub(crate) calls: u64,
    pub(crate) is_batch: bool,
}

/// Rows of what is kept. The store keeps the counts itself. A call that an idempotency key stands for, or whose callback waits, is needed, and in none of these lists.
pub(crate) trait RetentionRows {
    /// Calls that ended before an instant, and dead letters that ended before an earlier one; the oldest first.
    fn calls_ended_before(&self, before: i64, letters_before: i64, limit: u32) -> StoreResult<Vec<CallNum>>;

    /// The same without dead letters.
    fn done_calls_ended_before(&self, before: i64, limit: u32) -> StoreResult<Vec<CallNum>>;

    /// How many ended calls there are, in rows and in batches.
    fn count_ended(&self) -> StoreResult<u64>;

    /// When the last of the `count` calls ended that ended first, dead letters not counted; `None` if `count` is 0.
    fn end_of_oldest(&self, count: u64, limit: u32) -> StoreResult<Option<i64>>;

    /// Removes calls, with what they refer to.
    fn delete_calls(&self, calls: &[CallNum]) -> StoreResult<()>;

    /// Removes batches whose last call ended before an instant, so many at most; how many calls those had.
    fn delete_batches_ended_before(&self, before: i64, most: u32) -> StoreResult<u64>;

    /// Removes batches by their first calls.
    fn delete_batches(&self, firsts: &[CallNum]) -> StoreResult<()>;

    /// What results and logs of all functions hold.
    fn kept_bytes(&self) -> StoreResult<u64>;

    /// The functions that hold more than this, with what they hold; the heaviest first.
    fn heaviest_functions(&self, above: u64, limit: u32) -> StoreResult<Vec<(FunctionId, u64)>>;

    /// The oldest logs of a function of so many bytes at least.
    fn oldest_logs(&self, function: &FunctionId, at_least: u64, limit: u32) -> StoreResult<Vec<KeptLog>>;

    /// Replaces the log of an ended call by a remark; `kept_bytes` is what the call holds then.
    fn replace_log(&self, num: CallNum, remark: &Payload, kept_bytes: u64) -> StoreResult<()>;

    /// The oldest calls and batches of a function.
    fn oldest_calls(&self, function: &FunctionId, limit: u32) -> StoreResult<Vec<KeptCalls>>;
}
