//! Logs of a function's calls, whether the calls have rows or lie in batches.

use faena_domain::{CallNum, CallStatus, Payload, Version};
use faena_protocol::DbError;
use faena_protocol::db::{CallLog, FunctionLogs, LogPage};
use rusqlite::Connection;

use super::requests::{Read, Request, RequestContext, read};
use super::rows::Json;
use super::{completed, internal};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[read::<FunctionLogs>()];

/// Bytes of logs after which a page ends, those in the blob store included: who reads it holds all of them.
const PAGE_BYTES: u64 = 1024 * 1024;
/// Calls that one request looks at in each of the two places, unless it asks for fewer; most wrote nothing.
const LOOKED_AT: usize = 1000;
/// How long a call may have waited and run that ended after an instant (its age is 30 days at most): calls accepted earlier
/// are not looked at.
const LONGEST_MS: i64 = 31 * 24 * 3600 * 1000;

/// A call that has ended, as far as its log goes.
struct Ended {
    log: CallLog,
    status: CallStatus,
    created_at: i64,
    ended_at: i64,
}

fn rows(connection: &Connection, request: &FunctionLogs, before: i64, most: usize) -> rusqlite::Result<Vec<Ended>> {
    connection
        .prepare_cached(
            "SELECT num, version, json_array_length(attempts), logs, status, created_at, ended_at
             FROM calls INDEXED BY calls_of_function
             WHERE namespace = ?1 AND function = ?2 AND num < ?3 AND ended_at IS NOT NULL ORDER BY num DESC LIMIT ?4",
        )?
        .query_map((request.namespace.as_str(), request.function.key(), before, most), |row| {
            let status: String = row.get(4)?;
            Ok(Ended {
                log: CallLog {
                    num: CallNum(row.get(0)?),
                    version: Version(row.get(1)?),
                    attempt: row.get(2)?,
                    log: row.get::<_, Json<Payload>>(3)?.0,
                },
                status: CallStatus::from_name(&status).unwrap_or(CallStatus::Failed),
                created_at: row.get(5)?,
                ended_at: row.get(6)?,
            })
        })?
        .collect()
}

fn batched(connection: &Connection, request: &FunctionLogs, before: i64, most: usize) -> Result<Vec<Ended>, DbError> {
    let function = request.function.key();
    let calls = completed::list(connection, (&request.namespace, Some(&function)), before, most)?;
    let ended = calls.into_iter().map(|call| Ended {
        status: call.status,
        created_at: call.created_at,
        ended_at: call.ended_at.unwrap_or(call.created_at),
        log: CallLog {
            num: call.num,
            version: call.version,
            attempt: u32::try_from(call.attempts.len()).unwrap_or(u32::MAX),
            log: call.logs,
        },
    });
    Ok(ended.collect())
}

impl Read for FunctionLogs {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<LogPage, DbError> {
        let before = self.before.map_or(i64::MAX, |num| num.0);
        let most = self.calls.map_or(LOOKED_AT, |calls| (calls as usize).clamp(1, LOOKED_AT));
        let found = rows(connection, &self, before, most).map_err(|error| internal("reading logs", &error))?;
        let places = [found, batched(connection, &self, before, most)?];
        // Below the higher of the two ends only one place was looked at.
        let end = |place: &Vec<Ended>| place.get(most - 1).map(|ended| ended.log.num);
        let mut next = places.iter().filter_map(end).max();
        let mut ended: Vec<Ended> = places.into_iter().flatten().collect();
        ended.sort_by_key(|ended| std::cmp::Reverse(ended.log.num));
        ended.retain(|ended| next.is_none_or(|next| ended.log.num >= next));
        if let Some(since) = self.since
            && ended.last().is_some_and(|oldest| oldest.created_at < since.saturating_sub(LONGEST_MS))
        {
            next = None;
        }
        let newest = ended.first().map(|ended| ended.log.num);
        let is_asked_for = |ended: &Ended| {
            !ended.log.log.is_empty()
                && self.version.is_none_or(|version| ended.log.version == version)
                && self.status.is_none_or(|status| ended.status == status)
                && self.since.is_none_or(|since| ended.ended_at >= since)
        };
        let (mut logs, mut bytes) = (Vec::new(), 0);
        for log in ended.into_iter().filter(is_asked_for).map(|ended| ended.log) {
            if bytes >= PAGE_BYTES {
                // The calls below the last one that is returned were left out.
                next = logs.last().map(|log: &CallLog| log.num);
                break;
            }
            bytes += log.log.len();
            logs.push(log);
        }
        Ok(LogPage { logs, next, newest })
    }
}
