//! Callbacks: written with the end that they tell of, taken for a few minutes at a time, given up after eight tries.

use faena_domain::retry::pause_ms;
use faena_domain::{CallNum, FunctionId, Payload};
use faena_protocol::db::{CallbackFinish, CallbackPostpone, CallbacksDue, CallbacksTake};
use faena_protocol::records::CallbackJob;

use super::{Read, Request, RequestContext, RuleResult, Write, read, secrets, write};
use crate::tx::{CallbackStatus, DueCallback, SecretPlace, StoreResult, Tx};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] =
    &[read::<CallbacksDue>(), write::<CallbacksTake>(), write::<CallbackPostpone>(), write::<CallbackFinish>()];

/// How often a callback is tried.
const TRIES: u32 = 8;
/// How long an api that took a callback may take to report how it went.
const TAKEN_MS: i64 = 180_000;
/// What the calls of one answer may hold together: they travel in one message.
const TAKEN_BYTES: usize = 1024 * 1024;
/// How long a callback is postponed whose host has the most tries under way.
const POSTPONED_MS: i64 = 2000;

/// Records a callback for a call's end. Without its function nothing can sign it.
pub(super) fn announce(tx: &dyn Tx, num: CallNum, function: &FunctionId, now: i64) -> StoreResult<()> {
    match tx.function_secret(function)? {
        Some(secret) => tx.insert_callback(num, &secret, CallbackStatus::Waiting, now),
        None => tx.insert_callback(num, &[], CallbackStatus::Undelivered, now),
    }
}

impl Read for CallbacksDue {
    fn read(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<bool> {
        Ok(tx.is_callback_due(context.now)?)
    }
}

/// Those of the callbacks that fit into one message; the first always does.
fn fitting(found: Vec<DueCallback>) -> Vec<DueCallback> {
    let mut bytes = 0;
    let mut fits = |due: &DueCallback| {
        let fits = bytes == 0 || bytes + due.bytes <= TAKEN_BYTES;
        bytes += due.bytes;
        fits
    };
    found.into_iter().filter(|due| fits(due)).collect()
}

impl Write for CallbacksTake {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Vec<CallbackJob>> {
        let due = fitting(tx.due_callbacks_for_update(context.now, self.limit)?);
        let taken: Vec<CallNum> = due.iter().map(|due| due.num).collect();
        tx.begin_tries(&taken, context.now + TAKEN_MS)?;
        let mut jobs = Vec::new();
        for DueCallback { num, function, tries, callback, secret, .. } in due {
            let tries = tries + 1;
            let namespace = function.namespace.clone();
            let Some(secret) = secrets::open(context, &SecretPlace::Callback(num, function), &secret) else {
                let why = "the secret that signs it cannot be opened with the keys of this platform";
                tx.end_try((num, tries), CallbackStatus::Undelivered, context.now, Some(why))?;
                continue;
            };
            let Some(mut call) = tx.call(&namespace, num)? else { continue };
            call.logs = Payload::empty();
            jobs.push(CallbackJob { namespace, call, callback, secret, tries });
        }
        Ok(jobs)
    }
}

impl Write for CallbackPostpone {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        Ok(tx.postpone_callback(self.num, self.tries, context.now + POSTPONED_MS)?)
    }
}

impl Write for CallbackFinish {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        let pause = i64::try_from(pause_ms(self.tries, context.uniform())).unwrap_or(0);
        let status = match &self.error {
            None => CallbackStatus::Delivered,
            Some(_) if self.tries >= TRIES => CallbackStatus::Undelivered,
            Some(_) => CallbackStatus::Waiting,
        };
        Ok(tx.end_try((self.num, self.tries), status, context.now + pause, self.error.as_deref())?)
    }
}
