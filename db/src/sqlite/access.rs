//! Whether the platform is locked, the token of its set-up, and what of a namespace decides about access.

use faena_domain::{FunctionId, Namespace, Quota};
use faena_protocol::DbError;
use faena_protocol::db::{AccessState, AccessStateGet, Resource, SetupGet, SetupPut};
use rusqlite::{Connection, OptionalExtension};

use super::internal;
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, not_found};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[read::<AccessStateGet>(), write::<SetupPut>(), read::<SetupGet>()];

/// Whether there is an account, so that every request needs one.
pub(super) fn is_locked(connection: &Connection) -> Result<bool, DbError> {
    connection
        .prepare_cached("SELECT locked FROM access")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .map_err(|error| internal("reading whether the platform is locked", &error))
}

/// The quota of a namespace, where it exists.
pub(super) fn namespace_quota(connection: &Connection, name: &Namespace) -> Result<Quota, DbError> {
    connection
        .prepare_cached("SELECT quota FROM namespaces WHERE name = ?1 AND NOT deleted")
        .and_then(|mut statement| statement.query_row([name.as_str()], |row| row.get(0)).optional())
        .map_err(|error| internal("reading a namespace", &error))?
        .map(|Json(quota)| quota)
        .ok_or_else(|| not_found(Resource::Namespace, name))
}

/// Notes that access may change with a function: one of its versions is for everyone.
pub(super) fn note_public(
    connection: &Connection,
    context: &RequestContext<'_>,
    function: &FunctionId,
) -> rusqlite::Result<()> {
    let is_public = connection
        .prepare_cached(
            "SELECT 1 FROM versions WHERE namespace = ?1 AND function = ?2 AND manifest ->> 'access' = 'public' LIMIT 1",
        )?
        .exists((function.namespace.as_str(), function.name.key()))?;
    if is_public {
        context.changes_access();
    }
    Ok(())
}

impl Read for AccessStateGet {
    fn read(self, connection: &Connection, context: &RequestContext<'_>) -> Result<AccessState, DbError> {
        Ok(AccessState { locked: is_locked(connection)?, seen: context.access_seen })
    }
}

impl Write for SetupPut {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<(), DbError> {
        connection
            .execute("UPDATE access SET setup = ?1 WHERE NOT locked", [self.hash])
            .map(drop)
            .map_err(|error| internal("keeping the token of the set-up", &error))
    }
}

impl Read for SetupGet {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Option<String>, DbError> {
        connection
            .query_row("SELECT setup FROM access WHERE NOT locked", [], |row| row.get(0))
            .optional()
            .map(Option::flatten)
            .map_err(|error| internal("reading the token of the set-up", &error))
    }
}
