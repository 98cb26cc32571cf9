//! Blobs, who refers to them, and images.

use std::fmt;

use faena_domain::{BlobKey, CallNum, FunctionId, ImageName, Namespace, Version};
use faena_protocol::records::ImageRecord;

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

    /// Those of these blobs that nobody refers to.
    fn unused_blobs(&self, keys: &[BlobKey]) -> StoreResult<Vec<BlobKey>>;

    /// Gives a blob out for removal.
    fn note_released(&self, key: &BlobKey, at: i64) -> StoreResult<()>;

    /// Blobs that were given out for removal and that nobody refers to, the oldest first.
    fn released(&self, limit: u32) -> StoreResult<Vec<BlobKey>>;

    /// These blobs have been removed.
    fn forget_released(&self, keys: &[BlobKey]) -> StoreResult<()>;
}

/// Rows of images.
pub(crate) trait ImageRows {
    /// An image by its name.
    fn image(&self, name: &ImageName) -> StoreResult<Option<ImageRecord>>;

    /// All images, by name.
    fn images(&self) -> StoreResult<Vec<ImageRecord>>;

    /// How many images there are.
    fn count_images(&self) -> StoreResult<u64>;

    /// Adds an image, or replaces the one of the same name.
    fn put_image(&self, image: &ImageRecord) -> StoreResult<()>;

    /// Removes an image; false where there is none.
    fn delete_image(&self, name: &ImageName) -> StoreResult<bool>;
}
