//! Calls: accepted, claimed, ended, read.

use faena_domain::limits::LIST_CUT;
use faena_domain::retry::{self, DEFAULT_RETRIES};
use faena_domain::{
    Attempt, CallError, CallNum, CallStatus, EngineKind, Epoch, FunctionStatus, Namespace, Payload, Version,
};
use faena_protocol::DbError;
use faena_protocol::db::{
    CallAccept, CallAdopt, CallFinish, CallGet, CallList, CallNumReserve, CallRecordEnded, CallsClaim,
};
use faena_protocol::records::{CallJob, CallRecord, CallSpec, Outcome};
use rusqlite::{Connection, OptionalExtension, Row, ToSql};

use super::requests::{Read, Write};
use super::rows::{Json, Text, not_found};
use super::workers::LEASE_MS;
use super::{builds, functions, internal};

/// The most calls of one function that wait.
const MAX_PENDING_OF_FUNCTION: i64 = 10_000;
const NEXT_NUM: &str = "next_call";

impl Write for CallNumReserve {
    fn write(self, connection: &Connection, _now: i64) -> Result<CallNum, DbError> {
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

const COLUMNS: &str = "num, spec, version, status, result, error, logs, engine, attempts, created_at, ended_at";

fn record(row: &Row<'_>) -> rusqlite::Result<CallRecord> {
    let Json(spec): Json<CallSpec> = row.get(1)?;
    let (Text(status), Json(result), Json(logs), Json(attempts)) = (row.get(3)?, row.get(4)?, row.get(6)?, row.get(8)?);
    Ok(CallRecord {
        num: CallNum(row.get(0)?),
        function: spec.function,
        version: Version(row.get(2)?),
        params: spec.params,
        status,
        result,
        error: row.get::<_, Option<Json<CallError>>>(5)?.map(|json| json.0),
        logs,
        engine: row.get::<_, Option<Text<EngineKind>>>(7)?.map(|text| text.0),
        attempts,
        created_at: row.get(9)?,
        ended_at: row.get(10)?,
        traceparent: spec.traceparent,
    })
}

fn find(connection: &Connection, namespace: &Namespace, num: CallNum) -> Result<CallRecord, DbError> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM calls WHERE num = ?1 AND namespace = ?2"))
        .and_then(|mut statement| statement.query_row((num.0, namespace.as_str()), record).optional())
        .map_err(|error| internal("reading a call", &error))?
        .ok_or_else(|| not_found("call", &num))
}

fn exists(connection: &Connection, num: CallNum) -> Result<bool, DbError> {
    connection
        .prepare_cached("SELECT 1 FROM calls WHERE num = ?1")
        .and_then(|mut statement| statement.exists([num.0]))
        .map_err(|error| internal("looking for a call", &error))
}

/// A row about to be written.
struct NewCall<'a> {
    spec: &'a CallSpec,
    version: Version,
    ready: bool,
    engine: Option<EngineKind>,
    status: CallStatus,
    error: Option<CallError>,
    retries: u32,
    created_at: i64,
}

impl NewCall<'_> {
    fn insert(&self, connection: &Connection) -> Result<(), DbError> {
        let expires_at = self.created_at.saturating_add(i64::try_from(self.spec.max_age_ms).unwrap_or(i64::MAX));
        let ended_at = self.status.is_terminal().then_some(self.created_at);
        connection
            .prepare_cached(
                "INSERT INTO calls (num, namespace, function, version, status, spec, ready, engine, error, retries, created_at,
                     queued_at, not_before, expires_at, ended_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?13, ?7, ?8, ?9, ?10, ?10, ?10, ?11, ?12)",
            )
            .and_then(|mut statement| {
                statement.execute((self.spec.num.0, self.spec.namespace.as_str(), self.spec.function.key(), self.version.0,
                    self.status.as_str(), Json(self.spec), self.engine.map(Text), self.error.as_ref().map(Json),
                    self.retries, self.created_at, expires_at, ended_at, self.ready))
            })
            .map(drop)
            .map_err(|error| internal("writing a call", &error))
    }
}

