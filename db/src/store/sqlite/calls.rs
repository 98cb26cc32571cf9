//! Calls that have a row of their own.

use faena_domain::lease::Lease;
use faena_domain::queue::Entry;
use faena_domain::{
    Attempt, CallError, CallNum, CallStatus, EngineKind, Epoch, FunctionId, FunctionName, Namespace, Owner, Payload,
    Timestamp, Version,
};
use faena_protocol::db::CallLog;
use faena_protocol::records::{BuildRef, CallRecord, CallSpec, CompletedBatch, EndedCall, Outcome};
use rusqlite::{Row, ToSql, params};

use super::completed;
use super::rows::{Json, Text, function_key, owner};
use super::tx::SqliteTx;
use crate::tx::{
    CallFilter, CallRows, CallSelection, ClaimedCall, CompletedSpan, EndedLog, EndedRow, NewCallRow, SavedEntry,
    StoreResult, StoredEntry,
};

/// Under which key of `meta` the next number is.
const NEXT_NUM: &str = "next_call";

/// What [`record`] reads.
const RECORD: &str = "num, spec, version, status, result, error, logs, engine, attempts, created_at, ended_at, replay_of, run_at, head,
     (SELECT json_object('status', status, 'tries', tries, 'error', error) FROM callbacks WHERE callbacks.num = calls.num),
     (SELECT replayed_as FROM dead_letters WHERE dead_letters.num = calls.num), streamed";

fn record(row: &Row<'_>) -> rusqlite::Result<CallRecord> {
    let Json(spec): Json<CallSpec> = row.get(1)?;
    let (Text(status), Json(result), Json(logs), Json(attempts)) = (row.get(3)?, row.get(4)?, row.get(6)?, row.get(8)?);
    Ok(CallRecord {
        num: CallNum(row.get(0)?),
        function: spec.function,
        version: Version(row.get(2)?),
        params: spec.params,
        body: spec.body,
        request: spec.request,
        status,
        result,
        head: row.get::<_, Option<Json<_>>>(13)?.map(|json| json.0),
        streamed: row.get::<_, Option<Json<_>>>(16)?.map(|json| json.0),
        error: row.get::<_, Option<Json<CallError>>>(5)?.map(|json| json.0),
        logs,
        engine: row.get::<_, Option<Text<EngineKind>>>(7)?.map(|text| text.0),
        attempts,
        created_at: row.get(9)?,
        ended_at: row.get(10)?,
        traceparent: spec.traceparent,
        account: spec.account,
        replay_of: row.get::<_, Option<i64>>(11)?.map(CallNum),
        run_at: row.get::<_, Option<i64>>(12)?.map(Timestamp),
        callback: row.get::<_, Option<Json<_>>>(14)?.map(|json| json.0),
        replayed_as: row.get::<_, Option<i64>>(15)?.map(CallNum),
    })
}

/// What [`entry`] reads.
const ENTRY: &str = "num, status, epoch, worker, incarnation, lease_end, started, deliveries, failures, redeliveries, retries, \
     not_before, expires_at, ready, waited, namespace, function, engine, queued_at, claimed_at, callback IS NOT NULL";

