//! Idempotency keys.

use faena_domain::{BlobKey, CallNum, FunctionId};

use super::StoreResult;

/// A key that stands for a call.
#[derive(Clone, Debug)]
pub(crate) struct StoredKey {
    pub(crate) function: FunctionId,
    /// The key as it is kept, with the account that sent it.
    pub(crate) text: String,
    /// Of the request.
    pub(crate) hash: BlobKey,
    pub(crate) call: CallNum,
    /// Db time.
    pub(crate) expires_at: i64,
}

/// Rows of keys.
pub(crate) trait IdempotencyKeyRows {
    /// Those of these keys that stand for a call.
    fn stored_keys(&self, keys: &[(FunctionId, String)]) -> StoreResult<Vec<StoredKey>>;

    /// How many keys a function has, counted up to so many.
    fn count_keys(&self, function: &FunctionId, most: u64) -> StoreResult<u64>;

    /// Adds keys.
    fn insert_keys(&self, keys: &[StoredKey]) -> StoreResult<()>;

    /// Removes keys that have expired and whose calls have ended.
    fn forget_keys(&self, now: i64) -> StoreResult<()>;
}
