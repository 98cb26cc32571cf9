//! Builds: claimed, leased and fenced like calls.

use faena_domain::build::MAX_REDELIVERIES;
use faena_domain::queue::{Event, LEASE_MS};
use faena_domain::{
    BuildFailure, CallError, Epoch, ErrorKind, FunctionName, FunctionStatus, Layer, Namespace, Owner, Payload, Version,
};
use faena_protocol::DbError;
use faena_protocol::db::{BuildFinish, BuildGet, BuildRef, BuildRetry, BuildsClaim};
use faena_protocol::records::{BuildJob, BuildOutcome, BuildRecord};
use rusqlite::{Connection, OptionalExtension};

use super::queue::{TransitionContext, apply, numbers};
use super::requests::{Read, RequestContext, Write};
use super::rows::{Json, Text, not_found};
use super::{blobs, function_queues, functions, internal};

fn newest(connection: &Connection, namespace: &Namespace, function: &FunctionName) -> Result<BuildRecord, DbError> {
    connection
        .query_row(
            "SELECT version, status, error, log FROM versions WHERE namespace = ?1 AND function = ?2
             ORDER BY version DESC LIMIT 1",
            (namespace.as_str(), function.key()),
            |row| {
                let Text(status) = row.get(1)?;
                let log = row.get::<_, Option<Json<Payload>>>(3)?.map_or_else(Payload::empty, |json| json.0);
                Ok(BuildRecord {
                    version: Version(row.get(0)?),
                    status,
                    error: row.get::<_, Option<Json<_>>>(2)?.map(|json| json.0),
                    log,
                })
            },
        )
        .optional()
        .map_err(|error| internal("reading a build", &error))?
        .ok_or_else(|| not_found("function", function))
}

impl Read for BuildGet {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<BuildRecord, DbError> {
        newest(connection, &self.namespace, &self.function)
    }
}

impl Write for BuildRetry {
    const CHANGES_FUNCTIONS: bool = true;

    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<BuildRecord, DbError> {
        let build = newest(connection, &self.namespace, &self.function)?;
        if build.status == FunctionStatus::Ready {
            let message = format!("version {} of {} is built already", build.version, self.function);
            return Err(DbError::Conflict { message });
        }
        connection
            .execute(
                "UPDATE versions SET status = 'PENDING', error = NULL, log = NULL, log_tail = '', redeliveries = 0
                 WHERE namespace = ?1 AND function = ?2 AND version = ?3 AND status = 'ERROR'",
                (self.namespace.as_str(), self.function.key(), build.version.0),
            )
            .map_err(|error| internal("trying a build again", &error))?;
        newest(connection, &self.namespace, &self.function)
    }
}

type Key = (String, String, String, i64, i64);

/// Pending builds that are looked at in one claim, at most.
const PENDING: u32 = 256;

/// The builds that this very claim took already, else pending ones, now taken: the oldest first, within what one function
/// may hold of the worker's slots.
fn claim(request: &BuildsClaim, connection: &Connection, now: i64) -> rusqlite::Result<Vec<Key>> {
    let again = taken(request, connection)?;
    if !again.is_empty() {
        return Ok(again);
    }
    let pending = pending(request, connection)?;
    let mut slots = request.slots.ledger();
    for (index, (function, version)) in pending.iter().enumerate() {
        // One that was passed over waits as well.
        let others_wait = pending.iter().enumerate().any(|(other, build)| other != index && build.0 != *function);
        if !slots.may_take(function, others_wait) {
            continue;
        }
        slots.take(function);
        connection
            .prepare_cached(
                "UPDATE versions SET status = 'BUILDING', epoch = epoch + 1, worker = ?1, incarnation = ?2, lease_end = ?3, claim = ?4
                 WHERE namespace = ?5 AND function = ?6 AND version = ?7",
            )?
            .execute((
                &request.owner.worker,
                &request.owner.incarnation,
                now + LEASE_MS,
                &request.request,
                function.0.as_str(),
                &function.1,
                version.0,
            ))?;
    }
    taken(request, connection)
}

/// The builds that wait for these engines, the oldest first.
fn pending(request: &BuildsClaim, connection: &Connection) -> rusqlite::Result<Vec<((Namespace, String), Version)>> {
    let mut statement = connection.prepare_cached(
        "SELECT v.namespace, v.function, v.version FROM versions v JOIN runtime_revisions r
         ON r.namespace = v.namespace AND r.runtime = v.runtime AND r.revision = v.revision
         WHERE v.status = 'PENDING' AND coalesce(r.spec ->> 'engine' IN (SELECT value FROM json_each(?1)), 1)
         ORDER BY v.created_at LIMIT ?2",
    )?;
    let rows = statement.query_map((Json(&request.engines), PENDING), |row| {
        let Text(namespace) = row.get(0)?;
        Ok(((namespace, row.get(1)?), Version(row.get(2)?)))
    })?;
    rows.collect()
}

