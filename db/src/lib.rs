//! The database service: it owns the data, and answers requests over ZeroMQ.
//!
//! [`Store`] is the seam for another database; [`SqliteStore`] is the one there is. No SQL leaves this crate.

pub mod metrics;
mod server;
mod settings;
mod sqlite;
mod store;

pub use server::{ServeError, serve};
pub use settings::{Keep, QueueBounds, StoreSettings};
pub use sqlite::{KernelTime, MigrateError, OpenError, SqliteStore, TimeSource, backup};
pub use store::{Responder, Store};
