//! Calls, read one by one and in lists.

use faena_domain::limits::LIST_CUT;
use faena_domain::{CallStatus, Payload};
use faena_protocol::DbError;
use faena_protocol::db::{CallGet, CallList};
use faena_protocol::records::CallRecord;
use rusqlite::{Connection, ToSql};

use crate::sqlite::call_rows::{COLUMNS, record};
use crate::sqlite::requests::{Read, RequestContext};
use crate::sqlite::{completed, internal};

impl Read for CallGet {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<CallRecord, DbError> {
        super::find(connection, &self.namespace, self.num)
    }
}

impl Read for CallList {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<CallRecord>, DbError> {
        let before = self.before.map_or(i64::MAX, |num| num.0);
        let function = self.function.map(|function| function.key());
        let status = self.status.map(CallStatus::as_str);
        let namespace = self.namespace.as_str();
        let mut params: Vec<&dyn ToSql> = vec![&namespace, &before, &self.limit];
        // Without statistics SQLite takes the index of the status for a function's failures, and looks at everybody's.
        let by = if function.is_some() { " INDEXED BY calls_of_function" } else { "" };
        let mut sql = format!("SELECT {COLUMNS} FROM calls{by} WHERE num < ?2");
        let mut letters = "SELECT num FROM dead_letters WHERE namespace = ?1 AND num < ?2".to_owned();
        // Without a filter the rows' own order is the way; an index on the namespace would have to be sorted.
        sql.push_str(if function.is_none() && status.is_none() {
            " AND +namespace = ?1"
        } else {
            " AND namespace = ?1"
        });
        if let Some(function) = &function {
            params.push(function);
            sql.push_str(&format!(" AND function = ?{}", params.len()));
            letters.push_str(&format!(" AND function = ?{}", params.len()));
        }
        if self.unreplayed {
            letters.push_str(" AND replayed_as IS NULL");
        }
        if let Some(status) = &status {
            params.push(status);
            sql.push_str(&format!(" AND status = ?{}", params.len()));
        } else {
            letters.push_str(" ORDER BY num DESC LIMIT ?3");
        }
        if self.dead {
            // The few dead letters are walked, not all calls.
            sql.push_str(&format!(" AND num IN ({letters})"));
        }
        sql.push_str(" ORDER BY num DESC LIMIT ?3");
        let list = || -> rusqlite::Result<Vec<CallRecord>> {
            let mut statement = connection.prepare_cached(&sql)?;
            statement.query_map(params.as_slice(), record)?.collect()
        };
        let mut calls = list().map_err(|error| internal("listing calls", &error))?;
        if !self.dead && self.status.is_none_or(|status| status == CallStatus::Done) {
            let limit = self.limit as usize;
            let kept = completed::list(connection, (&self.namespace, function.as_deref()), before, limit)?;
            calls = completed::merge(calls, kept, limit);
        }
        calls.iter_mut().for_each(shorten);
        Ok(calls)
    }
}

/// Attempts that a list shows of a call: the last ones.
const LISTED_ATTEMPTS: usize = 3;

/// What a list shows of a call: enough of long texts to tell that there is more, and no log. A page of them is one message.
fn shorten(call: &mut CallRecord) {
    call.logs = Payload::empty();
    call.attempts.drain(..call.attempts.len().saturating_sub(LISTED_ATTEMPTS));
    for attempt in &mut call.attempts {
        attempt.egress.iter_mut().for_each(|used| used.hosts.clear());
        if let Some(error) = &mut attempt.error {
            error.stderr_tail.clear();
        }
    }
    if let Some(error) = &mut call.error {
        cut(&mut error.stderr_tail, LIST_CUT);
    }
    for payload in [&mut call.params, &mut call.result] {
        if let Payload::Text(text) = payload {
            cut(text, LIST_CUT);
        }
    }
    call.body = None;
}

/// Cuts a text; one character beyond the cut shows that it was one.
fn cut(text: &mut String, most: usize) {
    let end = (most + 1..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text.truncate(end);
}
