//! Who refers to which blob, and which blobs nobody refers to any more.

use faena_domain::{BlobKey, CallNum, Payload};
use faena_protocol::DbError;
use faena_protocol::db::{BlobsReleased, BlobsRemoved, BlobsUnused};
use rusqlite::Connection;

use super::internal;
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::Text;

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[read::<BlobsUnused>(), read::<BlobsReleased>(), write::<BlobsRemoved>()];

/// A call, as an owner of blobs.
pub(super) fn of_call(namespace: &str, num: CallNum) -> String {
    format!("call/{namespace}/{num}")
}

/// A function's versions, as owners of blobs; with a number behind it, one of them.
pub(super) fn of_function(namespace: &str, function: &str) -> String {
    format!("version/{namespace}/{function}/")
}

/// Notes the blobs among these payloads as an owner's.
pub(super) fn refer<'a>(
    connection: &Connection,
    owner: &str,
    payloads: impl IntoIterator<Item = &'a Payload>,
) -> rusqlite::Result<()> {
    for payload in payloads {
        if let Payload::Blob { key, .. } = payload {
            refer_to(connection, owner, key)?;
        }
    }
    Ok(())
}

/// Notes a blob as an owner's.
pub(super) fn refer_to(connection: &Connection, owner: &str, key: &BlobKey) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO blobs (key, owner) VALUES (?1, ?2)")?
        .execute((Text(*key), owner))
        .map(drop)
}

/// Forgets what a call refers to, which still has its row.
pub(super) fn release_call(connection: &Connection, num: CallNum) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM blobs WHERE owner = (SELECT 'call/' || namespace || '/' || num FROM calls WHERE num = ?1)",
        )?
        .execute([num.0])
        .map(drop)
}

/// Forgets the log that a call refers to. Its lines have times, so no other call is about to refer to the same bytes, and
/// it is given out for removal at once.
pub(super) fn release_log(
    connection: &Connection,
    (namespace, num): (&str, CallNum),
    (log, result): (&Payload, &Payload),
    now: i64,
) -> rusqlite::Result<()> {
    let Payload::Blob { key, .. } = log else { return Ok(()) };
    if matches!(result, Payload::Blob { key: other, .. } if other == key) {
        return Ok(());
    }
    connection
        .prepare_cached("DELETE FROM blobs WHERE key = ?1 AND owner = ?2")?
        .execute((Text(*key), of_call(namespace, num)))?;
    connection
        .prepare_cached("INSERT INTO released (key, at) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET at = excluded.at")?
        .execute((Text(*key), now))
        .map(drop)
}

/// Forgets what the versions of a function refer to.
pub(super) fn release_function(connection: &Connection, namespace: &str, function: &str) -> rusqlite::Result<()> {
    let from = of_function(namespace, function);
    // '0' is the character after the slash at its end.
    let to = format!("{}0", from.trim_end_matches('/'));
    connection.prepare_cached("DELETE FROM blobs WHERE owner >= ?1 AND owner < ?2")?.execute((from, to)).map(drop)
}

fn is_used(connection: &Connection, key: BlobKey) -> Result<bool, DbError> {
    connection
        .prepare_cached("SELECT 1 FROM blobs WHERE key = ?1")
        .and_then(|mut statement| statement.exists([Text(key)]))
        .map_err(|error| internal("looking for a blob", &error))
}

impl Read for BlobsUnused {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<BlobKey>, DbError> {
        let mut unused = Vec::new();
        for key in self.keys {
            if !is_used(connection, key)? {
                unused.push(key);
            }
        }
        Ok(unused)
    }
}

impl Read for BlobsReleased {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<BlobKey>, DbError> {
        connection
            .prepare_cached(
                "SELECT key FROM released r WHERE NOT EXISTS (SELECT 1 FROM blobs b WHERE b.key = r.key) ORDER BY at LIMIT ?1",
            )
            .and_then(|mut statement| {
                let rows = statement.query_map([self.limit], |row| row.get::<_, Text<BlobKey>>(0))?;
                rows.map(|row| row.map(|Text(key)| key)).collect()
            })
            .map_err(|error| internal("looking for released blobs", &error))
    }
}

impl Write for BlobsRemoved {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<(), DbError> {
        let forget = || -> rusqlite::Result<()> {
            let mut one = connection.prepare_cached("DELETE FROM released WHERE key = ?1")?;
            self.keys.iter().try_for_each(|key| one.execute([Text(*key)]).map(drop))
        };
        forget().map_err(|error| internal("forgetting released blobs", &error))
    }
}
