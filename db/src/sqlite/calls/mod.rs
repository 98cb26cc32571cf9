//! Calls: accepted, ended behind their answer, read.

mod ended;
mod list;

use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};

use faena_domain::lease::{LEASE_MS, Lease};
use faena_domain::queue::{DEFAULT_AGE_MS, Entry, Event, Refused};
use faena_domain::retry::DEFAULT_RETRIES;
use faena_domain::{
    CallError, CallNum, CallStatus, EngineKind, Epoch, FunctionStatus, Namespace, Owner, Payload, Version,
};
use faena_protocol::DbError;
use faena_protocol::db::{
    CallAcknowledge, CallCancel, CallFinish, CallGet, CallList, CallNumReserve, CallPersist, CallReplay, CallsAccept,
    CallsRecord, CallsStarted, Cancelled, DeadLetterForget, Resource,
};
use faena_protocol::records::{Accepted, CallRecord, CallSpec, NewCall, ResolvedVersion};
use rusqlite::{Connection, OptionalExtension};

use super::call_rows::{COLUMNS, record};
use super::function_queues::EnqueueBatch;
use super::queue::{NotApplied, TransitionContext, apply, end_of, load, try_apply};
use super::requests::{Request, RequestContext, Write, check_claims, read, write};
use super::rows::{Json, Text, not_found};
use super::{blobs, builds, completed, functions, internal, keys};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    write::<CallNumReserve>(),
    write::<CallsAccept>(),
    write::<CallReplay>(),
    write::<DeadLetterForget>(),
    write::<CallsRecord>(),
    write::<CallPersist>(),
    write::<CallFinish>(),
    write::<CallsStarted>(),
    write::<CallAcknowledge>(),
    write::<CallCancel>(),
    read::<CallGet>(),
    read::<CallList>(),
];

const NEXT_NUM: &str = "next_call";

impl Write for CallNumReserve {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<CallNum, DbError> {
        connection
            .prepare_cached(
                "INSERT INTO meta (key, value) VALUES (?1, 1 + ?2) ON CONFLICT (key) DO UPDATE SET value = value + ?2
                 RETURNING value - ?2",
            )
            .and_then(|mut statement| statement.query_row((NEXT_NUM, i64::from(self.count.max(1))), |row| row.get(0)))
            .map(CallNum)
            .map_err(|error| internal("reserving call numbers", &error))
    }
}

pub(super) fn find(connection: &Connection, namespace: &Namespace, num: CallNum) -> Result<CallRecord, DbError> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM calls WHERE num = ?1 AND namespace = ?2"))
        .and_then(|mut statement| statement.query_row((num.0, namespace.as_str()), record).optional())
        .map_err(|error| internal("reading a call", &error))?
        .map_or_else(
            || completed::find(connection, namespace, num).map(|found| found.map(|ended| ended.call)),
            |row| Ok(Some(row)),
        )?
        .ok_or_else(|| not_found(Resource::Call, &num))
}

fn exists(connection: &Connection, num: CallNum) -> Result<bool, DbError> {
    connection
        .prepare_cached("SELECT 1 FROM calls WHERE num = ?1")
        .and_then(|mut statement| statement.exists([num.0]))
        .map_err(|error| internal("looking for a call", &error))
}

/// A row about to be written.
struct NewRow<'a> {
    spec: &'a CallSpec,
    version: Version,
    engine: Option<EngineKind>,
    entry: Entry,
    created_at: i64,
}

fn millis(span: u64) -> i64 {
    i64::try_from(span).unwrap_or(i64::MAX)
}

/// What a call holds while it waits.
fn weight(spec: &CallSpec) -> u64 {
    spec.params.len() + spec.body.as_ref().map_or(0, Payload::len)
}

