//! Images that the platform keeps, by name.

use faena_domain::Timestamp;
use faena_protocol::DbError;
use faena_protocol::db::{ImageDelete, ImageGet, ImageList, ImagePut, Put, Resource};
use faena_protocol::records::ImageRecord;

use super::{Read, Request, RequestContext, RuleResult, Write, not_found, read, refuse, write};
use crate::tx::{BlobOwner, Tx};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] =
    &[write::<ImagePut>(), write::<ImageDelete>(), read::<ImageGet>(), read::<ImageList>()];

/// The most images.
const MAX_IMAGES: u64 = 1000;

impl Write for ImagePut {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Put<ImageRecord>> {
        let old = tx.image(&self.name)?;
        if let Some(old) = old.as_ref().filter(|old| old.content == self.content) {
            return Ok(Put { record: old.clone(), created: false });
        }
        let owner = BlobOwner::Image(self.name.tagged());
        tx.release(&owner)?;
        tx.refer(&owner, &[self.content.key])?;
        let (name, content) = (self.name.clone(), self.content.clone());
        tx.put_image(&ImageRecord { name, content, created_at: Timestamp(context.wall) })?;
        if tx.count_images()? > MAX_IMAGES {
            let message = format!("there are {MAX_IMAGES} images, which is the most");
            return refuse(DbError::TooMuch { message });
        }
        let record = tx.image(&self.name)?.ok_or_else(|| not_found(Resource::Image, &self.name))?;
        Ok(Put { record, created: old.is_none() })
    }
}

impl Write for ImageDelete {
    fn write(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<()> {
        tx.release(&BlobOwner::Image(self.name.tagged()))?;
        if tx.delete_image(&self.name)? { Ok(()) } else { refuse(not_found(Resource::Image, &self.name.tagged())) }
    }
}

impl Read for ImageGet {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<ImageRecord> {
        Ok(tx.image(&self.name)?.ok_or_else(|| not_found(Resource::Image, &self.name))?)
    }
}

impl Read for ImageList {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Vec<ImageRecord>> {
        Ok(tx.images()?)
    }
}
