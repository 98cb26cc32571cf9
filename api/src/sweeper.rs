//! Removes blobs that nothing refers to: params and results of forgotten calls, archives of deleted functions, and what
//! was written for a request that never came to its row.

use std::time::Duration;

use faena_blob::BlobStore;
use faena_db_client::DbClient;
use faena_protocol::db::BlobsUnused;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often the store is looked through.
const EVERY: Duration = Duration::from_secs(3600);
/// A younger blob may be about to be referred to; a store writes a blob anew that is put again after half of this.
const AGE: Duration = faena_blob::REFRESHED_AFTER.saturating_mul(2);
/// Blobs of one question.
const BATCH: usize = 500;

/// Sweeps until told to stop.
pub(crate) async fn run(db: DbClient, blobs: BlobStore, stop: CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        match stop.run_until_cancelled(sweep(&db, &blobs, AGE)).await {
            Some(Ok(0)) | None => {}
            Some(Ok(count)) => info!(count, "removed blobs that nothing refers to"),
            Some(Err(error)) => warn!(error, "blobs that nothing refers to stay for another hour"),
        }
    }
}

/// One round; how many were removed.
async fn sweep(db: &DbClient, blobs: &BlobStore, age: Duration) -> Result<usize, String> {
    let old = blobs.older_than(age).await.map_err(|error| error.to_string())?;
    let mut count = 0;
    for keys in old.chunks(BATCH) {
        let unused = db.ask(&BlobsUnused { keys: keys.to_vec() }).await.map_err(|error| error.to_string())?;
        for key in &unused {
            // It may have been put again since it was asked for.
            blobs.remove_older(key, age).await.map_err(|error| error.to_string())?;
        }
        count += unused.len();
    }
    Ok(count)
}
