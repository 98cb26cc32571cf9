//! Calls as they lie in their table.

use faena_domain::{CallError, CallNum, EngineKind, Payload, Timestamp, Version};
use faena_protocol::DbError;
use faena_protocol::records::{CallRecord, CallSpec};
use rusqlite::{Connection, Row};

use super::internal;
use super::rows::{Json, Text};

/// Results and logs of a call that hold less than this are not counted: the number of calls bounds them.
pub(super) const COUNTED: u64 = 1024;

/// What a [`record`] is read from.
pub(super) const COLUMNS: &str = "num, spec, version, status, result, error, logs, engine, attempts, created_at, ended_at, replay_of, run_at, head,
     (SELECT json_object('status', status, 'tries', tries, 'error', error) FROM callbacks WHERE callbacks.num = calls.num),
     (SELECT replayed_as FROM dead_letters WHERE dead_letters.num = calls.num), streamed";

/// A call, read from [`COLUMNS`].
pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<CallRecord> {
    let Json(spec): Json<CallSpec> = row.get(1)?;
    let (Text(status), Json(result), Json(logs), Json(attempts)) = (row.get(3)?, row.get(4)?, row.get(6)?, row.get(8)?);
    Ok(CallRecord {
        num: CallNum(row.get(0)?),
        function: spec.function,
        version: Version(row.get(2)?),
        params: spec.params,
        body: spec.body,
        request: spec.request,
        status,
        result,
        head: row.get::<_, Option<Json<_>>>(13)?.map(|json| json.0),
        streamed: row.get::<_, Option<Json<_>>>(16)?.map(|json| json.0),
        error: row.get::<_, Option<Json<CallError>>>(5)?.map(|json| json.0),
        logs,
        engine: row.get::<_, Option<Text<EngineKind>>>(7)?.map(|text| text.0),
        attempts,
        created_at: row.get(9)?,
        ended_at: row.get(10)?,
        traceparent: spec.traceparent,
        account: spec.account,
        replay_of: row.get::<_, Option<i64>>(11)?.map(CallNum),
        run_at: row.get::<_, Option<i64>>(12)?.map(Timestamp),
        callback: row.get::<_, Option<Json<_>>>(14)?.map(|json| json.0),
        replayed_as: row.get::<_, Option<i64>>(15)?.map(CallNum),
    })
}

/// The column `kept_bytes` of a call with this result and log.
pub(super) fn kept_bytes(result: &Payload, logs: &Payload) -> u64 {
    let bytes = result.len() + logs.len();
    if bytes < COUNTED { 0 } else { bytes }
}

/// The numbers that a query finds.
pub(super) fn numbers(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<CallNum>, DbError> {
    let find = || -> rusqlite::Result<Vec<CallNum>> {
        connection.prepare_cached(sql)?.query_map(params, |row| row.get(0).map(CallNum))?.collect()
    };
    find().map_err(|error| internal("looking for calls", &error))
}