impl NewRow<'_> {
    fn insert(&self, connection: &Connection, now: i64, batch: &mut EnqueueBatch) -> Result<(), DbError> {
        let (spec, entry) = (self.spec, &self.entry);
        let weight = weight(spec);
        let is_due = entry.ready && entry.not_before <= now && spec.run_at.is_none();
        let write = || -> rusqlite::Result<()> {
            connection
                .prepare_cached(
                    "INSERT INTO calls (num, namespace, function, version, status, spec, bytes, ready, due, engine, priority,
                         replay_of, waited, retries, created_at, queued_at, run_at, not_before, expires_at, callback, epoch)
                     VALUES (?1, ?2, ?3, ?4, 'PENDING', ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?14, ?15, ?16, ?17, ?18, ?19)",
                )?
                .execute(rusqlite::params![
                    spec.num.0,
                    spec.namespace.as_str(),
                    spec.function.key(),
                    self.version.0,
                    Json(spec),
                    weight,
                    entry.ready,
                    is_due,
                    self.engine.map(Text),
                    spec.priority,
                    spec.replay_of.map(|num| num.0),
                    entry.waited,
                    entry.retries,
                    self.created_at,
                    spec.run_at.map(|at| at.0),
                    entry.not_before,
                    entry.expires_at,
                    spec.callback.as_ref().map(Json),
                    entry.lease.epoch.0
                ])?;
            blobs::refer(
                connection,
                &blobs::of_call(spec.namespace.as_str(), spec.num),
                [&spec.params].into_iter().chain(&spec.body),
            )
        };
        write().map_err(|error| internal("writing a call", &error))?;
        batch.enter(spec, weight, is_due);
        Ok(())
    }
}

/// The entry of a call that is accepted now.
fn accepted(spec: &CallSpec, resolved: &ResolvedVersion, context: &RequestContext<'_>) -> Entry {
    let retries = spec.retries.or(resolved.retries).unwrap_or(DEFAULT_RETRIES);
    // What waits for an instant of wall time gets its age when that has come.
    let expires_at = if spec.run_at.is_some() { i64::MAX } else { context.now.saturating_add(millis(spec.max_age_ms)) };
    Entry::accepted(retries, context.now, expires_at, resolved.status == FunctionStatus::Ready, spec.waited)
}

/// What the calls of one message have in common.
#[derive(Default)]
struct Accepting {
    /// Versions that were looked up, by namespace, function and the version that was asked for.
    versions: HashMap<(Namespace, String, Option<Version>), ResolvedVersion>,
    batch: EnqueueBatch,
}

/// Accepts a call. Where it is refused for what it is, nothing has been written.
fn accept(
    connection: &Connection,
    context: &RequestContext<'_>,
    NewCall { spec, version }: &NewCall,
    Accepting { versions, batch }: &mut Accepting,
) -> Result<Accepted, DbError> {
    let known = |num| find(connection, &spec.namespace, num).map(Box::new).map(Accepted::Known);
    if exists(connection, spec.num)? {
        return known(spec.num);
    }
    if let Some(earlier) = keys::earlier(connection, spec)? {
        if !spec.waited {
            // This client gets 202, even if another one waits.
            batch.settle(connection)?;
            apply(connection, earlier, &Event::Acknowledged, context, TransitionContext::default())?;
        }
        return known(earlier);
    }
    context.takes_new_work()?;
    let resolved = match versions.entry((spec.namespace.clone(), spec.function.key(), *version)) {
        Occupied(known) => known.into_mut(),
        Vacant(place) => place.insert(functions::resolve(connection, &spec.namespace, &spec.function, *version)?),
    };
    batch.has_room(connection, spec, weight(spec), &context.settings.queue)?;
    keys::has_room(connection, spec)?;
    let call = NewRow {
        spec,
        version: resolved.code.version,
        engine: resolved.code.engine,
        entry: accepted(spec, resolved, context),
        created_at: context.now,
    };
    call.insert(connection, context.now, batch)?;
    keys::remember(connection, spec, context)?;
    if resolved.status == FunctionStatus::Error {
        let error = build_error(connection, spec, resolved.code.version)?;
        let cause = TransitionContext { error, ..TransitionContext::default() };
        batch.settle(connection)?;
        apply(connection, spec.num, &Event::BuildFailed, context, cause)?;
        return known(spec.num);
    }
    let (version, engine) = (resolved.code.version, resolved.code.engine);
    Ok(Accepted::New { version, engine, created_at: context.now })
}

