//! Images.

use faena_domain::ImageName;
use faena_protocol::records::ImageRecord;

use super::StoreResult;

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
