//! What has ended is kept for a while, and then forgotten; a little of it each second, so that nobody waits for it.

use faena_domain::log::StoredLog;
use faena_domain::{CallNum, Payload, Timestamp};
use faena_protocol::DbError;
use rusqlite::Connection;

use super::call_rows::{self, COUNTED};
use super::requests::RequestContext;
use super::reserve::Disk;
use super::rows::Json;
use super::{blobs, completed, internal};

/// The part of the bytes of all functions that one function may hold: a quarter.
const PART: u64 = 4;
/// Functions that are judged by their bytes at once.
const FUNCTIONS: u32 = 8;
/// The most calls whose logs or results are forgotten at once.
const HEAVY: u32 = 500;

/// The most calls that are forgotten at once: more than any steady load ends in a second.
const BATCH: u32 = 2000;

/// A call that is no dead letter.
const NO_LETTER: &str = "NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.num = c.num)";
/// A call that no key stands for, and of whose end nobody is still to be told.
const UNNEEDED: &str = "NOT EXISTS (SELECT 1 FROM keys k WHERE k.call = c.num)
     AND NOT EXISTS (SELECT 1 FROM callbacks b WHERE b.num = c.num AND b.status = 'WAITING')";

/// When the youngest of so many calls ended that ended first, whether they have rows or lie in batches.
fn oldest(connection: &Connection, too_many: u64) -> rusqlite::Result<Option<i64>> {
    if too_many == 0 {
        return Ok(None);
    }
    connection
        .prepare_cached(&format!(
            "SELECT max(ended_at) FROM (SELECT ended_at, sum(calls) OVER (ORDER BY ended_at ROWS UNBOUNDED PRECEDING) AS so_far FROM (
                 SELECT * FROM (SELECT ended_at, calls FROM completed_batches ORDER BY ended_at LIMIT ?2)
                 UNION ALL
                 SELECT * FROM (SELECT ended_at, 1 AS calls FROM calls c WHERE ended_at IS NOT NULL AND {NO_LETTER} AND {UNNEEDED}
                     ORDER BY ended_at LIMIT ?2)
                 ORDER BY ended_at LIMIT ?2)) WHERE so_far <= ?1"
        ))?
        .query_row((i64::try_from(too_many).unwrap_or(i64::MAX), BATCH), |row| row.get(0))
}

/// Forgets keys whose life is over, and calls that were kept long enough or are too many; how many calls.
///
/// A call stays while a key stands for it or somebody is still to be told of its end, and a dead letter longer than others.
pub(super) fn forget(connection: &Connection, context: &RequestContext<'_>) -> Result<u64, DbError> {
    let broken = |error| internal("forgetting what is old", &error);
    connection
        .prepare_cached(
            "DELETE FROM keys WHERE expires_at <= ?1
             AND NOT EXISTS (SELECT 1 FROM calls c WHERE c.num = keys.call AND c.ended_at IS NULL)",
        )
        .and_then(|mut statement| statement.execute([context.now]))
        .map_err(broken)?;
    super::credentials::forget(connection, context.wall)
        .and_then(|()| {
            super::audit::forget(connection, context.wall.saturating_sub(context.settings.keep.audit_for_ms))
        })
        .map_err(broken)?;
    let keep = &context.settings.keep;
    let before = context.now.saturating_sub(keep.calls_for_ms);
    let letters_before = context.now.saturating_sub(keep.dead_letters_for_ms);
    let old = format!(
        "SELECT num FROM calls c WHERE ended_at < ?1 AND (ended_at < ?2 OR {NO_LETTER}) AND {UNNEEDED}
         ORDER BY ended_at LIMIT ?3"
    );
    let mut gone = call_rows::numbers(connection, &old, (before, letters_before.min(before), BATCH))?;
    let mut batched = completed::forget(connection, before, BATCH)?;
    if gone.is_empty() && batched == 0 {
        let ended: u64 = connection
            .prepare_cached("SELECT ended FROM totals")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(broken)?;
        let too_many = ended.saturating_sub(keep.calls);
        if let Some(oldest) = oldest(connection, too_many).map_err(broken)? {
            let most = u32::try_from(too_many).unwrap_or(BATCH).min(BATCH);
            let young = format!(
                "SELECT num FROM calls c WHERE ended_at < ?1 AND {NO_LETTER} AND {UNNEEDED} ORDER BY ended_at LIMIT ?2"
            );
            gone = call_rows::numbers(connection, &young, (oldest + 1, most))?;
            batched = completed::forget(connection, oldest + 1, BATCH)?;
        }
    }
    for num in &gone {
        delete(connection, *num).map_err(broken)?;
    }
    let heavy = forget_bytes(connection, context).map_err(broken)?;
    Ok(gone.len() as u64 + batched + heavy)
}

fn delete(connection: &Connection, num: CallNum) -> rusqlite::Result<()> {
    blobs::release_call(connection, num)?;
    connection.prepare_cached("DELETE FROM calls WHERE num = ?1")?.execute([num.0]).map(drop)
}

/// A function that holds too much, and how much of that has to go.
struct Heavy {
    namespace: String,
    function: String,
    excess: u64,
    /// It is within its own part, and gives up what all functions hold too much.
    is_for_all: bool,
}