impl Write for CallsAccept {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Self::Reply, DbError> {
        let mut accepting = Accepting::default();
        let accepted = self.calls.iter().map(|call| match accept(connection, context, call, &mut accepting) {
            // What has been written of it has to go, and all the others with it.
            Err(error @ DbError::Internal { .. }) => Err(error),
            answer => Ok(answer),
        });
        let accepted = accepted.collect::<Result<_, _>>()?;
        accepting.batch.settle(connection)?;
        Ok(accepted)
    }
}

fn build_error(connection: &Connection, spec: &CallSpec, version: Version) -> Result<Option<CallError>, DbError> {
    connection
        .query_row(
            "SELECT error FROM versions WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            (spec.namespace.as_str(), spec.function.key(), version.0),
            |row| row.get::<_, Option<Json<_>>>(0),
        )
        .map(|error| error.map(|json| builds::call_error(&json.0)))
        .map_err(|error| internal("reading a build's error", &error))
}

impl Write for CallReplay {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<CallRecord, DbError> {
        if exists(connection, self.num)? {
            return find(connection, &self.namespace, self.num);
        }
        let old: Option<CallSpec> = connection
            .query_row(
                "SELECT spec FROM calls WHERE num = ?1 AND namespace = ?2",
                (self.of.0, self.namespace.as_str()),
                |row| row.get(0).map(|Json(spec)| spec),
            )
            .optional()
            .map_err(|error| internal("reading a call", &error))?;
        let old = match old {
            Some(old) => Some(old),
            None => completed::find(connection, &self.namespace, self.of)?.map(completed::spec),
        };
        let old = old.ok_or_else(|| not_found(Resource::Call, &self.of))?;
        let spec = CallSpec {
            num: self.num,
            private_headers: Vec::new(),
            replay_of: Some(self.of),
            run_at: None,
            key: None,
            waited: false,
            callback: None,
            traceparent: self.traceparent,
            account: self.account,
            // A waited call was recorded without its age, and may have had another than an asynchronous one gets.
            max_age_ms: if old.waited || old.max_age_ms == 0 { DEFAULT_AGE_MS } else { old.max_age_ms },
            retries: old.retries.filter(|_| !old.waited),
            ..old
        };
        let mut accepting = Accepting::default();
        let call = NewCall { spec, version: self.version };
        let accepted = accept(connection, context, &call, &mut accepting)?;
        accepting.batch.settle(connection)?;
        connection
            .prepare_cached("UPDATE dead_letters SET replayed_as = ?2 WHERE num = ?1")
            .and_then(|mut statement| statement.execute((self.of.0, self.num.0)))
            .map_err(|error| internal("marking a dead letter", &error))?;
        Ok(accepted.record(call.spec))
    }
}

impl Write for DeadLetterForget {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<(), DbError> {
        let forgotten = connection
            .prepare_cached("DELETE FROM dead_letters WHERE num = ?1 AND namespace = ?2")
            .and_then(|mut statement| statement.execute((self.num.0, self.namespace.as_str())))
            .map_err(|error| internal("forgetting a dead letter", &error))?;
        if forgotten == 0 { Err(not_found(Resource::DeadLetter, &self.num)) } else { Ok(()) }
    }
}