fn entry(row: &Row<'_>) -> rusqlite::Result<StoredEntry> {
    let (Text(status), Text(namespace), Text(name)) = (row.get(1)?, row.get(15)?, row.get(16)?);
    Ok(StoredEntry {
        num: CallNum(row.get(0)?),
        entry: Entry {
            status,
            lease: Lease {
                epoch: Epoch(row.get(2)?),
                owner: owner(row, 3)?,
                end: row.get::<_, Option<i64>>(5)?.unwrap_or(0),
            },
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
        function: FunctionId { namespace, name },
        engine: row.get::<_, Option<Text<EngineKind>>>(17)?.map(|text| text.0),
        queued_at: row.get(18)?,
        claimed_at: row.get(19)?,
        has_callback: row.get(20)?,
    })
}

fn claimed(row: &Row<'_>) -> rusqlite::Result<ClaimedCall> {
    let Json(spec) = row.get(1)?;
    Ok(ClaimedCall {
        num: CallNum(row.get(0)?),
        spec,
        version: Version(row.get(2)?),
        epoch: Epoch(row.get(3)?),
        deliveries: row.get(4)?,
        queued_at: row.get(5)?,
        expires_at: row.get(6)?,
    })
}

fn ended_log(row: &Row<'_>) -> rusqlite::Result<EndedLog> {
    let Text(status) = row.get(4)?;
    Ok(EndedLog {
        log: CallLog {
            num: CallNum(row.get(0)?),
            version: Version(row.get(1)?),
            attempt: row.get(2)?,
            log: row.get::<_, Json<Payload>>(3)?.0,
        },
        status,
        created_at: row.get(5)?,
        ended_at: row.get(6)?,
    })
}

fn number(row: &Row<'_>) -> rusqlite::Result<CallNum> {
    row.get(0).map(CallNum)
}

impl SqliteTx<'_> {
    fn insert_call(&self, call: &NewCallRow<'_>) -> StoreResult<()> {
        let NewCallRow { spec, version, engine, entry, bytes, is_due, created_at } = call;
        self.execute(
            "INSERT INTO calls (num, namespace, function, version, status, spec, bytes, ready, due, engine, priority,
                 replay_of, waited, retries, created_at, queued_at, run_at, not_before, expires_at, callback, epoch)
             VALUES (?1, ?2, ?3, ?4, 'PENDING', ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?14, ?15, ?16, ?17, ?18, ?19)",
            params![
                spec.num.0,
                spec.namespace.as_str(),
                spec.function.key(),
                version.0,
                Json(spec),
                bytes,
                entry.ready,
                is_due,
                engine.map(Text),
                spec.priority,
                spec.replay_of.map(|num| num.0),
                entry.waited,
                entry.retries,
                created_at,
                spec.run_at.map(|at| at.0),
                entry.not_before,
                entry.expires_at,
                spec.callback.as_ref().map(Json),
                entry.lease.epoch.0
            ],
        )?;
        Ok(())
    }

    /// Adds a call that has ended; how many rows that made.
    fn insert_ended_call(&self, EndedRow { spec, call, kept_bytes }: &EndedRow<'_>) -> StoreResult<usize> {
        self.execute(
            "INSERT INTO calls (num, namespace, function, version, status, spec, engine, result, error, logs, attempts,
                 waited, retries, created_at, queued_at, not_before, expires_at, ended_at, head, kept_bytes, log_bytes, streamed)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, 1, 0, ?12, ?12, ?12, ?12, ?13, ?14, ?15, ?16, ?17)
             ON CONFLICT DO NOTHING",
            params![
                call.num.0,
                spec.namespace.as_str(),
                spec.function.key(),
                call.version.0,
                call.status.as_str(),
                Json(spec),
                call.engine.map(Text),
                Json(&call.result),
                call.error.as_ref().map(Json),
                Json(&call.logs),
                Json(&call.attempts),
                call.created_at,
                call.ended_at.unwrap_or(call.created_at),
                call.head.as_ref().map(Json),
                kept_bytes,
                call.logs.len(),
                call.streamed.as_ref().map(Json),
            ],
        )
    }

    fn save_entry(&self, saved: &SavedEntry) -> StoreResult<()> {
        let SavedEntry { num, entry, queued_at, claimed_at, is_due, claim } = saved;
        let owner = entry.lease.owner.as_ref();
        self.execute(
            "UPDATE calls SET status = ?2, epoch = ?3, worker = ?4, incarnation = ?5, lease_end = ?6, started = ?7,
                 deliveries = ?8, failures = ?9, redeliveries = ?10, not_before = ?11, ready = ?12, waited = ?13,
                 due = ?14 AND run_at IS NULL, queued_at = ?15, claimed_at = ?16,
                 claim = CASE WHEN ?2 = 'RUNNING' THEN coalesce(?17, claim) END
             WHERE num = ?1",
            params![
                num.0,
                entry.status.as_str(),
                entry.lease.epoch.0,
                owner.map(|owner| &owner.worker),
                owner.map(|owner| &owner.incarnation),
                entry.lease.end,
                entry.started,
                entry.deliveries,
                entry.failures,
                entry.redeliveries,
                entry.not_before,
                entry.ready,
                entry.waited,
                is_due,
                queued_at,
                claimed_at,
                claim
            ],
        )?;
        Ok(())
    }

    /// The query of a list, and what it names besides the namespace, the bound and the limit.
    fn list(&self, filter: &CallFilter<'_>) -> StoreResult<Vec<CallRecord>> {
        let (namespace, function) = (filter.namespace.as_str(), filter.function.map(FunctionName::key));
        let status = filter.status.map(CallStatus::as_str);
        let mut params: Vec<&dyn ToSql> = vec![&namespace, &filter.before.0, &filter.limit];
        // Without statistics SQLite takes the index of the status for a function's failures, and looks at everybody's.
        let by = if function.is_some() { " INDEXED BY calls_of_function" } else { "" };
        let mut sql = format!("SELECT {RECORD} FROM calls{by} WHERE num < ?2");
        let mut letters = "SELECT num FROM dead_letters WHERE namespace = ?1 AND num < ?2".to_owned();
        // Without a filter the rows' own order is the way; an index on the namespace would have to be sorted.
        let is_open = function.is_none() && status.is_none();
        sql.push_str(if is_open { " AND +namespace = ?1" } else { " AND namespace = ?1" });
        if let Some(function) = &function {
            params.push(function);
            sql.push_str(&format!(" AND function = ?{}", params.len()));
            letters.push_str(&format!(" AND function = ?{}", params.len()));
        }
        if filter.unreplayed {
            letters.push_str(" AND replayed_as IS NULL");
        }
        if let Some(status) = &status {
            params.push(status);
            sql.push_str(&format!(" AND status = ?{}", params.len()));
        } else {
            letters.push_str(" ORDER BY num DESC LIMIT ?3");
        }
        if filter.dead {
            // The few dead letters are walked, not all calls.
            sql.push_str(&format!(" AND num IN ({letters})"));
        }
        sql.push_str(" ORDER BY num DESC LIMIT ?3");
        self.all(&sql, params.as_slice(), record)
    }
}

