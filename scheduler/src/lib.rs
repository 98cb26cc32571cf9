//! Which worker gets which call and build.
//!
//! The pure parts decide: `fleet` (the workers and their slots), `ledger` (what calls take of slots) and `turns` (whose
//! call is next). [`Scheduler`], one task, owns the connections to workers and knows every call that has no row; it does
//! what was decided. Calls with a row are claimed in db for a worker that has a free slot, and only then sent to it; the
//! worker ends them there.
//!
//! [`statistics`] are what functions have done. [`InFlight`] knows every call without a row, on every call path. [`CompletionWriter`] writes them when they have ended.
//! [`WorkerConnections`] are the direct path to workers in other processes.

pub mod batch;
mod completions;
mod fleet;
mod handle;
mod in_flight;
mod ledger;
mod questions;
mod scheduler;
pub mod statistics;
mod sync_call;
mod turns;
mod worker_connections;

pub use completions::{BacklogPermit, CompletionWriter};
pub use fleet::WorkerStatus;
pub use handle::SchedulerHandle;
pub use in_flight::{Cancel, DirectInFlight, InFlight};
pub use scheduler::Scheduler;
pub use sync_call::{SyncAnswer, SyncCall, unix_ms};
pub use worker_connections::WorkerConnections;
