//! Completed calls that succeeded and whose clients waited, many in one row: a busy function ends more of them in a second than rows could be written.
//!
//! A batch holds calls of one function whose numbers lie in one span, as the api put them together. They are read
//! beside the calls with rows and look the same; nothing about them ever changes, and what needs a row of its own never comes here.

use std::cmp::Reverse;

use faena_domain::{CallNum, FunctionName, Namespace};
use faena_protocol::records::{BATCH_SPAN, CallRecord, CallSpec, EndedCall};

use crate::tx::{StoreResult, Tx};

/// What a call was accepted with, as far as a replay needs it.
pub(super) fn spec(ended: EndedCall) -> CallSpec {
    let call = ended.call;
    CallSpec {
        num: call.num,
        namespace: ended.namespace,
        function: call.function,
        params: call.params,
        body: call.body,
        request: call.request,
        private_headers: Vec::new(),
        direct: ended.direct,
        timeout_ms: ended.timeout_ms,
        max_age_ms: 0,
        run_at: None,
        priority: 0,
        key: None,
        waited: true,
        replay_of: None,
        callback: None,
        retries: None,
        traceparent: call.traceparent,
        account: call.account,
    }
}

/// The newest calls below a number, at most so many: spans are walked from the newest until there are enough.
pub(super) fn list(
    tx: &dyn Tx,
    (namespace, function): (&Namespace, Option<&FunctionName>),
    before: CallNum,
    limit: usize,
) -> StoreResult<Vec<CallRecord>> {
    let mut found: Vec<CallRecord> = Vec::new();
    let mut up_to = before.0.saturating_sub(1) / BATCH_SPAN;
    while found.len() < limit {
        let Some(batches) = tx.completed_span(namespace, function, up_to)? else { break };
        found.extend(batches.calls.into_iter().map(|ended| ended.call).filter(|call| call.num < before));
        up_to = batches.span - 1;
    }
    found.sort_by_key(|call| Reverse(call.num));
    found.truncate(limit);
    Ok(found)
}

/// Merges what both have, newest first; a call is in one of them.
pub(super) fn merge(mut calls: Vec<CallRecord>, completed: Vec<CallRecord>, limit: usize) -> Vec<CallRecord> {
    calls.extend(completed);
    calls.sort_by_key(|call| Reverse(call.num));
    calls.truncate(limit);
    calls
}
