//! Who refers to which blob.

use faena_domain::{BlobKey, CallNum, Payload};
use faena_protocol::DbError;
use faena_protocol::db::BlobsUnused;
use rusqlite::Connection;

use super::internal;
use super::requests::{Moment, Read};
use super::rows::Text;

/// A call, as an owner of blobs.
pub(super) fn of_call(num: CallNum) -> String {
    format!("call/{num}")
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

/// Forgets what a call refers to.
pub(super) fn release_call(connection: &Connection, num: CallNum) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM blobs WHERE owner = ?1")?.execute([of_call(num)]).map(drop)
}

/// Forgets what the versions of a function refer to.
pub(super) fn release_function(connection: &Connection, namespace: &str, function: &str) -> rusqlite::Result<()> {
    let from = of_function(namespace, function);
    // '0' is the character after the slash at its end.
    let to = format!("{}0", from.trim_end_matches('/'));
    connection.prepare_cached("DELETE FROM blobs WHERE owner >= ?1 AND owner < ?2")?.execute((from, to)).map(drop)
}

impl Read for BlobsUnused {
    fn read(self, connection: &Connection, _moment: &Moment<'_>) -> Result<Vec<BlobKey>, DbError> {
        let mut unused = Vec::new();
        for key in self.keys {
            let is_used = connection
                .prepare_cached("SELECT 1 FROM blobs WHERE key = ?1")
                .and_then(|mut statement| statement.exists([Text(key)]))
                .map_err(|error| internal("looking for a blob", &error))?;
            if !is_used {
                unused.push(key);
            }
        }
        Ok(unused)
    }
}
