//! Callbacks.

use faena_domain::{CallNum, FunctionId};
use faena_protocol::records::Callback;

use super::StoreResult;

/// How a callback stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallbackStatus {
    Waiting,
    Delivered,
    Undelivered,
}

impl CallbackStatus {
    /// The name that records have.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "WAITING",
            Self::Delivered => "DELIVERED",
            Self::Undelivered => "UNDELIVERED",
        }
    }
}

/// A callback that is to be sent.
#[derive(Debug)]
pub(crate) struct DueCallback {
    pub(crate) num: CallNum,
    pub(crate) function: FunctionId,
    pub(crate) tries: u32,
    pub(crate) callback: Callback,
    /// What signs it, sealed.
    pub(crate) secret: Vec<u8>,
    /// What its call holds.
    pub(crate) bytes: usize,
}

/// Rows of callbacks.
pub(crate) trait CallbackRows {
    /// Adds the callback of a call, unless it is there already. The secret is sealed, and empty where there is none.
    fn insert_callback(&self, num: CallNum, secret: &[u8], status: CallbackStatus, due_at: i64) -> StoreResult<()>;

    /// Whether any is due.
    fn is_callback_due(&self, now: i64) -> StoreResult<bool>;

    /// Those that are due, the oldest first.
    fn due_callbacks_for_update(&self, now: i64, limit: u32) -> StoreResult<Vec<DueCallback>>;

    /// Notes one more try of each of these, which has until an instant to end.
    fn begin_tries(&self, callbacks: &[CallNum], until: i64) -> StoreResult<()>;

    /// Undoes a try, if it is the last one and its callback still waits.
    fn postpone_callback(&self, num: CallNum, tries: u32, due_at: i64) -> StoreResult<()>;

    /// Writes how a try ended, where it is the last one of its call and the callback still waits.
    fn end_try(
        &self,
        tried: (CallNum, u32),
        status: CallbackStatus,
        due_at: i64,
        error: Option<&str>,
    ) -> StoreResult<()>;
}
