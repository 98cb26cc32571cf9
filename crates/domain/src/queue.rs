//! What may happen to a call that has a row, and what follows from it.
//!
//! [`step`] is the whole of it: no clock, no socket, no disk. The database loads an [`Entry`], takes one step, and
//! writes the entry and the effects back in one transaction; a simulation drives the same function through histories
//! that no test could wait for (`tests/simulation.rs`).
//!
//! ```text
//!            ready, due
//!  accept ──▶ PENDING ─────── claim: epoch + 1, owner, lease ───────▶ RUNNING ── started ─┐
//!              │  ▲  ▲                                                 │ │ │ ▲            │
//!              │  │  ├── give back: nothing is spent ──────────────────┘ │ │ └────────────┘
//!              │  │  ├── retry: the function failed, budget and age left ┘ │
//!              │  │  └── redeliver: the platform failed it, at most 5 ─────┤
//!              │  │                                                        │
//!              │  └── (waits for its pause)                                ├──▶ DONE
//!              ├──▶ EXPIRED  its age is over                               ├──▶ FAILED, TIMEOUT, EXPIRED
//!              ├──▶ FAILED   its version cannot be built                   │
//!              └──▶ CANCELLED ◀── cancel: epoch + 1, its worker stops it ──┘
//! ```
//!
//! A terminal entry never changes. Every event of a worker names the epoch and the owner of its claim; under any other
//! it is [`Refused::Stale`]. What ends FAILED, TIMEOUT or EXPIRED and was promised with 202 is a dead letter, once.

use serde::{Deserialize, Serialize};

use crate::lease::Lease;
use crate::retry::{is_retried, pause_ms};
use crate::{CallStatus, Epoch, ErrorKind, Owner};

/// How long a call may take as a whole where its client says nothing, in milliseconds: six hours.
pub const DEFAULT_AGE_MS: u64 = 6 * 3600 * 1000;
/// How often the platform's own failures are made good by another delivery.
pub const MAX_REDELIVERIES: u32 = 5;

/// A call, as far as the queue is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// How it stands.
    pub status: CallStatus,
    /// Who holds the claim, or ended it.
    pub lease: Lease,
    /// Whether a process is known to have begun under this claim.
    pub started: bool,
    /// Deliveries that may have begun, this one included: `FAENA_ATTEMPT`.
    pub deliveries: u32,
    /// Failures of the function.
    pub failures: u32,
    /// Failures of the platform after a start.
    pub redeliveries: u32,
    /// How many failures of the function are tried again.
    pub retries: u32,
    /// It is not claimed before this, in db time.
    pub not_before: i64,
    /// When its age is over, in db time.
    pub expires_at: i64,
    /// Whether its version can run.
    pub ready: bool,
    /// Whether somebody still waits for the answer: then a failure is told, and is no dead letter.
    pub waited: bool,
}

impl Entry {
    /// A call that was just accepted.
    pub fn accepted(retries: u32, not_before: i64, expires_at: i64, ready: bool, waited: bool) -> Self {
        Self {
            status: CallStatus::Pending,
            lease: Lease::unclaimed(Epoch(0)),
            started: false,
            deliveries: 0,
            failures: 0,
            redeliveries: 0,
            retries,
            not_before,
            expires_at,
            ready,
            waited,
        }
    }

    fn is_dead_letter(&self) -> bool {
        !self.waited && matches!(self.status, CallStatus::Failed | CallStatus::Timeout | CallStatus::Expired)
    }
}

