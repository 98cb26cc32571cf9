//! Calls that had no row while they ran, written when they have ended.

use faena_protocol::DbError;
use faena_protocol::db::CallsRecord;
use faena_protocol::records::EndedCall;
use rusqlite::{Connection, params};

use crate::sqlite::requests::{RequestContext, Write};
use crate::sqlite::rows::{Json, Text};
use crate::sqlite::{blobs, call_rows, completed, internal};

impl Write for CallsRecord {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<(), DbError> {
        self.batches.iter().try_for_each(|batch| completed::write(connection, batch))?;
        let mut written = 0;
        for call in self.calls {
            written += write_ended(connection, std::sync::Arc::unwrap_or_clone(call))?;
        }
        if written > 0 {
            connection
                .prepare_cached("UPDATE totals SET ended = ended + ?1")
                .and_then(|mut statement| statement.execute([written]))
                .map_err(|error| internal("counting calls", &error))?;
        }
        Ok(())
    }
}

/// Writes one waited call whole, and tells how many rows that made: one that is there already stays as it is.
fn write_ended(connection: &Connection, ended: EndedCall) -> Result<usize, DbError> {
    let call = ended.call.clone();
    let spec = completed::spec(ended);
    let write = || -> rusqlite::Result<usize> {
        let written = connection
            .prepare_cached(
                "INSERT INTO calls (num, namespace, function, version, status, spec, engine, result, error, logs, attempts,
                     waited, retries, created_at, queued_at, not_before, expires_at, ended_at, head, kept_bytes, log_bytes, streamed)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, 1, 0, ?12, ?12, ?12, ?12, ?13, ?14, ?15, ?16, ?17)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                call.num.0,
                spec.namespace.as_str(),
                spec.function.key(),
                call.version.0,
                call.status.as_str(),
                Json(&spec),
                call.engine.map(Text),
                Json(&call.result),
                call.error.as_ref().map(Json),
                Json(&call.logs),
                Json(&call.attempts),
                call.created_at,
                call.ended_at.unwrap_or(call.created_at),
                call.head.as_ref().map(Json),
                call_rows::kept_bytes(&call.result, &call.logs),
                call.logs.len(),
                call.streamed.as_ref().map(Json),
            ])?;
        blobs::refer(
            connection,
            &blobs::of_call(spec.namespace.as_str(), call.num),
            [&spec.params, &call.result, &call.logs].into_iter().chain(&spec.body),
        )?;
        Ok(written)
    };
    write().map_err(|error| internal("recording a call", &error))
}
