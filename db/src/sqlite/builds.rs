//! Builds: claimed, leased and fenced like calls.

use faena_domain::build::MAX_REDELIVERIES;
use faena_domain::build_queue::{BuildEntry, BuildEvent, Refused, Said, step};
use faena_domain::lease::Lease;
use faena_domain::queue::Event;
use faena_domain::{
    BuildFailure, CallError, Epoch, ErrorKind, FunctionId, FunctionName, FunctionStatus, ImageName, Labels, Layer,
    Namespace, Owner, Payload, Version,
};
use faena_protocol::DbError;
use faena_protocol::db::{BuildFinish, BuildGet, BuildRetry, BuildsClaim, Resource};
use faena_protocol::records::{BuildJob, BuildOutcome, BuildRecord, BuildRef};
use rusqlite::{Connection, OptionalExtension, Row};

use super::clock::day;
use super::queue::{self, TransitionContext};
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, Text, not_found};
use super::{access, blobs, call_rows, function_queues, functions, images, internal, nodes};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] =
    &[read::<BuildGet>(), write::<BuildRetry>(), write::<BuildsClaim>(), write::<BuildFinish>()];

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
        .ok_or_else(|| not_found(Resource::Function, function))
}

impl Read for BuildGet {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<BuildRecord, DbError> {
        newest(connection, &self.namespace, &self.function)
    }
}

impl Write for BuildRetry {
    fn changed_function(&self) -> Option<FunctionId> {
        Some(FunctionId::new(&self.namespace, &self.function))
    }

    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<BuildRecord, DbError> {
        let build = newest(connection, &self.namespace, &self.function)?;
        if build.status == FunctionStatus::Ready {
            let message = format!("version {} of {} is built already", build.version, self.function);
            return Err(DbError::Conflict { message });
        }
        functions::check_build_time(connection, &self.namespace, context.wall)?;
        let (namespace, function) = (self.namespace.clone(), self.function.clone());
        let reference = BuildRef { namespace, function, version: build.version };
        if apply(connection, &reference, &BuildEvent::Again, context)?.is_ok() {
            connection
                .execute(
                    "UPDATE versions SET error = NULL, log = NULL, log_tail = ''
                     WHERE namespace = ?1 AND function = ?2 AND version = ?3",
                    key(&reference),
                )
                .map_err(|error| internal("trying a build again", &error))?;
        }
        newest(connection, &self.namespace, &self.function)
    }
}

fn key(build: &BuildRef) -> (&str, String, i64) {
    (build.namespace.as_str(), build.function.key(), build.version.0)
}

fn load(connection: &Connection, build: &BuildRef) -> rusqlite::Result<Option<BuildEntry>> {
    connection
        .prepare_cached(
            "SELECT status, epoch, worker, incarnation, lease_end, redeliveries FROM versions
             WHERE namespace = ?1 AND function = ?2 AND version = ?3",
        )?
        .query_row(key(build), |row| {
            let (Text(status), worker, incarnation): (_, Option<String>, Option<String>) =
                (row.get(0)?, row.get(2)?, row.get(3)?);
            let owner = worker.zip(incarnation).map(|(worker, incarnation)| Owner { worker, incarnation });
            let end = row.get::<_, Option<i64>>(4)?.unwrap_or(0);
            let lease = Lease { epoch: Epoch(row.get(1)?), owner, end };
            Ok(BuildEntry { status, lease, redeliveries: row.get(5)? })
        })
        .optional()
}

/// Adds what a build has taken to the day's time of its namespace.
fn count_time(connection: &Connection, build: &BuildRef, context: &RequestContext<'_>) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO build_time (namespace, day, ms)
             SELECT ?1, ?4, max(?5 - building_since, 0) FROM versions
             WHERE namespace = ?1 AND function = ?2 AND version = ?3 AND building_since IS NOT NULL
             ON CONFLICT DO UPDATE SET ms = ms + excluded.ms",
        )?
        .execute((build.namespace.as_str(), build.function.key(), build.version.0, day(context.wall), context.now))?;
    connection.prepare_cached("DELETE FROM build_time WHERE day < ?1")?.execute([day(context.wall)]).map(drop)
}