/// How a worker says that an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct End {
    /// DONE, FAILED, TIMEOUT or EXPIRED.
    pub status: CallStatus,
    /// What kind of thing went wrong.
    pub kind: Option<ErrorKind>,
    /// Whether a process had begun.
    pub started: bool,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A worker gets it.
    Claim {
        /// The worker.
        owner: Owner,
    },
    /// Its process runs.
    Start {
        /// The claim.
        epoch: Epoch,
        /// Who says so.
        owner: Owner,
    },
    /// Its worker still has it.
    Renew {
        /// The claim.
        epoch: Epoch,
        /// Who says so.
        owner: Owner,
    },
    /// Its attempt has ended.
    Finish {
        /// The claim.
        epoch: Epoch,
        /// Who says so.
        owner: Owner,
        /// How.
        end: End,
    },
    /// Its worker stops before it could end.
    GiveBack {
        /// The claim.
        epoch: Epoch,
        /// Who says so.
        owner: Owner,
    },
    /// A later run of its worker has shown this one to be dead.
    OwnerDied {
        /// The worker as it is now.
        successor: Owner,
    },
    /// Time has passed: is its lease over, or its age?
    Tick,
    /// The database was away, and so nobody could renew.
    Restarted,
    /// Its version can run.
    Built,
    /// Its version cannot be built.
    BuildFailed,
    /// Nobody wants it any longer.
    Cancel,
    /// Its client was told that it goes on: 202.
    Acknowledged,
}

/// Chance and time, handed in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct At {
    /// Db time, in Unix milliseconds.
    pub now: i64,
    /// Drawn from \[0, 1) for pauses.
    pub uniform: f64,
}

/// What follows from a step, beside the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The end is written: result, error, time.
    End,
    /// It goes to the dead letters.
    DeadLetter,
    /// The delivery under this epoch is put on record as lost.
    Lost(Epoch),
    /// The worker that runs it under this epoch has to stop it.
    Kill(Epoch),
}

/// Why nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// Another epoch or owner holds it, or nobody does.
    #[error("the claim is over: another epoch or owner holds it")]
    Stale,
    /// It has ended; a terminal status never changes.
    #[error("the call has ended {}", .0.as_str())]
    Ended(CallStatus),
    /// It was written already, by the same claim.
    #[error("it is so already")]
    Already(CallStatus),
    /// It cannot be claimed now, or nothing is due.
    #[error("nothing is due")]
    NotDue,
}

/// The entry after a step, and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stepped {
    /// The entry as it is now.
    pub entry: Entry,
    /// What has to be done in the same transaction, in this order.
    pub effects: Vec<Effect>,
}

/// Takes one step.
///
/// # Errors
/// [`Refused`]; nothing has changed then.
pub fn step(entry: &Entry, event: &Event, at: &At) -> Result<Stepped, Refused> {
    match event {
        Event::Claim { owner } => claim(entry, owner, at),
        Event::Start { epoch, owner } => {
            fence(entry, *epoch, owner)?;
            Ok(changed(Entry { started: true, ..entry.clone() }))
        }
        Event::Renew { epoch, owner } => {
            fence(entry, *epoch, owner)?;
            Ok(changed(Entry { lease: entry.lease.renewed(at.now), ..entry.clone() }))
        }
        Event::Finish { epoch, owner, end } => {
            fence(entry, *epoch, owner)?;
            Ok(finish(entry, *end, at))
        }
        Event::GiveBack { epoch, owner } => {
            fence(entry, *epoch, owner)?;
            Ok(given_back(entry, at))
        }
        Event::OwnerDied { successor } => owner_died(entry, successor, at),
        Event::Tick => tick(entry, at),
        Event::Restarted if entry.status == CallStatus::Running => {
            Ok(changed(Entry { lease: entry.lease.renewed(at.now), ..entry.clone() }))
        }
        Event::Built if entry.status == CallStatus::Pending => Ok(changed(Entry { ready: true, ..entry.clone() })),
        Event::BuildFailed if entry.status == CallStatus::Pending && !entry.ready => {
            Ok(ended(entry.clone(), CallStatus::Failed))
        }
        Event::Restarted | Event::Built | Event::BuildFailed => Err(idle(entry)),
        Event::Cancel => cancel(entry),
        Event::Acknowledged => promised(entry),
    }
}

fn changed(entry: Entry) -> Stepped {
    Stepped { entry, effects: Vec::new() }
}

fn idle(entry: &Entry) -> Refused {
    if entry.status.is_terminal() { Refused::Ended(entry.status) } else { Refused::NotDue }
}

/// Only who holds the claim may go on; who wrote this already hears so.
fn fence(entry: &Entry, epoch: Epoch, owner: &Owner) -> Result<(), Refused> {
    match (entry.lease.is_held_by(epoch, owner), entry.status) {
        (true, CallStatus::Running) => Ok(()),
        (true, status) => Err(Refused::Already(status)),
        (false, _) => Err(Refused::Stale),
    }
}

