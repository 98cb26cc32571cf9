//! The conformance suite on SQLite, and what concerns SQLite alone.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../conformance/mod.rs"]
mod conformance;
mod counts;

use std::path::Path;
use std::sync::Arc;

use faena_db::{SqliteStore, Store, StoreSettings, TimeSource};

/// Opens the store of a folder.
fn open(folder: &Path, settings: StoreSettings, time: Arc<dyn TimeSource>) -> Arc<dyn Store> {
    let metrics = faena_telemetry::Metrics::default().register(faena_db::metrics::Metrics::register);
    let (file, keys) = (folder.join("db"), folder.join("secret.key"));
    Arc::new(SqliteStore::open_with(&file, &keys, settings, time, &metrics).unwrap())
}
