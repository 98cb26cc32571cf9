//! The database service: it owns the data, and answers requests over ZeroMQ.
//!
//! [`Store`] is the seam for another database; [`SqliteStore`] is the one there is. No SQL leaves this crate.

pub mod metrics;
mod server;
mod sqlite;
mod store;

pub use server::{ServeError, serve};
pub use sqlite::{MigrateError, OpenError, SqliteStore};
pub use store::{Responder, Store};