fn claim(entry: &Entry, owner: &Owner, at: &At) -> Result<Stepped, Refused> {
    let is_due = entry.ready && entry.not_before <= at.now && entry.expires_at > at.now;
    if entry.status != CallStatus::Pending || !is_due {
        return Err(idle(entry));
    }
    Ok(changed(Entry {
        status: CallStatus::Running,
        lease: entry.lease.claimed(owner, at.now),
        started: false,
        deliveries: entry.deliveries + 1,
        ..entry.clone()
    }))
}

fn ended(entry: Entry, status: CallStatus) -> Stepped {
    let entry = Entry { status, ..entry };
    let mut effects = vec![Effect::End];
    if entry.is_dead_letter() {
        effects.push(Effect::DeadLetter);
    }
    Stepped { entry, effects }
}

fn finish(entry: &Entry, end: End, at: &At) -> Stepped {
    if matches!(end.kind, Some(ErrorKind::Infrastructure | ErrorKind::Unavailable)) {
        let counted = Entry { started: entry.started || end.started, ..entry.clone() };
        return redeliver(&counted, pause(entry.deliveries, at), at);
    }
    let is_functions_own = end.kind.is_some_and(ErrorKind::is_functions_own);
    let failures = entry.failures + u32::from(end.status != CallStatus::Done && is_functions_own);
    let next = Entry { failures, ..entry.clone() };
    let not_before = at.now.saturating_add(pause(failures, at));
    if is_retried(end.status, end.kind, failures, entry.retries) && not_before < entry.expires_at {
        return changed(Entry { status: CallStatus::Pending, not_before, ..next });
    }
    ended(next, end.status)
}

fn pause(failures: u32, at: &At) -> i64 {
    i64::try_from(pause_ms(failures, at.uniform)).unwrap_or(i64::MAX)
}

fn given_back(entry: &Entry, at: &At) -> Stepped {
    changed(Entry {
        status: CallStatus::Pending,
        deliveries: entry.deliveries.saturating_sub(1),
        not_before: at.now,
        ..entry.clone()
    })
}

/// The platform failed it: another delivery, unless there were too many that had begun.
fn redeliver(entry: &Entry, pause: i64, at: &At) -> Stepped {
    let redeliveries = entry.redeliveries + u32::from(entry.started);
    // Without an owner nothing that comes late from this claim finds it again.
    let next =
        Entry { redeliveries: redeliveries.min(MAX_REDELIVERIES), lease: entry.lease.released(), ..entry.clone() };
    let mut stepped = if redeliveries > MAX_REDELIVERIES {
        ended(next, CallStatus::Failed)
    } else {
        changed(Entry { status: CallStatus::Pending, not_before: at.now.saturating_add(pause), ..next })
    };
    stepped.effects.insert(0, Effect::Lost(entry.lease.epoch));
    stepped
}

fn owner_died(entry: &Entry, successor: &Owner, at: &At) -> Result<Stepped, Refused> {
    if entry.status == CallStatus::Running && entry.lease.is_of_predecessor(successor) {
        return Ok(redeliver(entry, 0, at));
    }
    Err(idle(entry))
}

fn tick(entry: &Entry, at: &At) -> Result<Stepped, Refused> {
    match entry.status {
        CallStatus::Running if entry.lease.is_over(at.now) => Ok(redeliver(entry, 0, at)),
        CallStatus::Pending if entry.expires_at <= at.now => Ok(ended(entry.clone(), CallStatus::Expired)),
        _ => Err(idle(entry)),
    }
}

fn cancel(entry: &Entry) -> Result<Stepped, Refused> {
    match entry.status {
        CallStatus::Pending => {
            Ok(ended(Entry { lease: entry.lease.released(), ..entry.clone() }, CallStatus::Cancelled))
        }
        CallStatus::Running => {
            let next = Entry { lease: entry.lease.revoked(), ..entry.clone() };
            let mut stepped = ended(next, CallStatus::Cancelled);
            stepped.effects.extend([Effect::Lost(entry.lease.epoch), Effect::Kill(entry.lease.epoch)]);
            Ok(stepped)
        }
        status => Err(Refused::Ended(status)),
    }
}

