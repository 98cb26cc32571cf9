//! Db time: never backwards, advanced by `CLOCK_BOOTTIME`, carried across restarts.

use std::fmt;
use std::sync::Arc;

use rustix::time::{ClockId, clock_gettime};

const DAY_MS: i64 = 24 * 3600 * 1000;
/// The most that wall time may advance db time across a restart: one day.
const MAX_LEAP_MS: i64 = DAY_MS;
/// A step of wall time that is told: a minute.
const STEP_MS: i64 = 60_000;

/// The day (UTC, since 1970) of a wall time in Unix milliseconds.
pub(crate) fn day(wall: i64) -> i64 {
    wall.div_euclid(DAY_MS)
}

/// Where time comes from; a test has its own.
pub trait TimeSource: Send + Sync + fmt::Debug {
    /// Wall time, in Unix milliseconds; people may set it.
    fn wall_ms(&self) -> i64;
    /// Time since some instant, suspends included, in milliseconds; nobody can set it.
    fn boot_ms(&self) -> i64;
}

/// The kernel's clocks.
#[derive(Clone, Copy, Debug)]
pub struct KernelTime;

fn read(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}

impl TimeSource for KernelTime {
    fn wall_ms(&self) -> i64 {
        read(ClockId::Realtime)
    }

    fn boot_ms(&self) -> i64 {
        read(ClockId::Boottime)
    }
}

/// Where db time stood when the process began, and how far it is since.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    source: Arc<dyn TimeSource>,
    base_ms: i64,
    boot_ms: i64,
    wall_ms: i64,
}

/// Db time at a start: wall time, but never before `last` and never more than a day after it.
fn resume(last: Option<i64>, wall: i64) -> i64 {
    last.map_or(wall, |last| wall.clamp(last, last.saturating_add(MAX_LEAP_MS)))
}

impl Clock {
    /// Continues where the database last stood.
    pub(crate) fn start(last: Option<i64>, source: Arc<dyn TimeSource>) -> Self {
        let (wall_ms, boot_ms) = (source.wall_ms(), source.boot_ms());
        let base_ms = resume(last, wall_ms);
        if base_ms != wall_ms {
            tracing::warn!(
                wall_ms,
                db_ms = base_ms,
                "wall time is not what it was when the database last ran; db time goes on from there"
            );
        }
        Self { base_ms, boot_ms, wall_ms, source }
    }

    /// Db time in Unix milliseconds.
    pub(crate) fn now(&self) -> i64 {
        self.base_ms + (self.source.boot_ms() - self.boot_ms)
    }

    /// Wall time in Unix milliseconds.
    pub(crate) fn wall(&self) -> i64 {
        self.source.wall_ms()
    }

    /// How far wall time has been set since the start, where that is more than a minute; positive is forward.
    pub(crate) fn wall_step_ms(&self) -> Option<i64> {
        let elapsed = self.source.boot_ms() - self.boot_ms;
        let step = self.source.wall_ms() - self.wall_ms - elapsed;
        (step.abs() > STEP_MS).then_some(step)
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
