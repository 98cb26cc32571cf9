//! Steps of the queue core, taken with calls that have rows: entries are read, stepped, and written back with their effects in the
//! same transaction.

use std::collections::HashMap;

use faena_domain::call::StartKind;
use faena_domain::queue::{self, At, Effect, End, Entry, Event, MAX_REDELIVERIES, Refused};
use faena_domain::units::Millis;
use faena_domain::{Attempt, CallError, CallNum, CallStatus, EngineKind, ErrorKind, Layer, Payload};
use faena_protocol::records::Outcome;

use super::{RequestContext, RuleResult, blobs, callbacks};
use crate::tx::{BlobOwner, SavedEntry, StoreResult, StoredEntry, Tx};

/// Results and logs of a call that hold less than this are not counted: the number of calls bounds them.
pub(super) const COUNTED: u64 = 1024;

/// How many bytes a result and a log are counted as.
pub(super) fn kept_bytes(result: &Payload, logs: &Payload) -> u64 {
    let bytes = result.len() + logs.len();
    if bytes < COUNTED { 0 } else { bytes }
}

/// What is written with a step besides the entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Cause<'a> {
    /// What a worker says of an attempt's end.
    pub(super) outcome: Option<&'a Outcome>,
    /// Why a call ends that no worker ended.
    pub(super) error: Option<CallError>,
    /// The request that claims it.
    pub(super) claim: Option<&'a str>,
}

impl Cause<'_> {
    /// A call is cancelled: why it has no result.
    pub(super) fn cancelled(status: CallStatus, why: &str) -> Self {
        let layer = if status == CallStatus::Running { Layer::Run } else { Layer::Queue };
        Self { error: Some(CallError::new(ErrorKind::Cancelled, layer, why)), ..Self::default() }
    }
}

/// A step to be taken with a call.
#[derive(Clone, Debug)]
pub(super) struct Step<'a> {
    pub(super) num: CallNum,
    pub(super) event: Event,
    pub(super) cause: Cause<'a>,
}

impl Step<'_> {
    /// A step with which nothing else is written.
    pub(super) fn new(num: CallNum, event: Event) -> Self {
        Self { num, event, cause: Cause::default() }
    }
}

/// What a step left.
#[derive(Debug)]
pub(super) struct Transition {
    pub(super) before: Entry,
    pub(super) after: Entry,
}

/// Why a step was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotApplied {
    /// The core refuses it.
    Refused(Refused),
    /// The call has no row.
    Missing,
}

/// Takes a step with each of many calls, in their order, and writes what follows.
pub(super) fn apply_all(
    tx: &dyn Tx,
    context: &RequestContext<'_>,
    steps: Vec<Step<'_>>,
) -> RuleResult<Vec<Result<Transition, NotApplied>>> {
    let numbers: Vec<CallNum> = steps.iter().map(|step| step.num).collect();
    let entries = tx.entries_for_update(&numbers)?;
    let mut entries: HashMap<CallNum, StoredEntry> = entries.into_iter().map(|entry| (entry.num, entry)).collect();
    let (mut saved, mut followed) = (Vec::new(), Vec::new());
    let results = steps.into_iter().map(|Step { num, event, cause }| {
        let stored = entries.get_mut(&num).ok_or(NotApplied::Missing)?;
        let at = At { now: context.now, uniform: context.uniform() };
        let stepped = queue::step(&stored.entry, &event, &at).map_err(NotApplied::Refused)?;
        let next = saved_entry(stored, &stepped.entry, context.now, cause.claim);
        if cause.outcome.is_some() || !stepped.effects.is_empty() {
            followed.push((stored.clone(), stepped.entry.clone(), stepped.effects, cause));
        }
        (stored.queued_at, stored.claimed_at) = (next.queued_at, next.claimed_at);
        saved.push(next);
        let before = std::mem::replace(&mut stored.entry, stepped.entry.clone());
        Ok(Transition { before, after: stepped.entry })
    });
    let results = results.collect();
    tx.save_entries(&saved)?;
    for (stored, after, effects, cause) in followed {
        follow(tx, &stored, (&after, &effects), context.now, &cause)?;
    }
    Ok(results)
}

/// Calls of which the entries are held at once.
const CHUNK: usize = 1000;

/// Takes the same step with many calls; how many took it.
pub(super) fn apply_same(
    tx: &dyn Tx,
    context: &RequestContext<'_>,
    calls: &[CallNum],
    event: &Event,
    cause: &Cause<'_>,
) -> RuleResult<u64> {
    let mut taken = 0;
    for calls in calls.chunks(CHUNK) {
        let step = |num: &CallNum| Step { num: *num, event: event.clone(), cause: cause.clone() };
        let steps = apply_all(tx, context, calls.iter().map(step).collect())?;
        taken += steps.iter().filter(|step| step.is_ok()).count() as u64;
    }
    Ok(taken)
}

/// Takes a step with one call.
pub(super) fn apply(
    tx: &dyn Tx,
    context: &RequestContext<'_>,
    step: Step<'_>,
) -> RuleResult<Result<Transition, NotApplied>> {
    Ok(apply_all(tx, context, vec![step])?.pop().unwrap_or(Err(NotApplied::Missing)))
}