fn taken(request: &BuildsClaim, connection: &Connection) -> rusqlite::Result<Vec<Key>> {
    let mut statement = connection.prepare_cached(
        "SELECT v.namespace, v.function, f.name, v.version, v.epoch FROM versions v
         JOIN functions f ON f.namespace = v.namespace AND f.key = v.function
         WHERE v.claim = ?1 AND v.status = 'BUILDING' ORDER BY v.created_at",
    )?;
    let rows = statement
        .query_map([&request.request], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?;
    rows.collect()
}

impl Write for BuildsClaim {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Vec<BuildJob>, DbError> {
        let claimed = claim(&self, connection, context.now).map_err(|error| internal("claiming builds", &error))?;
        let mut jobs = Vec::with_capacity(claimed.len());
        for (namespace, key, name, version, epoch) in claimed {
            let broken = |what: &str| DbError::Internal { message: format!("a row holds {what}, which is none") };
            let space: Namespace = namespace.parse().map_err(|_| broken("a namespace"))?;
            let function: FunctionName = name.parse().map_err(|_| broken("a name"))?;
            let runtime = functions::runtime_of(connection, &namespace, &key, version)
                .map_err(|error| internal("reading a runtime", &error))?;
            if let Some(resolved) = functions::code(connection, &space, &function, Version(version))? {
                jobs.push(BuildJob { epoch: Epoch(epoch), runtime, code: resolved.code });
            }
        }
        Ok(jobs)
    }
}

/// Status, epoch, worker and incarnation.
type Claim = (Text<FunctionStatus>, i64, Option<String>, Option<String>);

impl Write for BuildFinish {
    const CHANGES_FUNCTIONS: bool = true;

    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        let row: Option<Claim> = connection
            .query_row(
                "SELECT status, epoch, worker, incarnation FROM versions WHERE namespace = ?1 AND function = ?2 AND version = ?3",
                (self.namespace.as_str(), self.function.key(), self.version.0),
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
            )
            .optional()
            .map_err(|error| internal("reading a build", &error))?;
        let Some((Text(status), epoch, Some(worker), Some(incarnation))) = row else { return Err(DbError::Stale) };
        if epoch != self.epoch.0 || worker != self.owner.worker || incarnation != self.owner.incarnation {
            return Err(DbError::Stale);
        }
        if status != FunctionStatus::Building {
            return Ok(());
        }
        match &self.outcome {
            None => give_back(&self, connection).map_err(|error| internal("ending a build", &error)),
            Some(outcome) => end(&self, connection, outcome, context),
        }
    }
}

fn give_back(request: &BuildFinish, connection: &Connection) -> rusqlite::Result<()> {
    connection
        .execute(
            "UPDATE versions SET status = 'PENDING' WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            (request.namespace.as_str(), request.function.key(), request.version.0),
        )
        .map(drop)
}

fn end(
    request: &BuildFinish,
    connection: &Connection,
    outcome: &BuildOutcome,
    context: &RequestContext<'_>,
) -> Result<(), DbError> {
    let (status, artifact, error) = match &outcome.result {
        Ok(artifact) => (FunctionStatus::Ready, Some(Text(*artifact)), None),
        Err(failure) => (FunctionStatus::Error, None, Some(failure)),
    };
    if error.is_some_and(|failure| failure.kind == ErrorKind::Infrastructure) && build_again(request, connection)? {
        return Ok(());
    }
    let tail = if error.is_some() { outcome.log_tail.as_str() } else { "" };
    let write = || -> rusqlite::Result<()> {
        connection.execute(
        "UPDATE versions SET status = ?4, engine = ?5, image_id = ?6, artifact = ?7, error = ?8, log = ?9, log_tail = ?10,
             built_at = ?11
         WHERE namespace = ?1 AND function = ?2 AND version = ?3",
        (request.namespace.as_str(), request.function.key(), request.version.0, status.as_str(), outcome.engine.map(Text),
            &outcome.image_id, artifact, error.map(Json), Json(&outcome.log), tail, context.now),
        )?;
        let owner =
            format!("{}{}", blobs::of_function(request.namespace.as_str(), &request.function.key()), request.version);
        blobs::refer(connection, &owner, [&outcome.log])?;
        if let Ok(artifact) = &outcome.result {
            blobs::refer_to(connection, &owner, artifact)?;
            release_calls(connection, request, outcome, context.now)?;
        }
        Ok(())
    };
    write().map_err(|error| internal("ending a build", &error))?;
    match error {
        None => Ok(()),
        Some(failure) => fail_calls(
            connection,
            request.namespace.as_str(),
            &request.function.key(),
            request.version,
            failure,
            context,
        ),
    }
}

/// The platform's own failure is no verdict on the version: it is built again, a few times; false where it was often enough.
fn build_again(request: &BuildFinish, connection: &Connection) -> Result<bool, DbError> {
    connection
        .execute(
            "UPDATE versions SET status = 'PENDING', worker = NULL, incarnation = NULL, redeliveries = redeliveries + 1
             WHERE namespace = ?1 AND function = ?2 AND version = ?3 AND redeliveries < ?4",
            (request.namespace.as_str(), request.function.key(), request.version.0, MAX_REDELIVERIES),
        )
        .map(|count| count == 1)
        .map_err(|error| internal("redelivering a build", &error))
}

