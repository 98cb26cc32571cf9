//! Logs of a function's calls, whether the calls have rows or lie in batches.

use std::cmp::Reverse;

use faena_domain::{CallNum, FunctionId};
use faena_protocol::db::{CallLog, FunctionLogs, LogPage};

use super::{Read, Request, RequestContext, RuleResult, completed, read};
use crate::tx::{EndedLog, StoreResult, Tx};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[read::<FunctionLogs>()];

/// Bytes of logs after which a page ends, those in the blob store included: who reads it holds all of them.
const PAGE_BYTES: u64 = 1024 * 1024;
/// Calls that one request looks at in each of the two places, unless it asks for fewer; most wrote nothing.
const LOOKED_AT: usize = 1000;
/// How long a call may have waited and run that ended after an instant (its age is 30 days at most): calls accepted earlier
/// are not looked at.
const LONGEST_MS: i64 = 31 * 24 * 3600 * 1000;

fn batched(tx: &dyn Tx, request: &FunctionLogs, before: CallNum, most: usize) -> StoreResult<Vec<EndedLog>> {
    let calls = completed::list(tx, (&request.namespace, Some(&request.function)), before, most)?;
    let ended = calls.into_iter().map(|call| EndedLog {
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

/// The logs that are asked for, as many as one page holds, and where the next page begins.
fn page(request: &FunctionLogs, ended: Vec<EndedLog>, mut next: Option<CallNum>) -> (Vec<CallLog>, Option<CallNum>) {
    let is_asked_for = |ended: &EndedLog| {
        !ended.log.log.is_empty()
            && request.version.is_none_or(|version| ended.log.version == version)
            && request.status.is_none_or(|status| ended.status == status)
            && request.since.is_none_or(|since| ended.ended_at >= since)
    };
    let (mut logs, mut bytes) = (Vec::<CallLog>::new(), 0);
    for log in ended.into_iter().filter(is_asked_for).map(|ended| ended.log) {
        if bytes >= PAGE_BYTES {
            // The calls below the last one that is returned were left out.
            next = logs.last().map(|log| log.num);
            break;
        }
        bytes += log.log.len();
        logs.push(log);
    }
    (logs, next)
}

impl Read for FunctionLogs {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<LogPage> {
        let before = self.before.unwrap_or(CallNum(i64::MAX));
        let most = self.calls.map_or(LOOKED_AT, |calls| (calls as usize).clamp(1, LOOKED_AT));
        let function = FunctionId::new(&self.namespace, &self.function);
        let places = [tx.ended_logs(&function, before, most)?, batched(tx, self, before, most)?];
        // Below the higher of the two ends, one of the sources was not read.
        let end = |place: &Vec<EndedLog>| place.get(most - 1).map(|ended| ended.log.num);
        let mut next = places.iter().filter_map(end).max();
        let mut ended: Vec<EndedLog> = places.into_iter().flatten().collect();
        ended.sort_by_key(|ended| Reverse(ended.log.num));
        ended.retain(|ended| next.is_none_or(|next| ended.log.num >= next));
        if let Some(since) = self.since
            && ended.last().is_some_and(|oldest| oldest.created_at < since.saturating_sub(LONGEST_MS))
        {
            next = None;
        }
        let newest = ended.first().map(|ended| ended.log.num);
        let (logs, next) = page(self, ended, next);
        Ok(LogPage { logs, next, newest })
    }
}
