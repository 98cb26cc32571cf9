//! The queue core's entries, kept in rows: loaded, stepped, written back with their effects in the same transaction.

use faena_domain::call::StartKind;
use faena_domain::lease::Lease;
use faena_domain::queue::{self, At, Effect, End, Entry, Event, MAX_REDELIVERIES, Refused};
use faena_domain::units::Millis;
use faena_domain::{Attempt, CallError, CallNum, CallStatus, EngineKind, Epoch, ErrorKind, Layer, Owner};
use faena_protocol::DbError;
use faena_protocol::db::Resource;
use faena_protocol::records::Outcome;
use rusqlite::{Connection, OptionalExtension, Row};

use super::requests::RequestContext;
use super::rows::{Json, Text, not_found};
use super::{blobs, call_rows, callbacks, internal};

/// A call's entry, and what the audit of its attempts needs.
pub(super) struct Kept {
    num: CallNum,
    pub(super) entry: Entry,
    namespace: String,
    function: String,
    engine: Option<EngineKind>,
    queued_at: i64,
    claimed_at: Option<i64>,
    /// Whether somebody is to be told of its end.
    has_callback: bool,
}

fn kept(row: &Row<'_>) -> rusqlite::Result<Kept> {
    let (Text(status), worker, incarnation): (_, Option<String>, Option<String>) =
        (row.get(1)?, row.get(3)?, row.get(4)?);
    let owner = worker.zip(incarnation).map(|(worker, incarnation)| Owner { worker, incarnation });
    Ok(Kept {
        num: CallNum(row.get(0)?),
        entry: Entry {
            status,
            lease: Lease { epoch: Epoch(row.get(2)?), owner, end: row.get::<_, Option<i64>>(5)?.unwrap_or(0) },
            started: row.get(6)?,
            deliveries: row.get(7)?,
            failures: row.get(8)?,
            redeliveries: row.get(9)?,
            retries: row.get(10)?,
            not_before: row.get(11)?,
            expires_at: row.get(12)?,
            ready: row.get(13)?,
            waited: row.get(14)?,
        },
        namespace: row.get(15)?,
        function: row.get(16)?,
        engine: row.get::<_, Option<Text<EngineKind>>>(17)?.map(|text| text.0),
        queued_at: row.get(18)?,
        claimed_at: row.get(19)?,
        has_callback: row.get(20)?,
    })
}

const COLUMNS: &str = "num, status, epoch, worker, incarnation, lease_end, started, deliveries, failures, redeliveries, retries, \
     not_before, expires_at, ready, waited, namespace, function, engine, queued_at, claimed_at, callback IS NOT NULL";

/// One call's entry.
pub(super) fn load(connection: &Connection, num: CallNum) -> Result<Kept, DbError> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM calls WHERE num = ?1"))
        .and_then(|mut statement| statement.query_row([num.0], kept).optional())
        .map_err(|error| internal("reading a claim", &error))?
        .ok_or_else(|| not_found(Resource::Call, &num))
}

/// What the row needs to know of a step beside the entry.
#[derive(Default)]
pub(super) struct TransitionContext {
    /// What a worker says of an attempt's end.
    pub(super) outcome: Option<Outcome>,
    /// Why a call ends that no worker ended.
    pub(super) error: Option<CallError>,
    /// The request that claims it.
    pub(super) claim: Option<String>,
}

impl TransitionContext {
    /// A call is cancelled: why it has no result.
    pub(super) fn cancelled(status: CallStatus, why: &str) -> Self {
        let layer = if status == CallStatus::Running { Layer::Run } else { Layer::Queue };
        Self { error: Some(CallError::new(ErrorKind::Cancelled, layer, why)), ..Self::default() }
    }
}

/// A step that was refused, or could not be written.
#[derive(Debug)]
pub(super) enum NotApplied {
    /// The core refuses it.
    Refused(Refused),
    /// The store failed.
    Failed(DbError),
}

impl From<DbError> for NotApplied {
    fn from(error: DbError) -> Self {
        Self::Failed(error)
    }
}

/// What a step left.
pub(super) struct Transition {
    pub(super) before: Entry,
    pub(super) after: Entry,
}

/// Takes a step with a call and writes what follows.
pub(super) fn try_apply(
    connection: &Connection,
    num: CallNum,
    event: &Event,
    context: &RequestContext<'_>,
    cause: TransitionContext,
) -> Result<Transition, NotApplied> {
    let kept = load(connection, num)?;
    let at = At { now: context.now, uniform: context.uniform() };
    let stepped = queue::step(&kept.entry, event, &at).map_err(NotApplied::Refused)?;
    let write = || -> rusqlite::Result<()> {
        save(connection, &kept, &stepped.entry, context.now, cause.claim.as_deref())?;
        follow(connection, &kept, &stepped.entry, &stepped.effects, context.now, &cause)
    };
    write().map_err(|error| internal("writing a step of a call", &error))?;
    Ok(Transition { before: kept.entry, after: stepped.entry })
}

/// Takes a step; that the core refuses it is no error.
pub(super) fn apply(
    connection: &Connection,
    num: CallNum,
    event: &Event,
    context: &RequestContext<'_>,
    cause: TransitionContext,
) -> Result<Option<Transition>, DbError> {
    match try_apply(connection, num, event, context, cause) {
        Ok(taken) => Ok(Some(taken)),
        Err(NotApplied::Refused(_)) => Ok(None),
        Err(NotApplied::Failed(error)) => Err(error),
    }
}