/// Takes a step of [`faena_domain::build_queue`] and writes it; what is no build refuses as a stale claim does.
pub(super) fn apply(
    connection: &Connection,
    build: &BuildRef,
    event: &BuildEvent,
    context: &RequestContext<'_>,
) -> Result<Result<BuildEntry, Refused>, DbError> {
    let broken = |error| internal("changing a build", &error);
    let Some(before) = load(connection, build).map_err(broken)? else { return Ok(Err(Refused::Stale)) };
    let after = match step(&before, event, context.now) {
        Ok(after) => after,
        Err(refused) => return Ok(Err(refused)),
    };
    if before.status == FunctionStatus::Building && after.status != FunctionStatus::Building {
        count_time(connection, build, context).map_err(broken)?;
    }
    let (namespace, function, version) = key(build);
    let owner = after.lease.owner.as_ref();
    connection
        .prepare_cached(
            "UPDATE versions SET status = ?4, epoch = ?5, worker = ?6, incarnation = ?7, lease_end = ?8, redeliveries = ?9
             WHERE namespace = ?1 AND function = ?2 AND version = ?3",
        )
        .and_then(|mut statement| {
            statement.execute((
                namespace,
                function,
                version,
                after.status.as_str(),
                after.lease.epoch.0,
                owner.map(|owner| &owner.worker),
                owner.map(|owner| &owner.incarnation),
                after.lease.end,
                after.redeliveries,
            ))
        })
        .map_err(broken)?;
    Ok(Ok(after))
}

/// Pending builds that are looked at in one claim, at most.
const PENDING: u32 = 256;

/// The builds that this very claim took already, else pending ones, now taken: the oldest first, within what one function
/// may hold of the worker's slots.
fn claim(
    request: &BuildsClaim,
    connection: &Connection,
    context: &RequestContext<'_>,
) -> Result<Vec<BuildClaim>, DbError> {
    let broken = |error| internal("claiming builds", &error);
    let again = taken(request, connection).map_err(broken)?;
    if !again.is_empty() {
        return Ok(again);
    }
    let labels = nodes::labels_of(connection, &request.owner)?;
    let pending = pending(request, &labels, connection).map_err(broken)?;
    let mut slots = request.slots.to_slots();
    for build in &pending {
        let function = build.function_id();
        // One that was passed over waits as well.
        let others_wait =
            pending.iter().any(|other| (&other.namespace, &other.function) != (&build.namespace, &build.function));
        if !slots.may_take(&function, others_wait) {
            continue;
        }
        let event = BuildEvent::Claim { owner: request.owner.clone() };
        if apply(connection, build, &event, context)?.is_ok() {
            slots.take(&function);
            let (namespace, function, version) = key(build);
            connection
                .prepare_cached(
                    "UPDATE versions SET claim = ?4, building_since = ?5 WHERE namespace = ?1 AND function = ?2 AND version = ?3",
                )
                .and_then(|mut statement| {
                    statement.execute((namespace, function, version, &request.request, context.now))
                })
                .map_err(broken)?;
        }
    }
    taken(request, connection).map_err(broken)
}

/// The builds that wait for these engines and for a node with these labels: the oldest of each namespace first, then the second of each.
fn pending(request: &BuildsClaim, labels: &Labels, connection: &Connection) -> rusqlite::Result<Vec<BuildRef>> {
    let (of_version, of_namespace) = (nodes::permits("v.nodes", "?3"), nodes::permits("n.nodes", "?3"));
    let mut statement = connection.prepare_cached(&format!(
        "SELECT v.namespace, v.function, v.version FROM versions v JOIN runtime_revisions r
         ON r.namespace = v.namespace AND r.runtime = v.runtime AND r.revision = v.revision
         LEFT JOIN namespaces n ON n.name = v.namespace
         WHERE v.status = 'PENDING' AND coalesce(r.spec ->> 'engine' IN (SELECT value FROM json_each(?1)), 1)
         AND {of_version} AND {of_namespace}
         ORDER BY row_number() OVER (PARTITION BY v.namespace ORDER BY v.created_at), v.created_at LIMIT ?2",
    ))?;
    let rows = statement.query_map((Json(&request.engines), PENDING, Json(labels)), reference)?;
    rows.collect()
}

/// Namespace, function and version as the first columns of a row.
fn reference(row: &Row<'_>) -> rusqlite::Result<BuildRef> {
    let (Text(namespace), Text(function)) = (row.get(0)?, row.get(1)?);
    Ok(BuildRef { namespace, function, version: Version(row.get(2)?) })
}

/// A build that a claim took, and its epoch.
type BuildClaim = (BuildRef, Epoch);

