//! The database service: it owns the data, and answers requests over ZeroMQ.
//!
//! `rules` says what each request does, and knows of a database only `Tx` (`tx`), one transaction. [`Store`] runs the rules;
//! [`SqliteStore`] is the one there is. No SQL leaves `store/sqlite`.

mod changes;
mod clock;
mod keyring;
pub mod metrics;
mod reserve;
mod rules;
mod server;
mod settings;
mod store;
mod tx;

pub use clock::{KernelTime, TimeSource};
pub use server::{ServeError, serve};
pub use settings::{Keep, QueueBounds, StoreSettings};
pub use store::{MigrateError, OpenError, Responder, SqliteStore, Store, backup};
