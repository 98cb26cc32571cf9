//! Claims of queued calls: which queue is served next, and what a worker gets.

use std::collections::{HashMap, VecDeque};

use faena_domain::queue::Event;
use faena_domain::{CallNum, CallStatus, FunctionId, Namespace, Slots, Version};
use faena_protocol::db::CallsClaim;
use faena_protocol::records::{CallJob, Code};

use super::transitions::{Cause, Step, apply, apply_same};
use super::{Request, RequestContext, RuleResult, Write, functions, write};
use crate::tx::{Candidate, ClaimedCall, Offer, StoreResult, Tx, WaitingNamespace, WaitingQueue};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[write::<CallsClaim>()];

/// What the specs of one claim may hold together: they travel in one message, beside the code of each.
const CLAIM_BYTES: usize = 2 * 1024 * 1024;

/// A namespace with calls that wait, and its queues in the order of their turns.
#[derive(Debug)]
struct NamespaceQueues {
    name: Namespace,
    weight: u32,
    /// How many more of its calls may run; none is no bound.
    room: Option<u32>,
    queues: VecDeque<WaitingQueue>,
    /// Calls that were claimed of it.
    claimed: u32,
}

impl NamespaceQueues {
    fn may_go_on(&self) -> bool {
        !self.queues.is_empty() && self.room != Some(0)
    }
}

/// What a claim may still take.
struct Budget {
    calls: u32,
    bytes: usize,
    slots: Slots,
    /// Places in instances that work already, by version.
    spare: HashMap<(FunctionId, Version), u32>,
    /// Calls at once in one instance, by version.
    parallel: HashMap<(FunctionId, Version), u32>,
}

impl Budget {
    fn new(request: &CallsClaim) -> Self {
        let spare = request.spare.iter();
        let spare = spare.map(|spare| ((spare.function.clone(), spare.version), spare.calls));
        Self {
            calls: request.limit,
            bytes: CLAIM_BYTES,
            slots: request.slots.to_slots(),
            spare: spare.collect(),
            parallel: HashMap::new(),
        }
    }

    /// Takes a call; false where it has no place. A call that joins an instance needs no slot, and one that takes a slot
    /// brings places for others of its version.
    fn take(&mut self, version: &(FunctionId, Version), parallel: u32, others_wait: bool) -> bool {
        if let Some(spare) = self.spare.get_mut(version).filter(|spare| **spare > 0) {
            *spare -= 1;
        } else if self.slots.may_take(&version.0, others_wait) {
            self.slots.take(&version.0);
            self.spare.insert(version.clone(), parallel.max(1) - 1);
        } else {
            return false;
        }
        self.calls -= 1;
        true
    }

    fn parallel(&mut self, tx: &dyn Tx, version: &(FunctionId, Version)) -> StoreResult<u32> {
        if let Some(known) = self.parallel.get(version) {
            return Ok(*known);
        }
        let parallel = tx.version(&version.0, version.1)?.map_or(1, |stored| stored.manifest.serving.parallel());
        self.parallel.insert(version.clone(), parallel);
        Ok(parallel)
    }
}

/// The namespaces that have calls for this worker, with their queues.
fn waiting(tx: &dyn Tx, offer: &Offer, limit: u32) -> StoreResult<Vec<NamespaceQueues>> {
    let mut waiting = Vec::new();
    for WaitingNamespace { name, weight, room } in tx.waiting_namespaces(offer)? {
        let queues = tx.waiting_queues(&name, offer, limit)?.into();
        waiting.push(NamespaceQueues { name, weight, room, queues, claimed: 0 });
    }
    waiting.retain(NamespaceQueues::may_go_on);
    Ok(waiting)
}

/// Claims a part of one queue after another, always of the namespace that holds the least for its weight: neither a long queue nor a
/// namespace with many queues delays a short one.
fn claim(request: &CallsClaim, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
    let offer = Offer {
        engines: request.engines.clone(),
        labels: tx.labels_of(&request.owner.worker)?,
        are_any_bound: tx.are_any_bound_to_nodes()?,
        now: context.now,
    };
    let mut budget = Budget::new(request);
    // Functions that hold their part already may wait before the others.
    let most = request.limit + u32::try_from(request.slots.held.len()).unwrap_or(0);
    let mut waiting = waiting(tx, &offer, most)?;
    while budget.calls > 0 && budget.bytes > 0 {
        let load = |namespace: &&mut NamespaceQueues| {
            (budget.slots.load(&namespace.name, namespace.weight), namespace.claimed / namespace.weight.max(1))
        };
        let namespaces = waiting.len();
        let Some(namespace) = waiting.iter_mut().min_by_key(load) else { return Ok(()) };
        let Some(mut queue) = namespace.queues.pop_front() else { return Ok(()) };
        let sharing = namespaces * (namespace.queues.len() + 1);
        let most = namespace.room.map_or(queue.room, |room| room.min(queue.room));
        let part = Part { queue: &queue, sharing, most };
        let claimed = claim_of(&part, (request, &offer), &mut budget, tx, context)?;
        namespace.claimed += claimed;
        namespace.room = namespace.room.map(|room| room.saturating_sub(claimed));
        queue.room = queue.room.saturating_sub(claimed);
        if claimed > 0 && queue.room > 0 {
            namespace.queues.push_back(queue);
        }
        waiting.retain(NamespaceQueues::may_go_on);
    }
    Ok(())
}