fn taken(request: &BuildsClaim, connection: &Connection) -> rusqlite::Result<Vec<BuildClaim>> {
    let mut statement = connection.prepare_cached(
        "SELECT v.namespace, f.name, v.version, v.epoch FROM versions v
         JOIN functions f ON f.namespace = v.namespace AND f.key = v.function
         WHERE v.claim = ?1 AND v.status = 'BUILDING' ORDER BY v.created_at",
    )?;
    let rows = statement.query_map([&request.request], |row| Ok((reference(row)?, Epoch(row.get(3)?))))?;
    rows.collect()
}

/// Lets go of the image that a version is bound to.
fn release_image(connection: &Connection, build: &BuildRef) -> rusqlite::Result<()> {
    let (namespace, function, version) = key(build);
    let owner = format!("{}{version}", blobs::of_function(namespace, &function));
    connection
        .prepare_cached(
            "DELETE FROM blobs WHERE owner = ?4 AND key = (SELECT image ->> 'key' FROM versions
             WHERE namespace = ?1 AND function = ?2 AND version = ?3)",
        )?
        .execute((namespace, function, version, owner))
        .map(drop)
}

/// Binds a version to what its image is now, where the platform keeps it.
fn bind_image(connection: &Connection, build: &BuildRef, image: &ImageName) -> Result<(), DbError> {
    let content = images::content(connection, image)?;
    let (namespace, function, version) = key(build);
    let bind = || {
        release_image(connection, build)?;
        if let Some(content) = &content {
            let owner = format!("{}{version}", blobs::of_function(namespace, &function));
            blobs::refer_to(connection, &owner, &content.key)?;
        }
        connection
            .prepare_cached("UPDATE versions SET image = ?4 WHERE namespace = ?1 AND function = ?2 AND version = ?3")?
            .execute((namespace, &function, version, content.as_ref().map(Json)))
    };
    bind().map(drop).map_err(|error| internal("binding a version to its image", &error))
}

impl Write for BuildsClaim {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Vec<BuildJob>, DbError> {
        let mut jobs = Vec::new();
        for (build, epoch) in claim(&self, connection, context)? {
            let runtime =
                functions::runtime_of(connection, build.namespace.as_str(), &build.function.key(), build.version.0)
                    .map_err(|error| internal("reading a runtime", &error))?;
            bind_image(connection, &build, &runtime.image)?;
            if let Some(resolved) = functions::code(connection, &build.namespace, &build.function, build.version)? {
                let (env, config) =
                    functions::build_env(connection, (&build.namespace, &build.function, build.version))?;
                jobs.push(BuildJob { epoch, runtime, code: resolved.code, env, config });
            }
        }
        Ok(jobs)
    }
}

impl Write for BuildFinish {
    fn changed_function(&self) -> Option<FunctionId> {
        Some(FunctionId::new(&self.namespace, &self.function))
    }

    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        let said = match &self.outcome {
            None => Said::GiveBack,
            Some(outcome) => outcome.result.as_ref().map_or_else(|failure| Said::Failed(failure.kind), |_| Said::Built),
        };
        let build =
            BuildRef { namespace: self.namespace.clone(), function: self.function.clone(), version: self.version };
        let event = BuildEvent::Of { epoch: self.epoch, owner: self.owner.clone(), said };
        match (apply(connection, &build, &event, context)?, &self.outcome) {
            (Err(Refused::Already), _) => Ok(()),
            (Err(Refused::Stale | Refused::NotDue), _) => Err(DbError::Stale),
            (Ok(after), Some(outcome)) if matches!(after.status, FunctionStatus::Ready | FunctionStatus::Error) => {
                end(&build, connection, outcome, context)?;
                let function = FunctionId::new(&build.namespace, &build.function);
                access::note_public(connection, context, &function).map_err(|error| internal("ending a build", &error))
            }
            // It is built again.
            (Ok(_), _) => Ok(()),
        }
    }
}

