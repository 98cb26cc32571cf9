//! The audit log: lines are appended, read, and forgotten by their age.

use faena_domain::{Namespace, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{AuditAppend, AuditLine, AuditList};
use faena_protocol::records::AuditRecord;
use rusqlite::{Connection, Row};

use super::internal;
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::Text;

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[write::<AuditAppend>(), read::<AuditList>()];

/// The most lines that are forgotten at once.
const BATCH: u32 = 1000;

impl Write for AuditAppend {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<(), DbError> {
        let append = || -> rusqlite::Result<()> {
            let mut statement = connection.prepare_cached(
                "INSERT INTO audit (message, place, at, namespace, account, action, target, address, outcome, count)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO NOTHING",
            )?;
            for (place, line) in self.lines.iter().enumerate() {
                let AuditRecord { at, namespace, account, action, target, address, outcome, count } = line;
                let place = i64::try_from(place).unwrap_or(i64::MAX);
                let row = (&self.id, place, at.0, namespace.as_str(), account, action, target, address, outcome, count);
                statement.execute(row)?;
            }
            Ok(())
        };
        append().map_err(|error| internal("appending to the audit log", &error))
    }
}

fn line(row: &Row<'_>) -> rusqlite::Result<AuditLine> {
    Ok(AuditLine {
        number: row.get(0)?,
        record: AuditRecord {
            at: Timestamp(row.get(1)?),
            namespace: row.get::<_, Text<Namespace>>(2)?.0,
            account: row.get(3)?,
            action: row.get(4)?,
            target: row.get(5)?,
            address: row.get(6)?,
            outcome: row.get(7)?,
            count: row.get(8)?,
        },
    })
}

impl Read for AuditList {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<AuditLine>, DbError> {
        connection
            .prepare_cached(
                "SELECT number, at, namespace, account, action, target, address, outcome, count FROM audit
                 WHERE namespace = ?1 AND at >= ?2 AND (?3 IS NULL OR account = ?3 COLLATE NOCASE)
                     AND (?4 IS NULL OR action = ?4) AND (?5 IS NULL OR number < ?5)
                 ORDER BY number DESC LIMIT ?6",
            )
            .and_then(|mut statement| {
                let since = self.since.map_or(i64::MIN, |since| since.0);
                let key = (self.namespace.as_str(), since, &self.account, &self.action, self.before, self.limit);
                statement.query_map(key, line)?.collect()
            })
            .map_err(|error| internal("reading the audit log", &error))
    }
}

/// Forgets lines that are older than this.
pub(super) fn forget(connection: &Connection, before: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM audit WHERE number IN (SELECT number FROM audit WHERE at < ?1 ORDER BY at LIMIT ?2)",
        )?
        .execute((before, BATCH))
        .map(drop)
}
