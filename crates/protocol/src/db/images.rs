//! Images that the platform keeps.

use faena_domain::ImageName;

use super::{Put, requests};
use crate::records::{ImageContent, ImageRecord};

requests! {
    /// Keeps an image under a name; builds that begin later use it.
    Write ImagePut = "image.put" by [Api] -> Put<ImageRecord> {
        /// Its name.
        name: ImageName,
        /// What it is; its blob is stored already.
        content: ImageContent,
    }
    /// Forgets an image. Versions that were built with it keep it.
    Write ImageDelete = "image.delete" by [Api] -> () {
        /// Its name.
        name: ImageName,
    }
    /// One image.
    Read ImageGet = "image.get" by [Api] -> ImageRecord {
        /// Its name.
        name: ImageName,
    }
    /// All images, by name.
    Read ImageList = "image.list" by [Api] -> Vec<ImageRecord> {}
}