fn pending(connection: &Connection, spec: &CallSpec) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("SELECT pending FROM backlog WHERE namespace = ?1 AND function = ?2")?
        .query_row((spec.namespace.as_str(), spec.function.key()), |row| row.get(0))
        .optional()
        .map(Option::unwrap_or_default)
}

impl Write for CallAccept {
    fn write(self, connection: &Connection, now: i64) -> Result<CallRecord, DbError> {
        let spec = &self.spec;
        if exists(connection, spec.num)? {
            return find(connection, &spec.namespace, spec.num);
        }
        let resolved = functions::resolve(connection, &spec.namespace, &spec.function, self.version)?;
        if pending(connection, spec).map_err(|error| internal("counting calls", &error))? >= MAX_PENDING_OF_FUNCTION {
            return Err(DbError::Full);
        }
        let failure = match resolved.status {
            FunctionStatus::Error => build_error(connection, spec, resolved.code.version)?,
            _ => None,
        };
        let call = NewCall {
            spec,
            version: resolved.code.version,
            ready: resolved.status == FunctionStatus::Ready,
            engine: resolved.code.engine,
            status: if failure.is_some() { CallStatus::Failed } else { CallStatus::Pending },
            error: failure,
            retries: spec.retries.or(resolved.retries).unwrap_or(DEFAULT_RETRIES),
            created_at: now,
        };
        call.insert(connection)?;
        find(connection, &spec.namespace, spec.num)
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

impl Write for CallRecordEnded {
    fn write(self, connection: &Connection, _now: i64) -> Result<(), DbError> {
        let call = self.call;
        let spec = CallSpec {
            num: call.num,
            namespace: self.namespace,
            function: call.function,
            params: call.params,
            body: None,
            direct: false,
            timeout_ms: None,
            max_age_ms: 0,
            retries: None,
            traceparent: call.traceparent,
        };
        connection
            .prepare_cached(
                "INSERT INTO calls (num, namespace, function, version, status, spec, engine, result, error, logs, attempts,
                     retries, created_at, queued_at, not_before, expires_at, ended_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, 0, ?12, ?12, ?12, ?12, ?13)
                 ON CONFLICT DO NOTHING",
            )
            .and_then(|mut statement| {
                statement.execute((call.num.0, spec.namespace.as_str(), spec.function.key(), call.version.0,
                    call.status.as_str(), Json(&spec), call.engine.map(Text), Json(&call.result),
                    call.error.as_ref().map(Json), Json(&call.logs), Json(&call.attempts), call.created_at, call.ended_at))
            })
            .map(drop)
            .map_err(|error| internal("recording a call", &error))
    }
}

impl Write for CallAdopt {
    fn write(self, connection: &Connection, now: i64) -> Result<CallRecord, DbError> {
        let spec = &self.spec;
        if !exists(connection, spec.num)? {
            let resolved = functions::resolve(connection, &spec.namespace, &spec.function, Some(self.version))?;
            let call = NewCall {
                spec,
                version: self.version,
                ready: resolved.status == FunctionStatus::Ready,
                engine: resolved.code.engine,
                status: CallStatus::Pending,
                error: None,
                retries: spec.retries.unwrap_or(0),
                created_at: self.created_at,
            };
            call.insert(connection)?;
            if let Some((owner, epoch)) = &self.running {
                connection
                    .execute(
                        "UPDATE calls SET status = 'RUNNING', epoch = ?2, worker = ?3, incarnation = ?4, lease_end = ?5 WHERE num = ?1",
                        (spec.num.0, epoch.0, &owner.worker, &owner.incarnation, now + LEASE_MS),
                    )
                    .map_err(|error| internal("adopting a call", &error))?;
            }
        }
        find(connection, &spec.namespace, spec.num)
    }
}

/// A claimed row, before it becomes a job.
struct Claimed {
    spec: CallSpec,
    version: Version,
    epoch: i64,
    attempts: u32,
    queued_at: i64,
    expires_at: i64,
}

fn claim(request: &CallsClaim, connection: &Connection, now: i64) -> rusqlite::Result<Vec<Claimed>> {
    let again = taken(request, connection)?;
    if !again.is_empty() {
        return Ok(again);
    }
    let engines = Json(&request.engines);
    connection
        .prepare_cached(
            "UPDATE calls SET status = 'RUNNING', epoch = epoch + 1, worker = ?1, incarnation = ?2, lease_end = ?3, claim = ?4
             WHERE num IN (
                 SELECT num FROM calls WHERE status = 'PENDING' AND ready = 1 AND not_before <= ?5 AND expires_at > ?5
                 AND engine IN (SELECT value FROM json_each(?6)) ORDER BY num LIMIT ?7)",
        )?
        .execute((
            &request.owner.worker,
            &request.owner.incarnation,
            now + LEASE_MS,
            &request.request,
            now,
            engines,
            request.limit,
        ))?;
    taken(request, connection)
}

fn taken(request: &CallsClaim, connection: &Connection) -> rusqlite::Result<Vec<Claimed>> {
    let mut statement = connection.prepare_cached(
        "SELECT spec, version, epoch, json_array_length(attempts), queued_at, expires_at FROM calls
         WHERE claim = ?1 AND status = 'RUNNING' ORDER BY num",
    )?;
    let rows = statement.query_map([&request.request], |row| {
        let Json(spec) = row.get(0)?;
        Ok(Claimed {
            spec,
            version: Version(row.get(1)?),
            epoch: row.get(2)?,
            attempts: row.get(3)?,
            queued_at: row.get(4)?,
            expires_at: row.get(5)?,
        })
    })?;
    rows.collect()
}

fn millis(span: i64) -> u64 {
    u64::try_from(span).unwrap_or(0)
}

impl Write for CallsClaim {
    fn write(self, connection: &Connection, now: i64) -> Result<Vec<CallJob>, DbError> {
        let claimed = claim(&self, connection, now).map_err(|error| internal("claiming calls", &error))?;
        let mut jobs = Vec::with_capacity(claimed.len());
        for call in claimed {
            let spec = call.spec;
            let Some(resolved) = functions::code(connection, &spec.namespace, &spec.function, call.version)? else {
                continue;
            };
            let asked = spec.timeout_ms.unwrap_or(resolved.code.limits.timeout.0);
            let left = millis(call.expires_at - now);
            let timeout_ms = asked.min(left);
            jobs.push(CallJob {
                num: spec.num,
                epoch: Epoch(call.epoch),
                attempt: call.attempts + 1,
                code: resolved.code,
                params: spec.params,
                body: spec.body,
                direct: spec.direct,
                timeout_ms,
                expires: left < asked,
                deadline_unix_ms: now.saturating_add(i64::try_from(timeout_ms).unwrap_or(i64::MAX)),
                queue_ms: millis(now - call.queued_at),
                traceparent: spec.traceparent,
                has_row: true,
            });
        }
        Ok(jobs)
    }
}

/// What a write after a claim is judged by.
struct Fence {
    status: CallStatus,
    epoch: i64,
    worker: Option<String>,
    incarnation: Option<String>,
    failures: u32,
    retries: u32,
    expires_at: i64,
    attempts: Vec<Attempt>,
}

impl Fence {
    fn read(connection: &Connection, num: CallNum) -> Result<Self, DbError> {
        connection
            .prepare_cached(
                "SELECT status, epoch, worker, incarnation, failures, retries, expires_at, attempts FROM calls WHERE num = ?1",
            )
            .and_then(|mut statement| {
                statement
                    .query_row([num.0], |row| {
                        let (Text(status), Json(attempts)) = (row.get(0)?, row.get(7)?);
                        Ok(Self {
                            status,
                            epoch: row.get(1)?,
                            worker: row.get(2)?,
                            incarnation: row.get(3)?,
                            failures: row.get(4)?,
                            retries: row.get(5)?,
                            expires_at: row.get(6)?,
                            attempts,
                        })
                    })
                    .optional()
            })
            .map_err(|error| internal("reading a claim", &error))?
            .ok_or_else(|| not_found("call", &num))
    }
}

fn uniform(connection: &Connection) -> rusqlite::Result<f64> {
    connection.query_row("SELECT abs(random() % 1000000) / 1000000.0", [], |row| row.get(0))
}

impl Write for CallFinish {
    fn write(self, connection: &Connection, now: i64) -> Result<CallStatus, DbError> {
        let fence = Fence::read(connection, self.num)?;
        let owned = fence.epoch == self.epoch.0
            && fence.worker.as_ref() == Some(&self.owner.worker)
            && fence.incarnation.as_ref() == Some(&self.owner.incarnation);
        if !owned {
            return Err(DbError::Stale);
        }
        if fence.status != CallStatus::Running {
            return Ok(fence.status);
        }
        let written = match self.outcome {
            None => give_back(connection, self.num, now),
            Some(outcome) => end(connection, self.num, &fence, outcome, now),
        };
        written.map_err(|error| internal("ending an attempt", &error))
    }
}

fn give_back(connection: &Connection, num: CallNum, now: i64) -> rusqlite::Result<CallStatus> {
    connection.execute(
        "UPDATE calls SET status = 'PENDING', not_before = ?2, queued_at = ?2, claim = NULL WHERE num = ?1",
        (num.0, now),
    )?;
    Ok(CallStatus::Pending)
}

fn end(
    connection: &Connection,
    num: CallNum,
    fence: &Fence,
    outcome: Outcome,
    now: i64,
) -> rusqlite::Result<CallStatus> {
    let kind = outcome.error.as_ref().map(|error| error.kind);
    let failures = fence.failures + u32::from(outcome.status != CallStatus::Done);
    let not_before = now.saturating_add(i64::try_from(retry::pause_ms(failures, uniform(connection)?)).unwrap_or(0));
    let again = retry::is_retried(outcome.status, kind, failures, fence.retries) && not_before < fence.expires_at;
    let mut attempts = fence.attempts.clone();
    attempts.push(Attempt { error: outcome.error.clone(), ..outcome.attempt });
    if again {
        connection.prepare_cached(
            "UPDATE calls SET status = 'PENDING', failures = ?2, attempts = ?3, not_before = ?4, queued_at = ?5, claim = NULL
             WHERE num = ?1",
        )?
        .execute((num.0, failures, Json(attempts), not_before, now))?;
        return Ok(CallStatus::Pending);
    }
    connection.prepare_cached(
        "UPDATE calls SET status = ?2, failures = ?3, attempts = ?4, result = ?5, error = ?6, logs = ?7, ended_at = ?8
         WHERE num = ?1",
    )?
    .execute((num.0, outcome.status.as_str(), failures, Json(attempts), Json(&outcome.result),
        outcome.error.as_ref().map(Json), Json(&outcome.logs), now))?;
    Ok(outcome.status)
}

impl Read for CallGet {
    fn read(self, connection: &Connection) -> Result<CallRecord, DbError> {
        find(connection, &self.namespace, self.num)
    }
}

impl Read for CallList {
    fn read(self, connection: &Connection) -> Result<Vec<CallRecord>, DbError> {
        let mut sql = format!("SELECT {COLUMNS} FROM calls WHERE namespace = ?1 AND num < ?2");
        let before = self.before.map_or(i64::MAX, |num| num.0);
        let function = self.function.map(|function| function.key());
        let status = self.status.map(CallStatus::as_str);
        let namespace = self.namespace.as_str();
        let mut params: Vec<&dyn ToSql> = vec![&namespace, &before, &self.limit];
        if let Some(function) = &function {
            params.push(function);
            sql.push_str(&format!(" AND function = ?{}", params.len()));
        }
        if let Some(status) = &status {
            params.push(status);
            sql.push_str(&format!(" AND status = ?{}", params.len()));
        }
        sql.push_str(" ORDER BY num DESC LIMIT ?3");
        let list = || -> rusqlite::Result<Vec<CallRecord>> {
            let mut statement = connection.prepare_cached(&sql)?;
            statement.query_map(params.as_slice(), record)?.collect()
        };
        let mut calls = list().map_err(|error| internal("listing calls", &error))?;
        calls.iter_mut().for_each(shorten);
        Ok(calls)
    }
}

/// What a list shows of a call: enough of long texts to tell that there is more, and no log.
fn shorten(call: &mut CallRecord) {
    call.logs = Payload::empty();
    for payload in [&mut call.params, &mut call.result] {
        if let Payload::Text(text) = payload {
            // One character beyond the cut shows that it was one.
            let end = (LIST_CUT + 1..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
            text.truncate(end);
        }
    }
}
