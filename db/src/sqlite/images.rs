//! Images that the platform keeps, by name.

use faena_domain::{ImageName, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{ImageDelete, ImageGet, ImageList, ImagePut, Put, Resource};
use faena_protocol::records::{ImageContent, ImageRecord};
use rusqlite::{Connection, OptionalExtension, Row};

use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, Text, not_found};
use super::{blobs, internal};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] =
    &[write::<ImagePut>(), write::<ImageDelete>(), read::<ImageGet>(), read::<ImageList>()];

/// The most images.
const MAX_IMAGES: u64 = 1000;

/// A name's image, as an owner of blobs.
fn owner(name: &str) -> String {
    format!("image/{name}")
}

fn record(row: &Row<'_>) -> rusqlite::Result<ImageRecord> {
    let (Text(name), Json(content)) = (row.get(0)?, row.get(1)?);
    Ok(ImageRecord { name, content, created_at: Timestamp(row.get(2)?) })
}

fn find(connection: &Connection, name: &ImageName) -> Result<Option<ImageRecord>, DbError> {
    connection
        .prepare_cached("SELECT name, content, created_at FROM images WHERE name = ?1")
        .and_then(|mut statement| statement.query_row([name.tagged()], record).optional())
        .map_err(|error| internal("reading an image", &error))
}

/// What an image is, where the platform keeps it.
pub(super) fn content(connection: &Connection, name: &ImageName) -> Result<Option<ImageContent>, DbError> {
    Ok(find(connection, name)?.map(|image| image.content))
}

impl Write for ImagePut {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Put<ImageRecord>, DbError> {
        let (old, name) = (find(connection, &self.name)?, self.name.tagged());
        if let Some(old) = old.as_ref().filter(|old| old.content == self.content) {
            return Ok(Put { record: old.clone(), created: false });
        }
        let put = || -> rusqlite::Result<u64> {
            connection.execute("DELETE FROM blobs WHERE owner = ?1", [owner(&name)])?;
            blobs::refer_to(connection, &owner(&name), &self.content.key)?;
            connection.execute(
                "INSERT INTO images (name, content, created_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET content = excluded.content, created_at = excluded.created_at",
                (&name, Json(&self.content), context.wall),
            )?;
            connection.query_row("SELECT count(*) FROM images", [], |row| row.get(0))
        };
        if put().map_err(|error| internal("keeping an image", &error))? > MAX_IMAGES {
            return Err(DbError::TooMuch { message: format!("there are {MAX_IMAGES} images, which is the most") });
        }
        let missing = || not_found(Resource::Image, &name);
        Ok(Put { record: find(connection, &self.name)?.ok_or_else(missing)?, created: old.is_none() })
    }
}

impl Write for ImageDelete {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<(), DbError> {
        let name = self.name.tagged();
        let delete = || {
            connection.execute("DELETE FROM blobs WHERE owner = ?1", [owner(&name)])?;
            connection.execute("DELETE FROM images WHERE name = ?1", [&name])
        };
        let gone = delete().map_err(|error| internal("forgetting an image", &error))?;
        if gone == 0 { Err(not_found(Resource::Image, &name)) } else { Ok(()) }
    }
}

impl Read for ImageGet {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<ImageRecord, DbError> {
        find(connection, &self.name)?.ok_or_else(|| not_found(Resource::Image, &self.name))
    }
}

impl Read for ImageList {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<ImageRecord>, DbError> {
        connection
            .prepare_cached("SELECT name, content, created_at FROM images ORDER BY name")
            .and_then(|mut statement| statement.query_map([], record)?.collect())
            .map_err(|error| internal("listing images", &error))
    }
}
