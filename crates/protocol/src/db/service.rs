//! How the service is, and what it does by itself.

use serde::{Deserialize, Serialize};

use super::requests;

requests! {
    /// Asks whether the service lives, and how.
    Read Ping = "ping" by [Api] -> Health {}
    /// Ends what has run out: leases, ages. The service asks itself this once a second.
    Write Reap = "reap" by [Db] -> Reaped {}
}

/// How the service is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// How far wall time was set since the service began, where that is more than a minute; db time did not follow.
    pub clock_step_ms: Option<i64>,
    /// Whether the disk is nearly full, and new work refused.
    pub disk_low: bool,
}

/// How much a reaping ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reaped {
    /// Calls whose lease ended: they are delivered again, a few times.
    pub lost: u64,
    /// Calls whose age ended: EXPIRED.
    pub expired: u64,
    /// Builds whose lease ended: PENDING again.
    pub builds: u64,
    /// Calls that were kept long enough.
    pub forgotten: u64,
}
