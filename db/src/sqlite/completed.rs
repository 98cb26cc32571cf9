//! Completed calls that succeeded and whose clients waited, many in one row: a busy function ends more of them in a second than rows could be written.
//!
//! A batch holds calls of one function whose numbers lie in one span, as the api put them together. They are read
//! beside `calls` and look the same; nothing about them ever changes, and what needs a row of its own never comes here.

use faena_domain::{CallNum, Namespace};
use faena_protocol::DbError;
use faena_protocol::records::{BATCH_SPAN, CallRecord, CallSpec, CompletedBatch, EndedCall};
use rusqlite::{Connection, OptionalExtension};

use super::internal;

fn broken(error: &rusqlite::Error) -> DbError {
    internal("reading completed calls", error)
}

/// Writes a batch; one that is there already stays.
pub(super) fn write(connection: &Connection, batch: &CompletedBatch) -> Result<(), DbError> {
    connection
        .prepare_cached(
            "INSERT INTO completed_batches (first, namespace, function, span, ended_at, calls, records)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
        )
        .and_then(|mut statement| {
            statement.execute((
                batch.first.0,
                batch.namespace.as_str(),
                batch.function.key(),
                batch.first.0 / BATCH_SPAN,
                batch.ended_at,
                batch.count,
                batch.records.get(),
            ))
        })
        .map(drop)
        .map_err(|error| internal("writing completed calls", &error))
}

fn parse(records: &str) -> Result<Vec<EndedCall>, DbError> {
    let parsed: Result<Vec<EndedCall>, _> = serde_json::from_str(records);
    parsed.map_err(|error| DbError::Internal { message: format!("reading completed calls: {error}") })
}

/// One call.
pub(super) fn find(connection: &Connection, namespace: &Namespace, num: CallNum) -> Result<Option<EndedCall>, DbError> {
    let failed = |error: rusqlite::Error| broken(&error);
    // Calls that ended together have numbers close to each other: its batch is among the nearest below.
    let mut statement = connection
        .prepare_cached(
            "SELECT records FROM completed_batches WHERE namespace = ?1 AND span = ?2 AND first <= ?3 ORDER BY first DESC",
        )
        .map_err(failed)?;
    let mut rows = statement.query((namespace.as_str(), num.0 / BATCH_SPAN, num.0)).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let records: String = row.get(0).map_err(failed)?;
        if let Some(call) = parse(&records)?.into_iter().find(|ended| ended.call.num == num) {
            return Ok(Some(call));
        }
    }
    Ok(None)
}

/// What a call was accepted with, as far as a replay needs it.
pub(super) fn spec(ended: EndedCall) -> CallSpec {
    let call = ended.call;
    CallSpec {
        num: call.num,
        namespace: ended.namespace,
        function: call.function,
        params: call.params,
        body: call.body,
        request: call.request,
        private_headers: Vec::new(),
        direct: ended.direct,
        timeout_ms: ended.timeout_ms,
        max_age_ms: 0,
        run_at: None,
        priority: 0,
        key: None,
        waited: true,
        replay_of: None,
        callback: None,
        retries: None,
        traceparent: call.traceparent,
        account: call.account,
    }
}

/// The newest calls below a number, at most so many: spans are walked from the newest until there are enough.
pub(super) fn list(
    connection: &Connection,
    (namespace, function): (&Namespace, Option<&str>),
    before: i64,
    limit: usize,
) -> Result<Vec<CallRecord>, DbError> {
    let mut found: Vec<CallRecord> = Vec::new();
    // The largest number stands for none.
    let mut span = before.saturating_sub(1) / BATCH_SPAN;
    while found.len() < limit {
        let Some((next, batches)) = newest_span(connection, (namespace, function), span).map_err(|e| broken(&e))?
        else {
            break;
        };
        for records in batches {
            found.extend(parse(&records)?.into_iter().map(|ended| ended.call).filter(|call| call.num.0 < before));
        }
        span = next - 1;
    }
    found.sort_by_key(|call| std::cmp::Reverse(call.num));
    found.truncate(limit);
    Ok(found)
}

/// The newest span up to this one that has batches, and all of those.
fn newest_span(
    connection: &Connection,
    (namespace, function): (&Namespace, Option<&str>),
    span: i64,
) -> rusqlite::Result<Option<(i64, Vec<String>)>> {
    let only = if function.is_some() { " AND function = ?3" } else { " AND ?3 IS NULL" };
    let newest: Option<i64> = connection
        .prepare_cached(&format!(
            "SELECT span FROM completed_batches WHERE namespace = ?1 AND span <= ?2{only} ORDER BY span DESC LIMIT 1"
        ))?
        .query_row((namespace.as_str(), span, function), |row| row.get(0))
        .optional()?;
    let Some(newest) = newest else { return Ok(None) };
    let mut statement = connection
        .prepare_cached(&format!("SELECT records FROM completed_batches WHERE namespace = ?1 AND span = ?2{only}"))?;
    let batches = statement.query_map((namespace.as_str(), newest, function), |row| row.get(0))?;
    Ok(Some((newest, batches.collect::<Result<_, _>>()?)))
}

/// Merges what both have, newest first; a call is in one of them.
pub(super) fn merge(rows: Vec<CallRecord>, completed: Vec<CallRecord>, limit: usize) -> Vec<CallRecord> {
    let mut calls = rows;
    calls.extend(completed);
    calls.sort_by_key(|call| std::cmp::Reverse(call.num));
    calls.truncate(limit);
    calls
}

/// Forgets batches whose newest call ended before an instant, so many at most; how many calls.
pub(super) fn forget(connection: &Connection, before: i64, most: u32) -> Result<u64, DbError> {
    connection
        .prepare_cached(
            "DELETE FROM completed_batches WHERE first IN
             (SELECT first FROM completed_batches WHERE ended_at < ?1 ORDER BY ended_at LIMIT ?2) RETURNING calls",
        )
        .and_then(|mut statement| statement.query_map((before, most), |row| row.get::<_, u64>(0))?.sum())
        .map_err(|error| broken(&error))
}
