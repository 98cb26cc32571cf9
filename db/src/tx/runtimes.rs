//! Runtimes and their revisions.

use faena_domain::{FunctionName, Namespace, RuntimeName, RuntimeSpec};
use faena_protocol::records::RuntimeRecord;

use super::StoreResult;

/// Rows of runtimes.
pub(crate) trait RuntimeRows {
    /// The revision that new functions are bound to.
    fn runtime(&self, namespace: &Namespace, name: &RuntimeName) -> StoreResult<Option<RuntimeRecord>>;

    /// All names, sorted.
    fn runtimes(&self, namespace: &Namespace) -> StoreResult<Vec<RuntimeName>>;

    /// Adds the next revision of a runtime; new functions are bound to it.
    fn insert_revision(&self, namespace: &Namespace, spec: &RuntimeSpec, now: i64) -> StoreResult<()>;

    /// A function with a version that is bound to the runtime.
    fn user_of_runtime(&self, namespace: &Namespace, name: &RuntimeName) -> StoreResult<Option<FunctionName>>;

    /// Removes a runtime; its revisions stay. False where there is none.
    fn delete_runtime(&self, namespace: &Namespace, name: &RuntimeName) -> StoreResult<bool>;

    /// Removes all runtimes of a namespace, with their revisions.
    fn delete_runtimes(&self, namespace: &Namespace) -> StoreResult<()>;
}