fn save(connection: &Connection, kept: &Kept, after: &Entry, now: i64, claim: Option<&str>) -> rusqlite::Result<()> {
    let is_running = after.status == CallStatus::Running;
    let was_running = kept.entry.status == CallStatus::Running;
    let queued_at = if was_running && !is_running { now } else { kept.queued_at };
    let claimed_at = if is_running && !was_running { Some(now) } else { kept.claimed_at };
    let is_due = after.status == CallStatus::Pending && after.ready && after.not_before <= now;
    connection
        .prepare_cached(
            "UPDATE calls SET status = ?2, epoch = ?3, worker = ?4, incarnation = ?5, lease_end = ?6, started = ?7,
                 deliveries = ?8, failures = ?9, redeliveries = ?10, not_before = ?11, ready = ?12, waited = ?13,
                 due = ?14 AND run_at IS NULL, queued_at = ?15, claimed_at = ?16,
                 claim = CASE WHEN ?2 = 'RUNNING' THEN coalesce(?17, claim) END
             WHERE num = ?1",
        )?
        .execute(rusqlite::params![
            kept.num.0,
            after.status.as_str(),
            after.lease.epoch.0,
            after.lease.owner.as_ref().map(|owner| &owner.worker),
            after.lease.owner.as_ref().map(|owner| &owner.incarnation),
            after.lease.end,
            after.started,
            after.deliveries,
            after.failures,
            after.redeliveries,
            after.not_before,
            after.ready,
            after.waited,
            is_due,
            queued_at,
            claimed_at,
            claim
        ])
        .map(drop)
}

fn follow(
    connection: &Connection,
    kept: &Kept,
    after: &Entry,
    effects: &[Effect],
    now: i64,
    cause: &TransitionContext,
) -> rusqlite::Result<()> {
    let lost = effects.iter().any(|effect| matches!(effect, Effect::Lost(_)));
    match &cause.outcome {
        Some(outcome) => {
            let attempt = Attempt { error: outcome.error.clone(), ..outcome.attempt.clone() };
            record_attempt(connection, kept.num, &attempt)?;
        }
        None if lost => record_attempt(connection, kept.num, &lost_attempt(kept, cause, now))?,
        None => {}
    }
    for effect in effects {
        match effect {
            Effect::End => write_end(connection, kept, after, now, cause)?,
            Effect::DeadLetter => {
                connection
                    .prepare_cached(
                        "INSERT OR IGNORE INTO dead_letters (num, namespace, function) VALUES (?1, ?2, ?3)",
                    )?
                    .execute((kept.num.0, &kept.namespace, &kept.function))?;
            }
            // The one is told by who answers the request, the other is on record.
            Effect::Kill(_) | Effect::Lost(_) => {}
        }
    }
    Ok(())
}

fn record_attempt(connection: &Connection, num: CallNum, attempt: &Attempt) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE calls SET attempts = json_insert(attempts, '$[#]', json(?2)) WHERE num = ?1")?
        .execute((num.0, Json(attempt)))
        .map(drop)
}

/// What is known of an attempt whose worker tells nothing more of it.
fn lost_attempt(kept: &Kept, cause: &TransitionContext, now: i64) -> Attempt {
    let span = |from: i64, to: i64| Millis::from_millis(u64::try_from(to - from).unwrap_or(0));
    let claimed_at = kept.claimed_at.unwrap_or(now);
    let layer = if kept.entry.started { Layer::Run } else { Layer::Start };
    let lost = || CallError::new(ErrorKind::Infrastructure, layer, "the worker was lost before it could tell the end");
    Attempt {
        attempt: kept.entry.deliveries,
        worker: kept.entry.lease.owner.as_ref().map(|owner| owner.worker.clone()).unwrap_or_default(),
        engine: kept.engine.unwrap_or(EngineKind::Sandbox),
        start: StartKind::Cold,
        epoch: kept.entry.lease.epoch,
        placement: None,
        queue_ms: span(kept.queued_at, claimed_at),
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

fn write_end(
    connection: &Connection,
    kept: &Kept,
    after: &Entry,
    now: i64,
    cause: &TransitionContext,
) -> rusqlite::Result<()> {
    let given = cause.outcome.as_ref().and_then(|outcome| outcome.error.clone()).or_else(|| cause.error.clone());
    let error = (after.status != CallStatus::Done).then(|| end_error(&kept.entry, after, given));
    connection
        .prepare_cached(
            "UPDATE calls SET error = ?2, ended_at = ?3, run_at = NULL,
                 spec = CASE WHEN instr(spec, '\"privateHeaders\":') > 0 THEN json_remove(spec, '$.privateHeaders') ELSE spec END
             WHERE num = ?1",
        )?
        .execute((kept.num.0, error.map(Json), now))?;
    if kept.has_callback {
        callbacks::announce(connection, kept.num, now)?;
    }
    if let Some(outcome) = &cause.outcome {
        connection
            .prepare_cached(
                "UPDATE calls SET result = ?2, logs = ?3, head = ?4, kept_bytes = ?5, log_bytes = ?6 WHERE num = ?1",
            )?
            .execute((
                kept.num.0,
                Json(&outcome.result),
                Json(&outcome.logs),
                outcome.head.as_ref().map(Json),
                call_rows::kept_bytes(&outcome.result, &outcome.logs),
                outcome.logs.len(),
            ))?;
        let owner = blobs::of_call(&kept.namespace, kept.num);
        blobs::refer(connection, &owner, [&outcome.result, &outcome.logs])?;
    }
    Ok(())
}

/// Why a call ended as it did.
fn end_error(before: &Entry, after: &Entry, given: Option<CallError>) -> CallError {
    let used_up = || {
        let message = format!(
            "the call was given up: {} deliveries were lost with their worker, engine or machine before they could end",
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
