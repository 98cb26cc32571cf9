//! What has ended is kept for a while, and then forgotten; a little of it each second, so that nobody waits for it.

use faena_protocol::DbError;
use rusqlite::Connection;

use super::queue::numbers;
use super::requests::Moment;
use super::{blobs, internal, journal};

/// The most calls that are forgotten at once: more than any steady load ends in a second.
const BATCH: u32 = 2000;

/// A call that is no dead letter.
const NO_LETTER: &str = "NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.num = c.num)";
/// A call that no key stands for, and of whose end nobody is still to be told.
const UNNEEDED: &str = "NOT EXISTS (SELECT 1 FROM keys k WHERE k.call = c.num)
     AND NOT EXISTS (SELECT 1 FROM callbacks b WHERE b.num = c.num AND b.status = 'WAITING')";

/// When the youngest of so many calls ended that ended first, whether they have rows or lie in segments.
fn oldest(connection: &Connection, too_many: u64) -> rusqlite::Result<Option<i64>> {
    if too_many == 0 {
        return Ok(None);
    }
    connection
        .prepare_cached(&format!(
            "SELECT max(ended_at) FROM (SELECT ended_at, sum(calls) OVER (ORDER BY ended_at ROWS UNBOUNDED PRECEDING) AS so_far FROM (
                 SELECT * FROM (SELECT ended_at, calls FROM journal ORDER BY ended_at LIMIT ?2)
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
pub(super) fn forget(connection: &Connection, moment: &Moment<'_>) -> Result<u64, DbError> {
    let broken = |error| internal("forgetting what is old", &error);
    connection
        .prepare_cached(
            "DELETE FROM keys WHERE expires_at <= ?1
             AND NOT EXISTS (SELECT 1 FROM calls c WHERE c.num = keys.call AND c.ended_at IS NULL)",
        )
        .and_then(|mut statement| statement.execute([moment.now]))
        .map_err(broken)?;
    let keep = &moment.settings.keep;
    let before = moment.now.saturating_sub(keep.calls_for_ms);
    let letters_before = moment.now.saturating_sub(keep.dead_letters_for_ms);
    let old = format!(
        "SELECT num FROM calls c WHERE ended_at < ?1 AND (ended_at < ?2 OR {NO_LETTER}) AND {UNNEEDED}
         ORDER BY ended_at LIMIT ?3"
    );
    let mut gone = numbers(connection, &old, (before, letters_before.min(before), BATCH))?;
    let mut journaled = journal::forget(connection, before, BATCH)?;
    if gone.is_empty() && journaled == 0 {
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
            gone = numbers(connection, &young, (oldest + 1, most))?;
            journaled = journal::forget(connection, oldest + 1, BATCH)?;
        }
    }
    for num in &gone {
        let delete = || -> rusqlite::Result<()> {
            blobs::release_call(connection, *num)?;
            connection.prepare_cached("DELETE FROM calls WHERE num = ?1")?.execute([num.0]).map(drop)
        };
        delete().map_err(broken)?;
    }
    Ok(gone.len() as u64 + journaled)
}
