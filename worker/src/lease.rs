//! Until when what a node holds is its own, by the clock that suspends do not stop.

use std::time::Duration;

use faena_domain::queue::LEASE_MS;
use faena_protocol::node::Lease;
use rustix::time::{ClockId, clock_gettime};

/// How much earlier than its claim everything of it has ended.
const MARGIN_MS: u64 = 1000;

/// `CLOCK_BOOTTIME` in milliseconds.
pub(crate) fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let now = Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// What tells this boot of this machine from every other (random(4)).
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// When everything of a claim has to have ended that was granted, or renewed, no earlier than at this instant.
pub(crate) fn end_of(granted_ms: u64) -> u64 {
    granted_ms + LEASE_MS.unsigned_abs() - MARGIN_MS
}

/// The same for a claim that came with its lease, where its clock is ours.
pub(crate) fn first_end(lease: &Lease, boot: &str) -> Option<u64> {
    (lease.boot == boot && !boot.is_empty()).then(|| lease.until_ms.saturating_sub(MARGIN_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machines_clock_says_nothing() {
        let lease = Lease { boot: "one".into(), until_ms: 31_000 };
        assert_eq!(first_end(&lease, "one"), Some(30_000));
        assert_eq!(first_end(&lease, "two"), None);
        assert_eq!(end_of(1000), 30_000);
    }
}
