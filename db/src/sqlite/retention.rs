//! What has ended is kept for a while, and then forgotten; a little of it each second, so that nobody waits for it.

use faena_protocol::DbError;
use rusqlite::Connection;

use super::queue::numbers;
use super::requests::Moment;
use super::{blobs, internal, journal};

/// The most calls that are forgotten at once: more than any steady load ends in a second.
const BATCH: u32 = 2000;

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
    let old = "SELECT num FROM calls c WHERE ended_at < ?1 AND (ended_at < ?2 OR NOT EXISTS
         (SELECT 1 FROM dead_letters d WHERE d.num = c.num)) AND NOT EXISTS (SELECT 1 FROM keys k WHERE k.call = c.num)
         AND NOT EXISTS (SELECT 1 FROM callbacks b WHERE b.num = c.num AND b.status = 'WAITING')
         ORDER BY ended_at LIMIT ?3";
    let mut gone = numbers(connection, old, (before, letters_before.min(before), BATCH))?;
    let ended: u64 = connection
        .prepare_cached("SELECT ended FROM totals")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .map_err(broken)?;
    let journaled = journal::forget(connection, before, ended.saturating_sub(keep.calls))?;
    let ended = ended.saturating_sub(journaled);
    let beyond = u32::try_from(ended.saturating_sub(keep.calls)).unwrap_or(u32::MAX).min(BATCH);
    if beyond > 0 && gone.is_empty() {
        let oldest = "SELECT num FROM calls c WHERE ended_at IS NOT NULL AND NOT EXISTS
             (SELECT 1 FROM dead_letters d WHERE d.num = c.num) AND NOT EXISTS (SELECT 1 FROM keys k WHERE k.call = c.num)
             AND NOT EXISTS (SELECT 1 FROM callbacks b WHERE b.num = c.num AND b.status = 'WAITING')
             ORDER BY ended_at LIMIT ?1";
        gone = numbers(connection, oldest, [beyond])?;
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
