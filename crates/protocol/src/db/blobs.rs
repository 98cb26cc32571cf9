//! Blobs that nothing refers to any more.

use faena_domain::BlobKey;

use super::requests;

requests! {
    /// Which of these blobs nothing refers to.
    Read BlobsUnused = "blob.unused" by [Api] -> Vec<BlobKey> {
        /// The blobs.
        keys: Vec<BlobKey>,
    }
    /// Logs that were forgotten and lie in the blob store.
    Read BlobsReleased = "blob.released" by [Api] -> Vec<BlobKey> {
        /// How many at most.
        limit: u32,
    }
    /// These forgotten logs are removed from the blob store.
    Write BlobsRemoved = "blob.removed" by [Api] -> () {
        /// The blobs.
        keys: Vec<BlobKey>,
    }
}
