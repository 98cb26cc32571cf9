//! Blobs, and what refers to them.

use std::fmt;

use faena_domain::{BlobKey, CallNum, FunctionId, Namespace, Version};

use super::StoreResult;

/// What refers to blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BlobOwner {
    /// A call.
    Call(Namespace, CallNum),
    /// A version of a function.
    Version(FunctionId, Version),
    /// An image, by its name with its tag.
    Image(String),
}

impl fmt::Display for BlobOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(namespace, num) => write!(f, "call/{namespace}/{num}"),
            Self::Version(FunctionId { namespace, name }, version) => {
                write!(f, "version/{namespace}/{}/{version}", name.key())
            }
            Self::Image(name) => write!(f, "image/{name}"),
        }
    }
}

/// Rows of references to blobs.
pub(crate) trait BlobRows {
    /// Notes blobs as an owner's.
    fn refer(&self, owner: &BlobOwner, keys: &[BlobKey]) -> StoreResult<()>;

    /// Forgets all that an owner refers to.
    fn release(&self, owner: &BlobOwner) -> StoreResult<()>;

    /// Forgets one blob of an owner.
    fn release_one(&self, owner: &BlobOwner, key: &BlobKey) -> StoreResult<()>;

    /// Forgets what the versions of a function refer to.
    fn release_versions(&self, function: &FunctionId) -> StoreResult<()>;

    /// Those of these blobs that nothing refers to.
    fn unused_blobs(&self, keys: &[BlobKey]) -> StoreResult<Vec<BlobKey>>;

    /// Marks a blob as ready for removal.
    fn note_released(&self, key: &BlobKey, at: i64) -> StoreResult<()>;

    /// Blobs that are ready for removal and that nothing refers to, the oldest first.
    fn released(&self, limit: u32) -> StoreResult<Vec<BlobKey>>;

    /// Forgets blobs that have been removed.
    fn forget_released(&self, keys: &[BlobKey]) -> StoreResult<()>;
}