/// A queue whose turn it is.
struct Part<'a> {
    queue: &'a WaitingQueue,
    /// The number of queues that share the claim.
    sharing: usize,
    /// How many of its calls may be claimed.
    most: u32,
}

/// Those of a queue's next calls that its part of the budget has room for.
fn fitting(
    part: &Part<'_>,
    budget: &mut Budget,
    tx: &dyn Tx,
    candidates: Vec<Candidate>,
) -> StoreResult<Vec<Candidate>> {
    let count = u32::try_from(part.sharing).unwrap_or(u32::MAX);
    let busy_at_most = budget.slots.busy() + budget.slots.free().div_ceil(count).max(1);
    let mut fitting = Vec::new();
    for candidate in candidates {
        // The first always fits.
        if budget.bytes < CLAIM_BYTES && candidate.bytes > budget.bytes {
            budget.bytes = 0;
            break;
        }
        let version = (part.queue.function.clone(), candidate.version);
        let parallel = budget.parallel(tx, &version)?;
        if !budget.take(&version, parallel, part.sharing > 1) {
            break;
        }
        budget.bytes = budget.bytes.saturating_sub(candidate.bytes);
        fitting.push(candidate);
        if budget.slots.busy() >= busy_at_most && budget.spare.get(&version).is_none_or(|spare| *spare == 0) {
            break;
        }
    }
    Ok(fitting)
}

/// Claims a queue's part, of calls and of slots; how many calls that were.
fn claim_of(
    part: &Part<'_>,
    (request, offer): (&CallsClaim, &Offer),
    budget: &mut Budget,
    tx: &dyn Tx,
    context: &RequestContext<'_>,
) -> RuleResult<u32> {
    let function = &part.queue.function;
    let share = budget.calls.div_ceil(u32::try_from(part.sharing).unwrap_or(u32::MAX)).min(part.most);
    let candidates = tx.candidates_for_update(function, offer, share)?;
    let event = Event::Claim { owner: request.owner.clone() };
    let cause = Cause { claim: Some(&request.request), ..Cause::default() };
    let calls: Vec<CallNum> = fitting(part, budget, tx, candidates)?.iter().map(|candidate| candidate.num).collect();
    let claimed = apply_same(tx, context, &calls, &event, &cause)?;
    if claimed > 0 {
        tx.end_turn(function)?;
    }
    Ok(u32::try_from(claimed).unwrap_or(u32::MAX))
}

fn millis(span: i64) -> u64 {
    u64::try_from(span).unwrap_or(0)
}

fn job(call: ClaimedCall, code: Code, now: i64) -> CallJob {
    let request = call.spec.sent_request();
    let spec = call.spec;
    let asked = spec.timeout_ms.unwrap_or(code.limits.timeout.0);
    let left = millis(call.expires_at - now);
    let timeout_ms = asked.min(left);
    CallJob {
        num: call.num,
        epoch: call.epoch,
        attempt: call.deliveries,
        code,
        params: spec.params,
        body: spec.body,
        request,
        direct: spec.direct,
        timeout_ms,
        expires: left < asked,
        deadline_unix_ms: now.saturating_add(i64::try_from(timeout_ms).unwrap_or(i64::MAX)),
        queue_ms: millis(now - call.queued_at),
        traceparent: spec.traceparent,
        has_row: true,
        placement: None,
    }
}

impl Write for CallsClaim {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Vec<CallJob>> {
        // The same request may be sent again.
        let mut claimed = tx.claimed_calls(&self.request)?;
        if claimed.is_empty() {
            tx.promote(context.now, context.wall)?;
            claim(self, tx, context)?;
            claimed = tx.claimed_calls(&self.request)?;
        }
        let mut jobs = Vec::with_capacity(claimed.len());
        // Calls of one version run the same.
        let mut codes: HashMap<(FunctionId, Version), Option<Code>> = HashMap::new();
        for call in claimed {
            let version = (FunctionId::new(&call.spec.namespace, &call.spec.function), call.version);
            if !codes.contains_key(&version) {
                let resolved = functions::code(tx, context, &version.0, version.1)?;
                codes.insert(version.clone(), resolved.map(|resolved| resolved.code));
            }
            match &codes[&version] {
                Some(code) => jobs.push(job(call, code.clone(), context.now)),
                None => {
                    let cause = Cause::cancelled(CallStatus::Pending, "its function was deleted before it ran");
                    // A call that has ended meanwhile stays as it is.
                    let _ = apply(tx, context, Step { num: call.num, event: Event::Cancel, cause })?;
                }
            }
        }
        Ok(jobs)
    }
}