impl CallRows for SqliteTx<'_> {
    fn reserve_numbers(&self, count: u32) -> StoreResult<CallNum> {
        self.value(
            "INSERT INTO meta (key, value) VALUES (?1, 1 + ?2) ON CONFLICT (key) DO UPDATE SET value = value + ?2
             RETURNING value - ?2",
            (NEXT_NUM, count),
        )
        .map(CallNum)
    }

    fn call(&self, namespace: &Namespace, num: CallNum) -> StoreResult<Option<CallRecord>> {
        let sql = format!("SELECT {RECORD} FROM calls WHERE num = ?1 AND namespace = ?2");
        self.first(&sql, (num.0, namespace.as_str()), record)
    }

    fn call_spec(&self, namespace: &Namespace, num: CallNum) -> StoreResult<Option<CallSpec>> {
        self.first("SELECT spec FROM calls WHERE num = ?1 AND namespace = ?2", (num.0, namespace.as_str()), |row| {
            Ok(row.get::<_, Json<_>>(0)?.0)
        })
    }

    fn existing_calls(&self, calls: &[CallNum]) -> StoreResult<Vec<CallNum>> {
        let mut existing = Vec::new();
        for num in calls {
            if self.exists("SELECT 1 FROM calls WHERE num = ?1", [num.0])? {
                existing.push(*num);
            }
        }
        Ok(existing)
    }

    fn calls(&self, filter: &CallFilter<'_>) -> StoreResult<Vec<CallRecord>> {
        self.list(filter)
    }

    fn insert_calls(&self, calls: &[NewCallRow<'_>]) -> StoreResult<()> {
        calls.iter().try_for_each(|call| self.insert_call(call))
    }

    fn insert_ended(&self, calls: &[EndedRow<'_>]) -> StoreResult<()> {
        let mut added = 0;
        for call in calls {
            added += self.insert_ended_call(call)?;
        }
        if added > 0 {
            self.execute("UPDATE totals SET ended = ended + ?1", [added])?;
        }
        Ok(())
    }

    fn set_running(&self, num: CallNum, owner: &Owner, epoch: Epoch, lease_end: i64, now: i64) -> StoreResult<()> {
        self.execute(
            "UPDATE calls SET status = 'RUNNING', due = 0, epoch = ?2, worker = ?3, incarnation = ?4, lease_end = ?5,
                 deliveries = ?2, started = 1, claimed_at = ?6
             WHERE num = ?1",
            (num.0, epoch.0, &owner.worker, &owner.incarnation, lease_end, now),
        )?;
        Ok(())
    }

    fn entries_for_update(&self, calls: &[CallNum]) -> StoreResult<Vec<StoredEntry>> {
        let sql = format!("SELECT {ENTRY} FROM calls WHERE num = ?1");
        let mut entries = Vec::with_capacity(calls.len());
        for num in calls {
            entries.extend(self.first(&sql, [num.0], entry)?);
        }
        Ok(entries)
    }

    fn save_entries(&self, entries: &[SavedEntry]) -> StoreResult<()> {
        entries.iter().try_for_each(|entry| self.save_entry(entry))
    }

    fn append_attempt(&self, num: CallNum, attempt: &Attempt) -> StoreResult<()> {
        self.execute(
            "UPDATE calls SET attempts = json_insert(attempts, '$[#]', json(?2)) WHERE num = ?1",
            (num.0, Json(attempt)),
        )?;
        Ok(())
    }

    fn end_call(&self, num: CallNum, error: Option<&CallError>, at: i64) -> StoreResult<()> {
        self.execute(
            "UPDATE calls SET error = ?2, ended_at = ?3, run_at = NULL,
                 spec = CASE WHEN instr(spec, '\"privateHeaders\":') > 0 THEN json_remove(spec, '$.privateHeaders') ELSE spec END
             WHERE num = ?1",
            (num.0, error.map(Json), at),
        )?;
        Ok(())
    }

    fn put_outcome(&self, num: CallNum, outcome: &Outcome, kept_bytes: u64) -> StoreResult<()> {
        self.execute(
            "UPDATE calls SET result = ?2, logs = ?3, head = ?4, kept_bytes = ?5, log_bytes = ?6 WHERE num = ?1",
            (
                num.0,
                Json(&outcome.result),
                Json(&outcome.logs),
                outcome.head.as_ref().map(Json),
                kept_bytes,
                outcome.logs.len(),
            ),
        )?;
        Ok(())
    }

    fn select_calls(&self, which: CallSelection<'_>) -> StoreResult<Vec<CallNum>> {
        const WAITING: &str = "SELECT num FROM calls INDEXED BY calls_waiting WHERE namespace = ?1 AND function = ?2 AND status = 'PENDING'";
        match which {
            CallSelection::WaitingOf(function) => self.all(WAITING, function_key(function), number),
            CallSelection::WaitingFor(BuildRef { namespace, function, version }) => {
                let sql = format!("{WAITING} AND version = ?3");
                self.all(&sql, (namespace.as_str(), function.key(), version.0), number)
            }
            CallSelection::OfEarlierRuns(owner) => self.all(
                "SELECT num FROM calls WHERE status = 'RUNNING' AND worker = ?1 AND incarnation <> ?2",
                (&owner.worker, &owner.incarnation),
                number,
            ),
            CallSelection::LeaseEndedBefore(at, limit) => self.all(
                "SELECT num FROM calls WHERE status = 'RUNNING' AND lease_end < ?1 LIMIT ?2",
                (at, limit),
                number,
            ),
            CallSelection::AgeEndedBy(at, limit) => self.all(
                "SELECT num FROM calls WHERE status = 'PENDING' AND run_at IS NULL AND expires_at <= ?1 LIMIT ?2",
                (at, limit),
                number,
            ),
        }
    }

    fn stop_retries(&self, function: &FunctionId, now: i64) -> StoreResult<()> {
        let (namespace, key) = function_key(function);
        self.execute(
            "UPDATE calls SET retries = 0, expires_at = ?3 WHERE namespace = ?1 AND function = ?2 AND status = 'RUNNING'",
            (namespace, key, now),
        )?;
        Ok(())
    }

    fn make_ready(&self, build: &BuildRef, engine: Option<EngineKind>, now: i64) -> StoreResult<()> {
        self.execute(
            "UPDATE calls INDEXED BY calls_waiting SET ready = 1, due = not_before <= ?5 AND run_at IS NULL, engine = ?4
             WHERE namespace = ?1 AND function = ?2 AND version = ?3 AND status = 'PENDING'",
            (build.namespace.as_str(), build.function.key(), build.version.0, engine.map(Text), now),
        )?;
        Ok(())
    }

    fn promote(&self, now: i64, wall: i64) -> StoreResult<()> {
        if self.exists("SELECT 1 FROM calls WHERE status = 'PENDING' AND run_at <= ?1 LIMIT 1", [wall])? {
            self.execute(
                "UPDATE calls SET run_at = NULL, not_before = ?2, queued_at = ?2,
                     expires_at = max(?2 + (spec ->> 'maxAgeMs') - (?1 - run_at), ?2)
                 WHERE status = 'PENDING' AND run_at <= ?1",
                (wall, now),
            )?;
        }
        const LATER: &str = "status = 'PENDING' AND ready = 1 AND due = 0 AND not_before <= ?1 AND run_at IS NULL";
        if self.exists(&format!("SELECT 1 FROM calls WHERE {LATER} LIMIT 1"), [now])? {
            self.execute(&format!("UPDATE calls SET due = 1 WHERE {LATER}"), [now])?;
        }
        Ok(())
    }

    fn claimed_calls(&self, claim: &str) -> StoreResult<Vec<ClaimedCall>> {
        self.all(
            "SELECT num, spec, version, epoch, deliveries, queued_at, expires_at FROM calls
             WHERE claim = ?1 AND status = 'RUNNING' ORDER BY num",
            [claim],
            claimed,
        )
    }

    fn set_all_leases(&self, end: i64) -> StoreResult<()> {
        self.execute("UPDATE calls SET lease_end = ?1 WHERE status = 'RUNNING'", [end])?;
        self.execute("UPDATE versions SET lease_end = ?1 WHERE status = 'BUILDING'", [end]).map(drop)
    }

    fn insert_dead_letter(&self, num: CallNum, function: &FunctionId) -> StoreResult<()> {
        let (namespace, key) = function_key(function);
        self.execute(
            "INSERT OR IGNORE INTO dead_letters (num, namespace, function) VALUES (?1, ?2, ?3)",
            (num.0, namespace, key),
        )?;
        Ok(())
    }

    fn mark_replayed(&self, dead: CallNum, replay: CallNum) -> StoreResult<()> {
        self.execute("UPDATE dead_letters SET replayed_as = ?2 WHERE num = ?1", (dead.0, replay.0)).map(drop)
    }

    fn delete_dead_letter(&self, namespace: &Namespace, num: CallNum) -> StoreResult<bool> {
        let deleted =
            self.execute("DELETE FROM dead_letters WHERE num = ?1 AND namespace = ?2", (num.0, namespace.as_str()))?;
        Ok(deleted > 0)
    }

    fn insert_batches(&self, batches: &[CompletedBatch]) -> StoreResult<()> {
        batches.iter().try_for_each(|batch| completed::insert(self, batch))
    }

    fn completed_call(&self, namespace: &Namespace, num: CallNum) -> StoreResult<Option<EndedCall>> {
        completed::find(self, namespace, num)
    }

    fn completed_span(
        &self,
        namespace: &Namespace,
        function: Option<&FunctionName>,
        up_to: i64,
    ) -> StoreResult<Option<CompletedSpan>> {
        completed::newest_span(self, (namespace, function), up_to)
    }

    fn ended_logs(&self, function: &FunctionId, before: CallNum, limit: usize) -> StoreResult<Vec<EndedLog>> {
        let (namespace, key) = function_key(function);
        self.all(
            "SELECT num, version, json_array_length(attempts), logs, status, created_at, ended_at
             FROM calls INDEXED BY calls_of_function
             WHERE namespace = ?1 AND function = ?2 AND num < ?3 AND ended_at IS NOT NULL ORDER BY num DESC LIMIT ?4",
            (namespace, key, before.0, limit),
            ended_log,
        )
    }
}
