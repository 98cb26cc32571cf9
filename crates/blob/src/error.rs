//! Why a blob could not be written or read.

use faena_domain::BlobKey;

/// Why a blob could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The store failed.
    #[error("the blob store failed")]
    Store(#[from] object_store::Error),
    /// The folder for passing files failed.
    #[error("the spool folder failed")]
    Spool(#[from] std::io::Error),
    /// There is no such blob.
    #[error("there is no blob {0}")]
    NotFound(BlobKey),
    /// The bytes are not those that were written; they are never executed.
    #[error("the blob {0} is damaged: its bytes do not have that hash (code_integrity)")]
    Damaged(BlobKey),
    /// The platform that has the blobs.
    #[error("the platform's blobs cannot be reached: {0}")]
    Remote(String),
    /// The platform does not let this node have it.
    #[error("{0}")]
    NotPermitted(String),
    /// More bytes than the reader can take.
    #[error("the blob {0} is larger than {1} bytes")]
    TooLarge(BlobKey, u64),
}

impl BlobError {
    /// Whether a disk is full, at whichever step that was noticed.
    pub fn is_full(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let full = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            if full == Some(std::io::ErrorKind::StorageFull) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}
