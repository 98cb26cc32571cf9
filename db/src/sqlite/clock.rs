//! Db time: never backwards, advanced by `CLOCK_BOOTTIME`, carried across restarts.

use rusqlite::{Connection, OptionalExtension};
use rustix::time::{ClockId, clock_gettime};

/// The most that wall time may advance db time across a restart: one day.
const MAX_LEAP_MS: i64 = 24 * 3600 * 1000;
const KEY: &str = "clock";

/// Milliseconds of a clock of the kernel.
fn read(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}

/// Where db time stood when the process began, and how far it is since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    base_ms: i64,
    boot_ms: i64,
}

/// Db time at a start: wall time, but never before `last` and never more than a day after it.
fn resume(last: Option<i64>, wall: i64) -> i64 {
    last.map_or(wall, |last| wall.clamp(last, last.saturating_add(MAX_LEAP_MS)))
}

impl Clock {
    /// Continues where the database last stood.
    pub(crate) fn start(connection: &Connection) -> rusqlite::Result<Self> {
        let last = connection.query_row("SELECT value FROM meta WHERE key = ?1", [KEY], |row| row.get(0)).optional()?;
        Ok(Self { base_ms: resume(last, read(ClockId::Realtime)), boot_ms: read(ClockId::Boottime) })
    }

    /// Db time in Unix milliseconds.
    pub(crate) fn now(&self) -> i64 {
        self.base_ms + (read(ClockId::Boottime) - self.boot_ms)
    }

    /// Keeps it for the next start.
    pub(crate) fn keep(connection: &Connection, now: i64) -> rusqlite::Result<()> {
        connection
            .prepare_cached("INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2")?
            .execute((KEY, now))
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_does_not_take_time_back() {
        assert_eq!(resume(Some(5000), 1000), 5000);
    }

    #[test]
    fn a_clock_that_was_set_forward_leaps_a_day_at_most() {
        assert_eq!(resume(Some(5000), i64::MAX), 5000 + MAX_LEAP_MS);
        assert_eq!(resume(Some(5000), 6000), 6000);
        assert_eq!(resume(None, 7), 7);
    }
}