fn promised(entry: &Entry) -> Result<Stepped, Refused> {
    if !entry.waited {
        return Err(Refused::Already(entry.status));
    }
    let entry = Entry { waited: false, ..entry.clone() };
    let effects = if entry.is_dead_letter() { vec![Effect::DeadLetter] } else { Vec::new() };
    Ok(Stepped { entry, effects })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: At = At { now: 1000, uniform: 0.5 };

    fn owner(incarnation: &str) -> Owner {
        Owner { worker: "w".to_owned(), incarnation: incarnation.to_owned() }
    }

    fn pending() -> Entry {
        Entry::accepted(1, 0, 100_000, true, false)
    }

    fn running() -> Entry {
        step(&pending(), &Event::Claim { owner: owner("a") }, &AT).unwrap().entry
    }

    fn finish_event(entry: &Entry, status: CallStatus, kind: Option<ErrorKind>) -> Event {
        Event::Finish {
            epoch: entry.lease.epoch,
            owner: entry.lease.owner.clone().unwrap(),
            end: End { status, kind, started: true },
        }
    }

    #[test]
    fn a_claim_raises_the_epoch_and_takes_what_is_due_only() {
        assert_eq!((running().lease.epoch, running().deliveries), (Epoch(1), 1));
        for not_yet in [
            Entry { ready: false, ..pending() },
            Entry { not_before: 2000, ..pending() },
            Entry { expires_at: 1000, ..pending() },
        ] {
            assert_eq!(step(&not_yet, &Event::Claim { owner: owner("a") }, &AT), Err(Refused::NotDue));
        }
        assert_eq!(step(&running(), &Event::Claim { owner: owner("b") }, &AT), Err(Refused::NotDue));
    }

    #[test]
    fn a_result_is_written_once_and_only_by_its_claim() {
        let entry = running();
        let done = finish_event(&entry, CallStatus::Done, None);
        let ended = step(&entry, &done, &AT).unwrap();
        assert_eq!((ended.entry.status, ended.effects.as_slice()), (CallStatus::Done, &[Effect::End][..]));
        assert_eq!(step(&ended.entry, &done, &AT), Err(Refused::Already(CallStatus::Done)));
        let other = Event::Finish {
            epoch: Epoch(1),
            owner: owner("b"),
            end: End { status: CallStatus::Done, kind: None, started: true },
        };
        assert_eq!(step(&entry, &other, &AT), Err(Refused::Stale));
    }

    #[test]
    fn a_functions_failure_is_tried_again_while_there_is_budget_and_age() {
        let entry = running();
        let failed = finish_event(&entry, CallStatus::Failed, Some(ErrorKind::Exit));
        let again = step(&entry, &failed, &AT).unwrap().entry;
        assert_eq!((again.status, again.failures, again.not_before), (CallStatus::Pending, 1, 1500));
        assert_eq!(step(&again, &failed, &AT), Err(Refused::Already(CallStatus::Pending)));
        for hopeless in [Entry { retries: 0, ..entry.clone() }, Entry { expires_at: 1400, ..entry.clone() }] {
            let ended = step(&hopeless, &failed, &AT).unwrap();
            assert_eq!(ended.entry.status, CallStatus::Failed);
            assert_eq!(ended.effects, [Effect::End, Effect::DeadLetter]);
        }
    }

    #[test]
    fn what_the_platform_loses_is_delivered_again_five_times() {
        let mut entry = Entry { retries: 0, ..pending() };
        for time in 0..=MAX_REDELIVERIES {
            entry = step(&entry, &Event::Claim { owner: owner("a") }, &AT).unwrap().entry;
            entry.started = true;
            let late = At { now: entry.lease.end + 1, ..AT };
            let stepped = step(&entry, &Event::Tick, &late).unwrap();
            let done = finish_event(&entry, CallStatus::Done, None);
            assert_eq!(step(&stepped.entry, &done, &late), Err(Refused::Stale), "a late result finds nobody");
            entry = Entry { not_before: 0, ..stepped.entry };
            let last = time == MAX_REDELIVERIES;
            assert_eq!(entry.status, if last { CallStatus::Failed } else { CallStatus::Pending });
            assert_eq!(stepped.effects.contains(&Effect::DeadLetter), last);
        }
        assert_eq!(entry.failures, 0);
    }

    #[test]
    fn what_had_not_begun_costs_nothing() {
        let entry = running();
        let late = At { now: entry.lease.end + 1, ..AT };
        assert_eq!(step(&entry, &Event::Tick, &late).unwrap().entry.redeliveries, 0);
        let back = Event::GiveBack { epoch: entry.lease.epoch, owner: owner("a") };
        let back = step(&entry, &back, &AT).unwrap().entry;
        assert_eq!((back.status, back.deliveries), (CallStatus::Pending, 0));
    }

    #[test]
    fn a_restart_grants_every_lease_anew() {
        let granted = step(&running(), &Event::Restarted, &At { now: 90_000, ..AT }).unwrap().entry;
        assert_eq!(granted.lease.end, 120_000);
        assert_eq!(step(&granted, &Event::Tick, &At { now: 119_999, ..AT }), Err(Refused::NotDue));
    }

    #[test]
    fn only_an_earlier_run_of_the_same_worker_is_dead() {
        let entry = running();
        let died = |successor| step(&entry, &Event::OwnerDied { successor }, &AT);
        assert_eq!(died(owner("a")), Err(Refused::NotDue));
        assert_eq!(died(Owner { worker: "other".into(), incarnation: "b".into() }), Err(Refused::NotDue));
        assert_eq!(died(owner("b")).unwrap().entry.status, CallStatus::Pending);
    }

    #[test]
    fn a_cancelled_call_is_nobodys() {
        let entry = running();
        let cancelled = step(&entry, &Event::Cancel, &AT).unwrap();
        assert_eq!(cancelled.entry.status, CallStatus::Cancelled);
        assert!(
            cancelled.effects.contains(&Effect::Kill(Epoch(1))) && !cancelled.effects.contains(&Effect::DeadLetter)
        );
        let done = finish_event(&entry, CallStatus::Done, None);
        assert_eq!(step(&cancelled.entry, &done, &AT), Err(Refused::Stale));
        assert_eq!(step(&cancelled.entry, &Event::Cancel, &AT), Err(Refused::Ended(CallStatus::Cancelled)));
        assert_eq!(step(&pending(), &Event::Cancel, &AT).unwrap().entry.status, CallStatus::Cancelled);
    }

    #[test]
    fn a_failure_that_somebody_waits_for_is_a_dead_letter_only_once_it_was_promised() {
        let entry = Entry { waited: true, retries: 0, ..running() };
        let failed = finish_event(&entry, CallStatus::Failed, Some(ErrorKind::Exit));
        let ended = step(&entry, &failed, &AT).unwrap();
        assert_eq!(ended.effects, [Effect::End]);
        assert_eq!(step(&ended.entry, &Event::Acknowledged, &AT).unwrap().effects, [Effect::DeadLetter]);
        let promised = step(&entry, &Event::Acknowledged, &AT).unwrap().entry;
        assert_eq!(step(&promised, &Event::Acknowledged, &AT), Err(Refused::Already(CallStatus::Running)));
        assert_eq!(step(&promised, &failed, &AT).unwrap().effects, [Effect::End, Effect::DeadLetter]);
    }

    #[test]
    fn age_and_builds_end_what_waits() {
        let old = At { now: 100_000, ..AT };
        assert_eq!(step(&pending(), &Event::Tick, &old).unwrap().entry.status, CallStatus::Expired);
        let waits = Entry { ready: false, ..pending() };
        assert_eq!(step(&waits, &Event::BuildFailed, &AT).unwrap().entry.status, CallStatus::Failed);
        assert!(step(&waits, &Event::Built, &AT).unwrap().entry.ready);
        assert_eq!(step(&pending(), &Event::BuildFailed, &AT), Err(Refused::NotDue));
    }
}
