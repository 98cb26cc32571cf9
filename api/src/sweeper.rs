//! Removes blobs that nothing refers to: params and results of forgotten calls, archives of deleted functions, and what
//! was written for a request that never came to its row.

use std::time::Duration;

use faena_blob::BlobStore;
use faena_db_client::DbClient;
use faena_protocol::db::{BlobsReleased, BlobsRemoved, BlobsUnused};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often the store is looked through.
const EVERY: Duration = Duration::from_secs(3600);
/// A younger blob may be about to be referred to; a blob that is put again after half of this is written again.
const AGE: Duration = faena_blob::REFRESHED_AFTER.saturating_mul(2);
/// Blobs of one question.
const BATCH: u32 = 500;

/// How often forgotten logs are removed: they come faster than anything else that is stored.
const EVERY_LOG: Duration = Duration::from_secs(5);

/// Sweeps until told to stop.
pub(crate) async fn run(db: DbClient, blobs: BlobStore, stop: CancellationToken) {
    let (mut all, mut logs) = (tokio::time::interval(EVERY), tokio::time::interval(EVERY_LOG));
    let sweeping = async {
        loop {
            tokio::select! {
                _ = all.tick() => match sweep(&db, &blobs, AGE).await {
                    Ok(0) => {}
                    Ok(count) => info!(count, "removed blobs that nothing refers to"),
                    Err(error) => warn!(error, "blobs that nothing refers to stay for another hour"),
                },
                _ = logs.tick() => if let Err(error) = remove_logs(&db, &blobs).await {
                    warn!(error, "forgotten logs stay in the blob store for now");
                }
            }
        }
    };
    stop.run_until_cancelled(sweeping).await;
}

/// Removes logs that were forgotten, as many as one question names.
async fn remove_logs(db: &DbClient, blobs: &BlobStore) -> Result<(), String> {
    let keys = db.ask(&BlobsReleased { limit: BATCH }).await.map_err(|error| error.to_string())?;
    if keys.is_empty() {
        return Ok(());
    }
    for key in &keys {
        blobs.remove_older(key, Duration::ZERO).await.map_err(|error| error.to_string())?;
    }
    db.ask(&BlobsRemoved { keys }).await.map_err(|error| error.to_string())
}

/// One round; how many were removed.
async fn sweep(db: &DbClient, blobs: &BlobStore, age: Duration) -> Result<usize, String> {
    let old = blobs.older_than(age).await.map_err(|error| error.to_string())?;
    let mut count = 0;
    for keys in old.chunks(BATCH as usize) {
        let unused = db.ask(&BlobsUnused { keys: keys.to_vec() }).await.map_err(|error| error.to_string())?;
        for key in &unused {
            // It may have been put again since it was asked for.
            blobs.remove_older(key, age).await.map_err(|error| error.to_string())?;
        }
        count += unused.len();
    }
    Ok(count)
}