/// The row of an entry after a step.
fn saved_entry(stored: &StoredEntry, after: &Entry, now: i64, claim: Option<&str>) -> SavedEntry {
    let is_running = after.status == CallStatus::Running;
    let was_running = stored.entry.status == CallStatus::Running;
    SavedEntry {
        num: stored.num,
        entry: after.clone(),
        queued_at: if was_running && !is_running { now } else { stored.queued_at },
        claimed_at: if is_running && !was_running { Some(now) } else { stored.claimed_at },
        is_due: after.status == CallStatus::Pending && after.ready && after.not_before <= now,
        claim: claim.map(str::to_owned),
    }
}

fn follow(
    tx: &dyn Tx,
    stored: &StoredEntry,
    (after, effects): (&Entry, &[Effect]),
    now: i64,
    cause: &Cause<'_>,
) -> StoreResult<()> {
    let is_lost = effects.iter().any(|effect| matches!(effect, Effect::Lost(_)));
    match &cause.outcome {
        Some(outcome) => {
            let attempt = Attempt { error: outcome.error.clone(), ..outcome.attempt.clone() };
            tx.append_attempt(stored.num, &attempt)?;
        }
        None if is_lost => tx.append_attempt(stored.num, &lost_attempt(stored, cause, now))?,
        None => {}
    }
    for effect in effects {
        match effect {
            Effect::End => write_end(tx, stored, after, now, cause)?,
            Effect::DeadLetter => tx.insert_dead_letter(stored.num, &stored.function)?,
            // The reply to the request tells of a kill; a loss is on record.
            Effect::Kill(_) | Effect::Lost(_) => {}
        }
    }
    Ok(())
}

/// What is known of an attempt whose worker tells nothing more of it.
fn lost_attempt(stored: &StoredEntry, cause: &Cause<'_>, now: i64) -> Attempt {
    let span = |from: i64, to: i64| Millis::from_millis(u64::try_from(to - from).unwrap_or(0));
    let claimed_at = stored.claimed_at.unwrap_or(now);
    let lease = &stored.entry.lease;
    let layer = if stored.entry.started { Layer::Run } else { Layer::Start };
    let lost = || CallError::new(ErrorKind::Infrastructure, layer, "the worker was lost before it could tell the end");
    Attempt {
        attempt: stored.entry.deliveries,
        worker: lease.owner.as_ref().map(|owner| owner.worker.clone()).unwrap_or_default(),
        engine: stored.engine.unwrap_or(EngineKind::Sandbox),
        start: StartKind::Cold,
        epoch: lease.epoch,
        placement: None,
        queue_ms: span(stored.queued_at, claimed_at),
        start_ms: Millis::default(),
        run_ms: span(claimed_at, now),
        exit: None,
        peak_memory_bytes: None,
        cpu_ms: None,
        missing_layers: Vec::new(),
        egress: None,
        error: Some(cause.error.clone().unwrap_or_else(lost)),
    }
}

fn write_end(tx: &dyn Tx, stored: &StoredEntry, after: &Entry, now: i64, cause: &Cause<'_>) -> StoreResult<()> {
    let given = cause.outcome.and_then(|outcome| outcome.error.clone()).or_else(|| cause.error.clone());
    let error = (after.status != CallStatus::Done).then(|| end_error(&stored.entry, after, given));
    tx.end_call(stored.num, error.as_ref(), now)?;
    if stored.has_callback {
        callbacks::announce(tx, stored.num, &stored.function, now)?;
    }
    if let Some(outcome) = cause.outcome {
        tx.put_outcome(stored.num, outcome, kept_bytes(&outcome.result, &outcome.logs))?;
        let owner = BlobOwner::Call(stored.function.namespace.clone(), stored.num);
        blobs::refer(tx, &owner, [&outcome.result, &outcome.logs])?;
    }
    Ok(())
}

/// Why a call ended as it did.
fn end_error(before: &Entry, after: &Entry, given: Option<CallError>) -> CallError {
    let used_up = || {
        let message = format!(
            "the call was given up after {} attempts whose worker, engine or machine was lost before they could end",
            MAX_REDELIVERIES + 1
        );
        CallError::new(ErrorKind::Infrastructure, Layer::Run, message)
    };
    match after.status {
        CallStatus::Expired if given.is_none() => {
            let (layer, what) =
                if before.ready { (Layer::Queue, "a slot") } else { (Layer::Build, "its version's build") };
            CallError::new(
                ErrorKind::Expired,
                layer,
                format!("the call reached its maxAgeMs while it waited for {what}"),
            )
        }
        CallStatus::Failed if given.as_ref().is_none_or(|error| error.kind == ErrorKind::Infrastructure) => used_up(),
        _ => given.unwrap_or_else(used_up),
    }
}

/// How a worker's outcome looks to the core.
pub(super) fn end_of(outcome: &Outcome) -> End {
    let error = outcome.error.as_ref();
    End {
        status: outcome.status,
        kind: error.map(|error| error.kind),
        started: error.is_none_or(|error| error.layer == Layer::Run),
    }
}
