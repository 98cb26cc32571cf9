//! Runtimes and their revisions.

use faena_domain::{Namespace, Revision, RuntimeName, RuntimeSpec, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{Put, Resource, RuntimeDelete, RuntimeGet, RuntimeList, RuntimePut};
use faena_protocol::records::RuntimeRecord;
use rusqlite::{Connection, OptionalExtension, Row};

use super::internal;
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, not_found};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] =
    &[write::<RuntimePut>(), write::<RuntimeDelete>(), read::<RuntimeGet>(), read::<RuntimeList>()];

fn record(row: &Row<'_>) -> rusqlite::Result<RuntimeRecord> {
    let Json(spec) = row.get(0)?;
    Ok(RuntimeRecord { spec, revision: Revision(row.get(1)?), created_at: Timestamp(row.get(2)?) })
}

/// The revision that new functions are bound to.
pub(super) fn find(
    connection: &Connection,
    namespace: &Namespace,
    name: &RuntimeName,
) -> Result<RuntimeRecord, DbError> {
    connection
        .prepare_cached(
            "SELECT v.spec, v.revision, v.created_at FROM runtimes r
             JOIN runtime_revisions v ON v.namespace = r.namespace AND v.runtime = r.key AND v.revision = r.revision
             WHERE r.namespace = ?1 AND r.key = ?2",
        )
        .and_then(|mut statement| statement.query_row((namespace.as_str(), name.key()), record).optional())
        .map_err(|error| internal("reading a runtime", &error))?
        .ok_or_else(|| not_found(Resource::Runtime, name))
}

fn insert(connection: &Connection, namespace: &Namespace, spec: &RuntimeSpec, now: i64) -> rusqlite::Result<()> {
    let key = spec.name.key();
    let revision: i64 = connection.query_row(
        "SELECT coalesce(max(revision), 0) + 1 FROM runtime_revisions WHERE namespace = ?1 AND runtime = ?2",
        (namespace.as_str(), &key),
        |row| row.get(0),
    )?;
    connection.execute(
        "INSERT INTO runtime_revisions (namespace, runtime, revision, spec, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        (namespace.as_str(), &key, revision, Json(spec), now),
    )?;
    connection.execute(
        "INSERT INTO runtimes (namespace, key, name, revision) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (namespace, key) DO UPDATE SET revision = ?4",
        (namespace.as_str(), &key, spec.name.as_str(), revision),
    )?;
    Ok(())
}

impl Write for RuntimePut {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Self::Reply, DbError> {
        let old = match find(connection, &self.namespace, &self.spec.name) {
            Ok(old) => Some(old),
            Err(DbError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(old) = &old {
            if old.spec.name.as_str() != self.spec.name.as_str() {
                let message = format!("the runtime {} exists already; names differ by more than case", old.spec.name);
                return Err(DbError::Conflict { message });
            }
            if old.spec == self.spec {
                return Ok(Put { record: old.clone(), created: false });
            }
        }
        insert(connection, &self.namespace, &self.spec, context.now)
            .map_err(|error| internal("writing a runtime", &error))?;
        Ok(Put { record: find(connection, &self.namespace, &self.spec.name)?, created: old.is_none() })
    }
}

impl Write for RuntimeDelete {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<(), DbError> {
        let key = self.name.key();
        let user: Option<String> = connection
            .query_row(
                "SELECT f.name FROM versions v JOIN functions f ON f.namespace = v.namespace AND f.key = v.function
                 WHERE v.namespace = ?1 AND v.runtime = ?2 LIMIT 1",
                (self.namespace.as_str(), &key),
                |row| row.get(0),
            )
            .optional()
            .map_err(|error| internal("looking for a runtime's functions", &error))?;
        if let Some(user) = user {
            let message = format!("the runtime {} is used by the function {user}; delete that first", self.name);
            return Err(DbError::Conflict { message });
        }
        let gone = connection
            .execute("DELETE FROM runtimes WHERE namespace = ?1 AND key = ?2", (self.namespace.as_str(), &key))
            .map_err(|error| internal("deleting a runtime", &error))?;
        if gone == 0 { Err(not_found(Resource::Runtime, &self.name)) } else { Ok(()) }
    }
}

impl Read for RuntimeGet {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<RuntimeRecord, DbError> {
        find(connection, &self.namespace, &self.name)
    }
}

impl Read for RuntimeList {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<RuntimeName>, DbError> {
        let names = |connection: &Connection| -> rusqlite::Result<Vec<RuntimeName>> {
            let mut statement =
                connection.prepare_cached("SELECT name FROM runtimes WHERE namespace = ?1 ORDER BY key")?;
            let rows =
                statement.query_map([self.namespace.as_str()], |row| row.get(0).map(|super::rows::Text(name)| name))?;
            rows.collect()
        };
        names(connection).map_err(|error| internal("listing runtimes", &error))
    }
}
