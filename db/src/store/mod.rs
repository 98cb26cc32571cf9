//! What a database must do to be Faena's.

mod sqlite;

use faena_protocol::db::FunctionsSeen;
use faena_protocol::{DbError, Envelope};
use serde_json::value::RawValue;

pub use sqlite::{MigrateError, OpenError, SqliteStore, backup};

/// Takes the reply of one request; called at most once, from any thread.
pub type Responder = Box<dyn FnOnce(Result<Box<RawValue>, DbError>) + Send>;

/// Answers every request of `faena_protocol::db`.
///
/// A write is answered after it is durable, never before. A write that is sent again is answered as it was the
/// first time. A store that cannot know whether a commit is durable ends its process.
pub trait Store: Send + Sync + 'static {
    /// Takes a request; it is answered through `respond`, with [`DbError::Full`] where the queues are full.
    fn submit(&self, request: &Envelope, respond: Responder);

    /// How often what calls run has changed.
    fn functions_seen(&self) -> FunctionsSeen;
}
