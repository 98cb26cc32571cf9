//! What an operator may set.

use faena_domain::units::{ByteSize, GB, MB};

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueBounds {
    /// Calls of one function.
    pub function_calls: u64,
    /// What these hold: params and bodies.
    pub function_bytes: ByteSize,
    /// Calls of all functions.
    pub calls: u64,
    /// What these hold.
    pub bytes: ByteSize,
}

impl Default for QueueBounds {
    fn default() -> Self {
        Self { function_calls: 10_000, function_bytes: ByteSize(64 * MB), calls: 100_000, bytes: ByteSize(640 * MB) }
    }
}

/// How long ended calls are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// How many at most.
    pub calls: u64,
    /// How long at most, in milliseconds.
    pub calls_for_ms: i64,
    /// How long dead letters are kept at most, in milliseconds.
    pub dead_letters_for_ms: i64,
    /// How long lines of the audit log are kept, in milliseconds.
    pub audit_for_ms: i64,
    /// What results and logs of ended calls hold at most; those of one function hold a quarter.
    pub bytes: ByteSize,
}

const DAY_MS: i64 = 24 * 3600 * 1000;

impl Default for Keep {
    fn default() -> Self {
        Self {
            calls: 1_000_000,
            calls_for_ms: 7 * DAY_MS,
            dead_letters_for_ms: 30 * DAY_MS,
            audit_for_ms: 365 * DAY_MS,
            bytes: ByteSize(8 * GB),
        }
    }
}

/// How a store is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// How much may wait.
    pub queue: QueueBounds,
    /// How long ended calls are kept.
    pub keep: Keep,
    /// What must stay free on the disk; as much is kept in a file that is given up when it is not.
    pub disk_reserve: ByteSize,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self { queue: QueueBounds::default(), keep: Keep::default(), disk_reserve: ByteSize(64 * MB) }
    }
}
