//! Until when what a node holds is its own, by the clock that suspends do not stop.

use faena_domain::lease::LEASE_MS;
use faena_protocol::node::Lease;

/// How much earlier than its claim everything of it has ended.
const MARGIN_MS: u64 = 1000;

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