impl Write for CallPersist {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<CallRecord, DbError> {
        let spec = &self.spec;
        if !exists(connection, spec.num)? {
            let resolved = functions::resolve(connection, &spec.namespace, &spec.function, Some(self.version))?;
            // The api's clock is not ours: what has passed is told, not when it began.
            let left = spec.max_age_ms.saturating_sub(self.elapsed_ms);
            let expires_at = context.now.saturating_add(millis(left));
            let ready = resolved.status == FunctionStatus::Ready;
            let call = NewRow {
                spec,
                version: self.version,
                engine: resolved.code.engine,
                // Its client hears 202 with this row: from now on it is a promise.
                entry: Entry {
                    lease: Lease::unclaimed(self.epoch),
                    ..Entry::accepted(spec.retries.unwrap_or(0), context.now, expires_at, ready, false)
                },
                created_at: self.created_at,
            };
            let mut batch = EnqueueBatch::default();
            call.insert(connection, context.now, &mut batch)?;
            batch.settle(connection)?;
            if let Some(owner) = &self.running {
                run_persisted(connection, spec.num, owner, self.epoch, context.now)?;
            }
        }
        find(connection, &spec.namespace, spec.num)
    }
}

/// A call whose epochs its api gave out enters the queue as it stands: claimed, and perhaps begun.
fn run_persisted(connection: &Connection, num: CallNum, owner: &Owner, epoch: Epoch, now: i64) -> Result<(), DbError> {
    connection
        .prepare_cached(
            "UPDATE calls SET status = 'RUNNING', due = 0, epoch = ?2, worker = ?3, incarnation = ?4, lease_end = ?5,
                 deliveries = ?2, started = 1, claimed_at = ?6
             WHERE num = ?1",
        )
        .and_then(|mut statement| {
            let lease_end = now + LEASE_MS;
            statement.execute((num.0, epoch.0, &owner.worker, &owner.incarnation, lease_end, now))
        })
        .map(drop)
        .map_err(|error| internal("persisting a call", &error))
}

impl Write for CallFinish {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<CallStatus, DbError> {
        let (epoch, owner) = (self.epoch, self.owner);
        let event = match &self.outcome {
            Some(outcome) => Event::Finish { epoch, owner, end: end_of(outcome) },
            None => Event::GiveBack { epoch, owner },
        };
        match try_apply(
            connection,
            self.num,
            &event,
            context,
            TransitionContext { outcome: self.outcome, ..TransitionContext::default() },
        ) {
            Ok(taken) => Ok(taken.after.status),
            Err(NotApplied::Refused(Refused::Already(status))) => Ok(status),
            Err(NotApplied::Refused(_)) => Err(DbError::Stale),
            Err(NotApplied::Failed(error)) => Err(error),
        }
    }
}

impl Write for CallsStarted {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        check_claims(self.calls.len())?;
        for (num, epoch) in self.calls {
            let event = Event::Start { epoch, owner: self.owner.clone() };
            match apply(connection, num, &event, context, TransitionContext::default()) {
                // A waited call has no row.
                Ok(_) | Err(DbError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Write for CallAcknowledge {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        apply(connection, self.num, &Event::Acknowledged, context, TransitionContext::default()).map(drop)
    }
}

impl Write for CallCancel {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Cancelled, DbError> {
        // For another namespace the call does not exist.
        let before = find(connection, &self.namespace, self.num)?;
        if before.status.is_terminal() {
            return Err(DbError::Ended { status: before.status });
        }
        let cause = TransitionContext::cancelled(before.status, "the call was cancelled");
        match try_apply(connection, self.num, &Event::Cancel, context, cause) {
            Ok(taken) => {
                let running = taken.before.lease.owner.filter(|_| taken.before.status == CallStatus::Running);
                let record = find(connection, &self.namespace, self.num)?;
                Ok(Cancelled { record, running: running.map(|owner| (owner, taken.before.lease.epoch)) })
            }
            Err(NotApplied::Refused(_)) => Err(DbError::Ended { status: load(connection, self.num)?.entry.status }),
            Err(NotApplied::Failed(error)) => Err(error),
        }
    }
}
