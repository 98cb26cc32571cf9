//! Claims that hold for a while: what calls and builds share.
//!
//! A worker that claims raises the epoch and becomes the owner until the lease ends; it renews the lease meanwhile. Each of
//! its later messages names epoch and owner, and is stale under any other. A claim that was taken away has no owner.

use crate::{Epoch, Owner};

/// How long a claim holds without being renewed, in milliseconds.
pub const LEASE_MS: i64 = 30_000;

/// The claim that holds, or the last one that held.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// How often it was claimed, or taken away from who ran it.
    pub epoch: Epoch,
    /// The owner of the last claim; none after it was taken away.
    pub owner: Option<Owner>,
    /// When the claim ends, in db time.
    pub end: i64,
}

impl Lease {
    /// Without an owner, after so many claims.
    pub fn unclaimed(epoch: Epoch) -> Self {
        Self { epoch, owner: None, end: 0 }
    }

    /// Claimed at an instant.
    #[must_use]
    pub fn claimed(&self, owner: &Owner, now: i64) -> Self {
        Self { epoch: self.epoch.next(), owner: Some(owner.clone()), end: now + LEASE_MS }
    }

    /// Renewed at an instant.
    #[must_use]
    pub fn renewed(&self, now: i64) -> Self {
        Self { end: now + LEASE_MS, ..self.clone() }
    }

    /// Taken away: nothing that comes late from this claim finds it again.
    #[must_use]
    pub fn released(&self) -> Self {
        Self { owner: None, ..self.clone() }
    }

    /// Taken away from an owner that still works and has to stop.
    #[must_use]
    pub fn revoked(&self) -> Self {
        Self { epoch: self.epoch.next(), owner: None, ..self.clone() }
    }

    /// Whether this is the claim that holds, or held last.
    pub fn is_held_by(&self, epoch: Epoch, owner: &Owner) -> bool {
        self.epoch == epoch && self.owner.as_ref() == Some(owner)
    }

    /// Whether the claim has ended at an instant.
    pub fn is_over(&self, now: i64) -> bool {
        self.end < now
    }

    /// Whether it belongs to an earlier run of a worker, which is dead.
    pub fn is_of_predecessor(&self, successor: &Owner) -> bool {
        let is_predecessor =
            |owner: &Owner| owner.worker == successor.worker && owner.incarnation != successor.incarnation;
        self.owner.as_ref().is_some_and(is_predecessor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(worker: &str, incarnation: &str) -> Owner {
        Owner { worker: worker.to_owned(), incarnation: incarnation.to_owned() }
    }

    #[test]
    fn only_the_newest_claim_holds() {
        let first = Lease::unclaimed(Epoch(7)).claimed(&owner("a", "1"), 1000);
        assert!(first.is_held_by(Epoch(8), &owner("a", "1")) && !first.is_held_by(Epoch(8), &owner("a", "2")));
        assert!(!first.is_over(1000 + LEASE_MS) && first.is_over(1001 + LEASE_MS));
        assert!(!first.renewed(2000).is_over(1001 + LEASE_MS));
        let second = first.claimed(&owner("b", "1"), 2000);
        assert!(!second.is_held_by(Epoch(8), &owner("a", "1")) && second.is_held_by(Epoch(9), &owner("b", "1")));
        assert!(!second.released().is_held_by(Epoch(9), &owner("b", "1")));
        assert_eq!(second.revoked(), Lease { epoch: Epoch(10), owner: None, end: second.end });
    }

    #[test]
    fn a_later_run_of_a_worker_shows_the_earlier_one_to_be_dead() {
        let lease = Lease::unclaimed(Epoch(0)).claimed(&owner("a", "1"), 0);
        assert!(lease.is_of_predecessor(&owner("a", "2")));
        assert!(!lease.is_of_predecessor(&owner("a", "1")) && !lease.is_of_predecessor(&owner("b", "2")));
    }
}
