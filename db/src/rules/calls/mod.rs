//! Calls: accepted, recorded after their reply, read.

mod accept;
mod ended;
mod list;

use faena_domain::lease::{LEASE_MS, Lease};
use faena_domain::queue::{DEFAULT_AGE_MS, Entry, Event, Refused};
use faena_domain::{CallNum, CallStatus, FunctionId, FunctionStatus, Namespace};
use faena_protocol::DbError;
use faena_protocol::db::{
    CallAcknowledge, CallCancel, CallFinish, CallGet, CallList, CallNumReserve, CallPersist, CallReplay, CallsAccept,
    CallsRecord, CallsStarted, Cancelled, DeadLetterForget, Resource,
};
use faena_protocol::records::{CallRecord, CallSpec, NewCall};

use super::transitions::{Cause, NotApplied, Step, apply, apply_all, end_of};
use super::{
    Request, RequestContext, RuleResult, Write, check_claims, completed, functions, not_found, read, refuse, write,
};
use crate::tx::Tx;

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    write::<CallNumReserve>(),
    write::<CallsAccept>(),
    write::<CallReplay>(),
    write::<DeadLetterForget>(),
    write::<CallsRecord>(),
    write::<CallPersist>(),
    write::<CallFinish>(),
    write::<CallsStarted>(),
    write::<CallAcknowledge>(),
    write::<CallCancel>(),
    read::<CallGet>(),
    read::<CallList>(),
];

/// A call, whether it has a row or lies in a batch.
fn find(tx: &dyn Tx, namespace: &Namespace, num: CallNum) -> RuleResult<CallRecord> {
    if let Some(call) = tx.call(namespace, num)? {
        return Ok(call);
    }
    let completed = tx.completed_call(namespace, num)?.map(|ended| ended.call);
    Ok(completed.ok_or_else(|| not_found(Resource::Call, &num))?)
}

impl Write for CallNumReserve {
    fn write(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<CallNum> {
        Ok(tx.reserve_numbers(self.count.max(1))?)
    }
}

/// The spec of a call that repeats another one.
fn repeated(old: CallSpec, request: &CallReplay) -> CallSpec {
    CallSpec {
        num: request.num,
        private_headers: Vec::new(),
        replay_of: Some(request.of),
        run_at: None,
        key: None,
        waited: false,
        callback: None,
        traceparent: request.traceparent.clone(),
        account: request.account.clone(),
        // A waited call was recorded without its age, and may have had another than an asynchronous one gets.
        max_age_ms: if old.waited || old.max_age_ms == 0 { DEFAULT_AGE_MS } else { old.max_age_ms },
        retries: old.retries.filter(|_| !old.waited),
        ..old
    }
}

impl Write for CallReplay {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<CallRecord> {
        // The same request may be sent again.
        if !tx.existing_calls(&[self.num])?.is_empty() {
            return find(tx, &self.namespace, self.num);
        }
        let old = match tx.call_spec(&self.namespace, self.of)? {
            Some(old) => Some(old),
            None => tx.completed_call(&self.namespace, self.of)?.map(completed::spec),
        };
        let old = old.ok_or_else(|| not_found(Resource::Call, &self.of))?;
        let spec = repeated(old, self);
        let call = NewCall { spec: spec.clone(), version: self.version };
        let accepted = accept::accept_one(tx, context, call)?;
        tx.mark_replayed(self.of, self.num)?;
        Ok(accepted.record(spec))
    }
}

impl Write for DeadLetterForget {
    fn write(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<()> {
        if tx.delete_dead_letter(&self.namespace, self.num)? {
            Ok(())
        } else {
            refuse(not_found(Resource::DeadLetter, &self.num))
        }
    }
}

/// Gives a row to a call that ran without one, with the epoch that the scheduler gave it, claimed and perhaps begun.
fn persist(request: &CallPersist, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
    let CallPersist { spec, version, created_at, elapsed_ms, epoch, running } = request;
    let function = FunctionId::new(&spec.namespace, &spec.function);
    let resolved = functions::resolve(tx, context, &function, Some(*version))?;
    // The clocks of api and db differ, so the request says how much time has passed.
    let left = spec.max_age_ms.saturating_sub(*elapsed_ms);
    let expires_at = context.now.saturating_add(accept::millis(left));
    let is_ready = resolved.status == FunctionStatus::Ready;
    // Its client hears 202 with this row: from now on it is a promise.
    let entry = Entry {
        lease: Lease::unclaimed(*epoch),
        ..Entry::accepted(spec.retries.unwrap_or(0), context.now, expires_at, is_ready, false)
    };
    let row = accept::new_row(spec, (*version, resolved.code.engine), entry, (*created_at, context.now));
    accept::enqueue(tx, &[row])?;
    match running {
        Some(owner) => Ok(tx.set_running(spec.num, owner, *epoch, context.now + LEASE_MS, context.now)?),
        None => Ok(()),
    }
}

impl Write for CallPersist {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<CallRecord> {
        if tx.existing_calls(&[self.spec.num])?.is_empty() {
            persist(self, tx, context)?;
        }
        find(tx, &self.spec.namespace, self.spec.num)
    }
}

impl Write for CallFinish {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<CallStatus> {
        let (epoch, owner) = (self.epoch, self.owner.clone());
        let event = match &self.outcome {
            Some(outcome) => Event::Finish { epoch, owner, end: end_of(outcome) },
            None => Event::GiveBack { epoch, owner },
        };
        let cause = Cause { outcome: self.outcome.as_ref(), ..Cause::default() };
        match apply(tx, context, Step { num: self.num, event, cause })? {
            Ok(taken) => Ok(taken.after.status),
            Err(NotApplied::Refused(Refused::Already(status))) => Ok(status),
            Err(NotApplied::Refused(_)) => refuse(DbError::Stale),
            Err(NotApplied::Missing) => refuse(not_found(Resource::Call, &self.num)),
        }
    }
}

impl Write for CallsStarted {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        check_claims(self.calls.len())?;
        let step = |&(num, epoch)| Step::new(num, Event::Start { epoch, owner: self.owner.clone() });
        // A waited call has no row, and a stale claim has nothing to tell.
        apply_all(tx, context, self.calls.iter().map(step).collect()).map(drop)
    }
}

impl Write for CallAcknowledge {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        match apply(tx, context, Step::new(self.num, Event::Acknowledged))? {
            Err(NotApplied::Missing) => refuse(not_found(Resource::Call, &self.num)),
            Ok(_) | Err(NotApplied::Refused(_)) => Ok(()),
        }
    }
}

impl Write for CallCancel {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Cancelled> {
        // For another namespace the call does not exist.
        let before = find(tx, &self.namespace, self.num)?;
        if before.status.is_terminal() {
            return refuse(DbError::Ended { status: before.status });
        }
        let cause = Cause::cancelled(before.status, "the call was cancelled");
        let step = Step { num: self.num, event: Event::Cancel, cause };
        let Ok(taken) = apply(tx, context, step)? else { return refuse(DbError::Ended { status: before.status }) };
        let running = taken.before.lease.owner.filter(|_| taken.before.status == CallStatus::Running);
        let record = find(tx, &self.namespace, self.num)?;
        Ok(Cancelled { record, running: running.map(|owner| (owner, taken.before.lease.epoch)) })
    }
}
