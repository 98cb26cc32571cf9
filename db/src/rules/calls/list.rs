//! Calls, read one by one and in lists.

use faena_domain::limits::LIST_CUT;
use faena_domain::{CallNum, CallStatus, Payload};
use faena_protocol::db::{CallGet, CallList};
use faena_protocol::records::CallRecord;

use crate::rules::{Read, RequestContext, RuleResult, completed};
use crate::tx::{CallFilter, Tx};

/// Attempts that a list shows of a call: the last ones.
const LISTED_ATTEMPTS: usize = 3;

impl Read for CallGet {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<CallRecord> {
        super::find(tx, &self.namespace, self.num)
    }
}

impl Read for CallList {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Vec<CallRecord>> {
        let Self { namespace, function, status, dead, unreplayed, before, limit } = self;
        let before = before.unwrap_or(CallNum(i64::MAX));
        let mut calls = tx.calls(&CallFilter {
            namespace,
            function: function.as_ref(),
            status: *status,
            dead: *dead,
            unreplayed: *unreplayed,
            before,
            limit: *limit,
        })?;
        if !dead && status.is_none_or(|status| status == CallStatus::Done) {
            let limit = *limit as usize;
            let batched = completed::list(tx, (namespace, function.as_ref()), before, limit)?;
            calls = completed::merge(calls, batched, limit);
        }
        calls.iter_mut().for_each(shorten);
        Ok(calls)
    }
}

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
