//! The audit log.

use faena_domain::{Namespace, Timestamp};
use faena_protocol::db::{AuditLine, AuditList};
use faena_protocol::records::AuditRecord;
use rusqlite::Row;

use super::rows::Text;
use super::tx::SqliteTx;
use crate::tx::{AuditRows, StoreResult};

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

impl AuditRows for SqliteTx<'_> {
    fn append_audit(&self, message: &str, lines: &[AuditRecord]) -> StoreResult<()> {
        for (place, line) in lines.iter().enumerate() {
            let AuditRecord { at, namespace, account, action, target, address, outcome, count } = line;
            let place = i64::try_from(place).unwrap_or(i64::MAX);
            self.execute(
                "INSERT INTO audit (message, place, at, namespace, account, action, target, address, outcome, count)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO NOTHING",
                (message, place, at.0, namespace.as_str(), account, action, target, address, outcome, count),
            )?;
        }
        Ok(())
    }

    fn audit(&self, request: &AuditList) -> StoreResult<Vec<AuditLine>> {
        let AuditList { namespace, since, account, action, before, limit } = request;
        let since = since.map_or(i64::MIN, |since| since.0);
        self.all(
            "SELECT number, at, namespace, account, action, target, address, outcome, count FROM audit
             WHERE namespace = ?1 AND at >= ?2 AND (?3 IS NULL OR account = ?3 COLLATE NOCASE)
                 AND (?4 IS NULL OR action = ?4) AND (?5 IS NULL OR number < ?5)
             ORDER BY number DESC LIMIT ?6",
            (namespace.as_str(), since, account, action, before, limit),
            line,
        )
    }

    fn forget_audit(&self, before: i64, most: u32) -> StoreResult<()> {
        self.execute(
            "DELETE FROM audit WHERE number IN (SELECT number FROM audit WHERE at < ?1 ORDER BY at LIMIT ?2)",
            (before, most),
        )?;
        Ok(())
    }
}