/// Writes how a build ended, and what that means for the calls that wait for it.
fn end(
    build: &BuildRef,
    connection: &Connection,
    outcome: &BuildOutcome,
    context: &RequestContext<'_>,
) -> Result<(), DbError> {
    let (artifact, error) = match &outcome.result {
        Ok(artifact) => (Some(Text(*artifact)), None),
        Err(failure) => (None, Some(failure)),
    };
    let tail = if error.is_some() { outcome.log_tail.as_str() } else { "" };
    let write = || -> rusqlite::Result<()> {
        let (namespace, function, version) = key(build);
        let engine = outcome.engine.map(Text);
        let (failure, log) = (error.map(Json), Json(&outcome.log));
        connection.execute(
            "UPDATE versions SET engine = ?4, image_id = ?5, artifact = ?6, error = ?7, log = ?8, log_tail = ?9, built_at = ?10
             WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            (namespace, &function, version, engine, &outcome.image_id, artifact, failure, log, tail, context.now),
        )?;
        let owner = format!("{}{version}", blobs::of_function(namespace, &function));
        blobs::refer(connection, &owner, [&outcome.log])?;
        if let Ok(artifact) = &outcome.result {
            blobs::refer_to(connection, &owner, artifact)?;
            release_calls(connection, build, outcome, context.now)?;
        } else {
            // A build that is tried again has the image of that time.
            release_image(connection, build)?;
        }
        Ok(())
    };
    write().map_err(|error| internal("ending a build", &error))?;
    error.map_or(Ok(()), |failure| fail_calls(connection, build, failure, context))
}

/// The version is what calls run from now on, and those that waited for it can be claimed.
fn release_calls(connection: &Connection, build: &BuildRef, outcome: &BuildOutcome, now: i64) -> rusqlite::Result<()> {
    let key = (build.namespace.as_str(), build.function.key());
    let is_current = connection.execute(
        "UPDATE functions SET current = ?3 WHERE namespace = ?1 AND key = ?2 AND coalesce(current, 0) < ?3",
        (key.0, &key.1, build.version.0),
    )? == 1;
    if is_current
        && let Ok(Some(resolved)) = functions::code(connection, &build.namespace, &build.function, build.version)
    {
        function_queues::set_concurrency(connection, key.0, &key.1, resolved.code.concurrency)?;
    }
    connection.execute(
        // `Event::Built` for all of them at once.
        "UPDATE calls INDEXED BY calls_waiting SET ready = 1, due = not_before <= ?5 AND run_at IS NULL, engine = ?4
         WHERE namespace = ?1 AND function = ?2 AND version = ?3 AND status = 'PENDING'",
        (key.0, &key.1, build.version.0, outcome.engine.map(Text), now),
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
    build: &BuildRef,
    failure: &BuildFailure,
    context: &RequestContext<'_>,
) -> Result<(), DbError> {
    let waiting = "SELECT num FROM calls INDEXED BY calls_waiting
         WHERE namespace = ?1 AND function = ?2 AND version = ?3 AND status = 'PENDING'";
    for num in call_rows::numbers(connection, waiting, key(build))? {
        let cause = TransitionContext { error: Some(call_error(failure)), ..TransitionContext::default() };
        queue::apply(connection, num, &Event::BuildFailed, context, cause)?;
    }
    Ok(())
}

/// Builds of a worker that is gone, or whose lease has ended, are started again, a few times; returns how many there were.
pub(super) fn lose(
    connection: &Connection,
    condition: &str,
    params: impl rusqlite::Params,
    context: &RequestContext<'_>,
) -> Result<u64, DbError> {
    let lost = || -> rusqlite::Result<Vec<BuildRef>> {
        let query =
            format!("SELECT namespace, function, version FROM versions WHERE status = 'BUILDING' AND {condition}");
        connection.prepare_cached(&query)?.query_map(params, reference)?.collect()
    };
    let lost = lost().map_err(|error| internal("looking for lost builds", &error))?;
    for build in &lost {
        if let Ok(BuildEntry { status: FunctionStatus::Error, .. }) =
            apply(connection, build, &BuildEvent::Lost, context)?
        {
            give_up(connection, build, context)?;
        }
    }
    Ok(lost.len() as u64)
}

fn give_up(connection: &Connection, build: &BuildRef, context: &RequestContext<'_>) -> Result<(), DbError> {
    let failure = BuildFailure {
        kind: ErrorKind::Infrastructure,
        message: format!(
            "the build was given up: after {MAX_REDELIVERIES} others one more worker was lost while it ran"
        ),
    };
    let (namespace, function, version) = key(build);
    connection
        .execute(
            "UPDATE versions SET error = ?4, built_at = ?5 WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            (namespace, function, version, Json(&failure), context.now),
        )
        .map_err(|error| internal("giving builds up", &error))?;
    fail_calls(connection, build, &failure, context)
}