/// The version is what calls run from now on, and those that waited for it can be claimed.
fn release_calls(
    connection: &Connection,
    request: &BuildFinish,
    outcome: &BuildOutcome,
    now: i64,
) -> rusqlite::Result<()> {
    let key = (request.namespace.as_str(), request.function.key());
    let is_current = connection.execute(
        "UPDATE functions SET current = ?3 WHERE namespace = ?1 AND key = ?2 AND coalesce(current, 0) < ?3",
        (key.0, &key.1, request.version.0),
    )? == 1;
    if is_current
        && let Ok(Some(resolved)) = functions::code(connection, &request.namespace, &request.function, request.version)
    {
        function_queues::set_concurrency(connection, key.0, &key.1, resolved.code.concurrency)?;
    }
    connection.execute(
        // `Event::Built` for all of them at once.
        "UPDATE calls INDEXED BY calls_waiting SET ready = 1, due = not_before <= ?5 AND run_at IS NULL, engine = ?4
         WHERE namespace = ?1 AND function = ?2 AND version = ?3 AND status = 'PENDING'",
        (key.0, &key.1, request.version.0, outcome.engine.map(Text), now),
    )?;
    Ok(())
}

/// The error of a call whose version could not be built.
pub(super) fn call_error(failure: &BuildFailure) -> CallError {
    let kind = if failure.kind == ErrorKind::Image { ErrorKind::Image } else { ErrorKind::Build };
    CallError::new(kind, Layer::Build, failure.message.clone())
}

fn fail_calls(
    connection: &Connection,
    namespace: &str,
    function: &str,
    version: Version,
    failure: &BuildFailure,
    context: &RequestContext<'_>,
) -> Result<(), DbError> {
    let waiting = "SELECT num FROM calls INDEXED BY calls_waiting
         WHERE namespace = ?1 AND function = ?2 AND version = ?3 AND status = 'PENDING'";
    for num in numbers(connection, waiting, (namespace, function, version.0))? {
        let cause = TransitionContext { error: Some(call_error(failure)), ..TransitionContext::default() };
        apply(connection, num, &Event::BuildFailed, context, cause)?;
    }
    Ok(())
}

/// Renews the lease of a build; false where it is another's, or has ended.
pub(super) fn renew(
    connection: &Connection,
    build: &BuildRef,
    epoch: Epoch,
    owner: &Owner,
    lease_end: i64,
) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "UPDATE versions SET lease_end = ?7 WHERE namespace = ?1 AND function = ?2 AND version = ?3
             AND status = 'BUILDING' AND epoch = ?4 AND worker = ?5 AND incarnation = ?6",
        )?
        .execute((
            build.namespace.as_str(),
            build.function.key(),
            build.version.0,
            epoch.0,
            &owner.worker,
            &owner.incarnation,
            lease_end,
        ))
        .map(|count| count == 1)
}

/// Builds of a worker that is gone, or whose lease has ended, begin anew, a few times.
pub(super) fn redeliver(
    connection: &Connection,
    condition: &str,
    params: impl rusqlite::Params,
    context: &RequestContext<'_>,
) -> Result<u64, DbError> {
    let restart = || -> rusqlite::Result<usize> {
        connection
            .prepare_cached(&format!(
                "UPDATE versions SET status = 'PENDING', worker = NULL, incarnation = NULL, redeliveries = redeliveries + 1
                 WHERE status = 'BUILDING' AND {condition}"
            ))?
            .execute(params)
    };
    let count = restart().map_err(|error| internal("redelivering builds", &error))?;
    if count > 0 {
        give_up(connection, context)?;
    }
    Ok(count as u64)
}

fn hopeless(connection: &Connection) -> rusqlite::Result<Vec<(String, String, i64)>> {
    connection
        .prepare("SELECT namespace, function, version FROM versions WHERE status = 'PENDING' AND redeliveries > ?1")?
        .query_map([MAX_REDELIVERIES], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect()
}

fn give_up(connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
    let broken = |error| internal("giving builds up", &error);
    for (namespace, function, version) in hopeless(connection).map_err(broken)? {
        let failure = BuildFailure {
            kind: ErrorKind::Infrastructure,
            message: format!("the build was given up after {MAX_REDELIVERIES} workers were lost while it ran"),
        };
        connection
            .execute(
                "UPDATE versions SET status = 'ERROR', error = ?4, built_at = ?5
                 WHERE namespace = ?1 AND function = ?2 AND version = ?3",
                (&namespace, &function, version, Json(&failure), context.now),
            )
            .map_err(broken)?;
        fail_calls(connection, &namespace, &function, Version(version), &failure, context)?;
    }
    Ok(())
}
