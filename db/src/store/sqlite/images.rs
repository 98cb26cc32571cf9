//! Images.

use faena_domain::{ImageName, Timestamp};
use faena_protocol::records::ImageRecord;
use rusqlite::Row;

use super::rows::{Json, Text};
use super::tx::SqliteTx;
use crate::tx::{ImageRows, StoreResult};

fn image_record(row: &Row<'_>) -> rusqlite::Result<ImageRecord> {
    let (Text(name), Json(content)) = (row.get(0)?, row.get(1)?);
    Ok(ImageRecord { name, content, created_at: Timestamp(row.get(2)?) })
}

impl ImageRows for SqliteTx<'_> {
    fn image(&self, name: &ImageName) -> StoreResult<Option<ImageRecord>> {
        self.first("SELECT name, content, created_at FROM images WHERE name = ?1", [name.tagged()], image_record)
    }

    fn images(&self) -> StoreResult<Vec<ImageRecord>> {
        self.all("SELECT name, content, created_at FROM images ORDER BY name", [], image_record)
    }

    fn count_images(&self) -> StoreResult<u64> {
        self.value("SELECT count(*) FROM images", [])
    }

    fn put_image(&self, image: &ImageRecord) -> StoreResult<()> {
        self.execute(
            "INSERT INTO images (name, content, created_at) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET content = excluded.content, created_at = excluded.created_at",
            (image.name.tagged(), Json(&image.content), image.created_at.0),
        )?;
        Ok(())
    }

    fn delete_image(&self, name: &ImageName) -> StoreResult<bool> {
        Ok(self.execute("DELETE FROM images WHERE name = ?1", [name.tagged()])? > 0)
    }
}