/// The functions that hold more than their part; where all together hold too much, or the disk is tight, the heaviest.
fn heaviest(connection: &Connection, context: &RequestContext<'_>) -> rusqlite::Result<Vec<Heavy>> {
    let bound = context.settings.keep.bytes.0;
    let all: u64 =
        connection.prepare_cached("SELECT coalesce(sum(bytes), 0) FROM kept")?.query_row([], |row| row.get(0))?;
    let is_tight = context.disk != Disk::Roomy;
    let part = if all > bound || is_tight { 0 } else { bound / PART };
    let mut statement = connection
        .prepare_cached("SELECT namespace, function, bytes FROM kept WHERE bytes > ?1 ORDER BY bytes DESC LIMIT ?2")?;
    let rows = statement.query_map((part, FUNCTIONS), |row| {
        let bytes: u64 = row.get(2)?;
        let over = bytes.saturating_sub(bound / PART).max(all.saturating_sub(bound).min(bytes));
        // A tight disk takes a tenth of what the heaviest hold, again and again until it is tight no more.
        let excess = if is_tight { over.max(bytes / 10) } else { over };
        Ok(Heavy { namespace: row.get(0)?, function: row.get(1)?, excess, is_for_all: bytes <= bound / PART })
    })?;
    rows.collect()
}

/// Forgets the oldest logs of functions that hold too much, and where that is not enough their oldest calls; how many calls.
fn forget_bytes(connection: &Connection, context: &RequestContext<'_>) -> rusqlite::Result<u64> {
    let (mut gone, is_tight) = (0, context.disk != Disk::Roomy);
    for heavy in heaviest(connection, context)? {
        let (freed, are_all) = forget_logs(connection, &heavy, context.now)?;
        // Calls go once there are no more logs. On a tight disk they stay, and the next function's logs go.
        if freed < heavy.excess && are_all && !is_tight {
            gone += forget_calls(connection, &heavy, heavy.excess - freed)?;
        }
        // What all functions hold too much together is the heaviest one's to give up; more is judged in a second.
        if heavy.is_for_all && (freed > 0 || !is_tight) {
            break;
        }
    }
    Ok(gone)
}

/// Forgets the oldest logs of a function that are worth it; how many bytes that frees, and whether none are left.
fn forget_logs(connection: &Connection, heavy: &Heavy, now: i64) -> rusqlite::Result<(u64, bool)> {
    let mut remark = StoredLog::new(COUNTED);
    remark.remark(Timestamp(now), "[this log was forgotten: the function's logs and results held too much]");
    let remark = Payload::Text(remark.into_text());
    let mut statement = connection.prepare_cached(
        "SELECT num, result, logs FROM calls INDEXED BY calls_kept WHERE namespace = ?1 AND function = ?2 AND kept_bytes > 0
         AND log_bytes >= ?4 ORDER BY num LIMIT ?3",
    )?;
    let rows = statement.query_map((&heavy.namespace, &heavy.function, HEAVY, COUNTED), |row| {
        let (Json(result), Json(logs)): (Json<Payload>, Json<Payload>) = (row.get(1)?, row.get(2)?);
        Ok((CallNum(row.get(0)?), result, logs))
    })?;
    let oldest: Vec<(CallNum, Payload, Payload)> = rows.collect::<Result<_, _>>()?;
    let (mut freed, are_all) = (0, oldest.len() < HEAVY as usize);
    for (num, result, logs) in oldest {
        if freed >= heavy.excess {
            return Ok((freed, false));
        }
        blobs::release_log(connection, (&heavy.namespace, num), (&logs, &result), now)?;
        connection
            .prepare_cached("UPDATE calls SET logs = ?2, kept_bytes = ?3, log_bytes = 0 WHERE num = ?1")?
            .execute((num.0, Json(&remark), call_rows::kept_bytes(&result, &remark)))?;
        freed += logs.len();
    }
    Ok((freed, are_all))
}

/// Forgets the oldest calls of a function, those with rows and those in batches alike; how many calls.
fn forget_calls(connection: &Connection, heavy: &Heavy, excess: u64) -> rusqlite::Result<u64> {
    let key = (&heavy.namespace, &heavy.function);
    let mut statement = connection.prepare_cached(&format!(
        "SELECT num, kept_bytes, 1, 0 FROM (SELECT num, kept_bytes FROM calls c INDEXED BY calls_kept
             WHERE namespace = ?1 AND function = ?2 AND kept_bytes > 0 AND {NO_LETTER} AND {UNNEEDED} ORDER BY num LIMIT ?3)
         UNION ALL
         SELECT first, length(records), calls, 1 FROM (SELECT first, records, calls FROM completed_batches INDEXED BY completed_of_function
             WHERE namespace = ?1 AND function = ?2 ORDER BY span LIMIT ?3)
         ORDER BY 1"
    ))?;
    let rows = statement.query_map((key.0, key.1, HEAVY), |row| {
        Ok((CallNum(row.get(0)?), row.get::<_, u64>(1)?, row.get::<_, u64>(2)?, row.get::<_, bool>(3)?))
    })?;
    let oldest: Vec<(CallNum, u64, u64, bool)> = rows.collect::<Result<_, _>>()?;
    let (mut freed, mut gone) = (0, 0);
    for (num, bytes, calls, is_batch) in oldest {
        if freed >= excess {
            break;
        }
        if is_batch {
            connection.prepare_cached("DELETE FROM completed_batches WHERE first = ?1")?.execute([num.0])?;
        } else {
            delete(connection, num)?;
        }
        freed += bytes;
        gone += calls;
    }
    Ok(gone)
}
