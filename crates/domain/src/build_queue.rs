//! What may happen to a build, and what follows from it.
//!
//! ```text
//!  upload ──▶ PENDING ── claim: epoch + 1, owner, lease ──▶ BUILDING ──▶ READY
//!               ▲  ▲                                         │ │ └────▶ ERROR ─┐
//!               │  ├── give back: nothing is spent ──────────┘ │              │
//!               │  └── redeliver: the platform failed it, at most 5 times      │
//!               └──────────────────── try again ──────────────────────────────┘
//! ```

use crate::build::MAX_REDELIVERIES;
use crate::lease::Lease;
use crate::{Epoch, ErrorKind, FunctionStatus, Owner};

/// A build, as far as its queue is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildEntry {
    /// How it stands.
    pub status: FunctionStatus,
    /// Who builds it.
    pub lease: Lease,
    /// Failures of the platform.
    pub redeliveries: u32,
}

/// What happens to a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildEvent {
    /// A worker gets it.
    Claim {
        /// The worker.
        owner: Owner,
    },
    /// Who claimed it says something.
    Of {
        /// The claim.
        epoch: Epoch,
        /// Who says so.
        owner: Owner,
        /// What.
        said: Said,
    },
    /// Its worker is gone, or its lease is over.
    Lost,
    /// A client asks for another build.
    Again,
}

/// What the owner of a claim says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It goes on.
    Renew,
    /// It stops before the end.
    GiveBack,
    /// The artifact is there.
    Built,
    /// There will be none.
    Failed(ErrorKind),
}

/// Why nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The claim has ended, or another epoch or owner holds it.
    #[error("the claim is over: another epoch or owner holds it")]
    Stale,
    /// It is so already, by the same claim.
    #[error("it is so already")]
    Already,
    /// It cannot happen to a build as it stands.
    #[error("nothing is due")]
    NotDue,
}

/// Takes one step; `now` is db time.
///
/// # Errors
/// [`Refused`]; nothing has changed then.
pub fn step(entry: &BuildEntry, event: &BuildEvent, now: i64) -> Result<BuildEntry, Refused> {
    match (event, entry.status) {
        (BuildEvent::Claim { owner }, FunctionStatus::Pending) => {
            let lease = entry.lease.claimed(owner, now);
            Ok(BuildEntry { status: FunctionStatus::Building, lease, ..entry.clone() })
        }
        (BuildEvent::Of { epoch, owner, said }, status) => match (entry.lease.is_held_by(*epoch, owner), status) {
            (true, FunctionStatus::Building) => Ok(said_by_owner(entry, *said, now)),
            (true, _) => Err(Refused::Already),
            (false, _) => Err(Refused::Stale),
        },
        (BuildEvent::Lost, FunctionStatus::Building) => Ok(redelivered(entry)),
        (BuildEvent::Again, FunctionStatus::Error) => {
            Ok(BuildEntry { status: FunctionStatus::Pending, lease: entry.lease.released(), redeliveries: 0 })
        }
        _ => Err(Refused::NotDue),
    }
}

fn said_by_owner(entry: &BuildEntry, said: Said, now: i64) -> BuildEntry {
    let with = |status| BuildEntry { status, ..entry.clone() };
    match said {
        Said::Renew => BuildEntry { lease: entry.lease.renewed(now), ..entry.clone() },
        // Its owner stays known: it may say so again.
        Said::GiveBack => with(FunctionStatus::Pending),
        Said::Built => with(FunctionStatus::Ready),
        // The platform's own failure is no verdict on the version.
        Said::Failed(ErrorKind::Infrastructure) => redelivered(entry),
        Said::Failed(_) => with(FunctionStatus::Error),
    }
}

/// The platform failed it: it is built again, unless that was often enough.
fn redelivered(entry: &BuildEntry) -> BuildEntry {
    let redeliveries = entry.redeliveries + 1;
    let status = if redeliveries > MAX_REDELIVERIES { FunctionStatus::Error } else { FunctionStatus::Pending };
    BuildEntry { status, lease: entry.lease.released(), redeliveries: redeliveries.min(MAX_REDELIVERIES) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(worker: &str) -> Owner {
        Owner { worker: worker.to_owned(), incarnation: "1".to_owned() }
    }

    fn building() -> BuildEntry {
        let pending =
            BuildEntry { status: FunctionStatus::Pending, lease: Lease::unclaimed(Epoch(4)), redeliveries: 0 };
        step(&pending, &BuildEvent::Claim { owner: owner("a") }, 1000).expect("a claim")
    }

    fn said(entry: &BuildEntry, worker: &str, said: Said) -> Result<BuildEntry, Refused> {
        step(entry, &BuildEvent::Of { epoch: Epoch(5), owner: owner(worker), said }, 2000)
    }

    #[test]
    fn only_the_owner_of_the_claim_ends_a_build_and_once() {
        let build = building();
        assert_eq!(said(&build, "b", Said::Built), Err(Refused::Stale));
        let ready = said(&build, "a", Said::Built).expect("an end");
        assert_eq!(ready.status, FunctionStatus::Ready);
        assert_eq!(said(&ready, "a", Said::Built), Err(Refused::Already));
        assert_eq!(step(&ready, &BuildEvent::Claim { owner: owner("b") }, 0), Err(Refused::NotDue));
        assert_eq!(step(&ready, &BuildEvent::Lost, 0), Err(Refused::NotDue));
    }

    #[test]
    fn a_build_that_is_given_back_or_lost_is_built_again() {
        let back = said(&building(), "a", Said::GiveBack).expect("given back");
        assert_eq!((back.status, back.redeliveries), (FunctionStatus::Pending, 0));
        assert_eq!(said(&back, "a", Said::GiveBack), Err(Refused::Already));
        let lost = step(&building(), &BuildEvent::Lost, 0).expect("lost");
        assert_eq!((lost.status, lost.redeliveries), (FunctionStatus::Pending, 1));
        assert_eq!(said(&lost, "a", Said::Built), Err(Refused::Stale));
    }

    #[test]
    fn the_platform_fails_a_build_only_so_often() {
        let mut build = building();
        for count in 1..=MAX_REDELIVERIES {
            build = said(&build, "a", Said::Failed(ErrorKind::Infrastructure)).expect("built again");
            assert_eq!((build.status, build.redeliveries), (FunctionStatus::Pending, count));
            build.lease.epoch = Epoch(4);
            build = step(&build, &BuildEvent::Claim { owner: owner("a") }, 0).expect("a claim");
        }
        let given_up = step(&build, &BuildEvent::Lost, 0).expect("lost");
        assert_eq!(given_up.status, FunctionStatus::Error);
        let again = step(&given_up, &BuildEvent::Again, 0).expect("tried again");
        assert_eq!((again.status, again.redeliveries), (FunctionStatus::Pending, 0));
    }

    #[test]
    fn a_failure_of_the_build_itself_is_its_end() {
        assert_eq!(
            said(&building(), "a", Said::Failed(ErrorKind::Build)).expect("an end").status,
            FunctionStatus::Error
        );
        assert_eq!(said(&building(), "a", Said::Renew).expect("renewed").lease.end, 2000 + crate::lease::LEASE_MS);
    }
}
