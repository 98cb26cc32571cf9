//! Completed calls, many in one row. A batch holds calls of one function whose numbers lie in one span.

use faena_domain::{CallNum, FunctionName, Namespace};
use faena_protocol::records::{BATCH_SPAN, CompletedBatch, EndedCall};
use rusqlite::Row;

use super::tx::SqliteTx;
use crate::tx::{CompletedSpan, StoreError, StoreResult};

/// Adds a batch; one that is there already stays.
pub(super) fn insert(tx: &SqliteTx<'_>, batch: &CompletedBatch) -> StoreResult<()> {
    tx.execute(
        "INSERT INTO completed_batches (first, namespace, function, span, ended_at, calls, records)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
        (
            batch.first.0,
            batch.namespace.as_str(),
            batch.function.key(),
            batch.first.0 / BATCH_SPAN,
            batch.ended_at,
            batch.count,
            batch.records.get(),
        ),
    )?;
    Ok(())
}

fn parse(records: &str) -> StoreResult<Vec<EndedCall>> {
    serde_json::from_str(records).map_err(StoreError::new)
}

fn text(row: &Row<'_>) -> rusqlite::Result<String> {
    row.get(0)
}

/// One call. Calls that ended together have numbers close to each other, so its batch is among the nearest below.
pub(super) fn find(tx: &SqliteTx<'_>, namespace: &Namespace, num: CallNum) -> StoreResult<Option<EndedCall>> {
    let mut statement = tx.connection.prepare_cached(
        "SELECT records FROM completed_batches WHERE namespace = ?1 AND span = ?2 AND first <= ?3 ORDER BY first DESC",
    )?;
    let mut rows = statement.query((namespace.as_str(), num.0 / BATCH_SPAN, num.0))?;
    while let Some(row) = rows.next()? {
        if let Some(call) = parse(&text(row)?)?.into_iter().find(|ended| ended.call.num == num) {
            return Ok(Some(call));
        }
    }
    Ok(None)
}

/// The newest span up to this one that has batches, of a function or of all.
pub(super) fn newest_span(
    tx: &SqliteTx<'_>,
    (namespace, function): (&Namespace, Option<&FunctionName>),
    up_to: i64,
) -> StoreResult<Option<CompletedSpan>> {
    let function = function.map(FunctionName::key);
    let only = if function.is_some() { " AND function = ?3" } else { " AND ?3 IS NULL" };
    let newest = format!(
        "SELECT span FROM completed_batches WHERE namespace = ?1 AND span <= ?2{only} ORDER BY span DESC LIMIT 1"
    );
    let Some(span) = tx.first(&newest, (namespace.as_str(), up_to, &function), |row| row.get::<_, i64>(0))? else {
        return Ok(None);
    };
    let batches = format!("SELECT records FROM completed_batches WHERE namespace = ?1 AND span = ?2{only}");
    let mut calls = Vec::new();
    for records in tx.all(&batches, (namespace.as_str(), span, &function), text)? {
        calls.extend(parse(&records)?);
    }
    Ok(Some(CompletedSpan { span, calls }))
}
