//! One queue for each function: how much waits in it, which is served next, and what a worker gets.

use std::collections::{HashMap, VecDeque};

use faena_domain::queue::Event;
use faena_domain::{CallNum, CallStatus, Epoch, FunctionId, Manifest, Namespace, Slots, Version};
use faena_protocol::DbError;
use faena_protocol::db::CallsClaim;
use faena_protocol::records::{CallJob, CallSpec};
use rusqlite::{Connection, OptionalExtension, Row};

use super::queue::{TransitionContext, apply};
use super::requests::{Request, RequestContext, Write, write};
use super::rows::{Json, Text};
use super::{functions, internal, nodes};
use crate::QueueBounds;

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[write::<CallsClaim>()];

/// What the specs of one claim may hold together: they travel in one message, beside the code of each.
const CLAIM_BYTES: usize = 2 * 1024 * 1024;

/// The calls of a queue in their order, and what each adds to the message.
fn best_sql(permitted: &str) -> String {
    format!(
        "SELECT num, version, length(spec) FROM calls c WHERE namespace = ?1 AND function = ?2 AND status = 'PENDING' AND due = 1
         AND expires_at > ?3 AND engine IN (SELECT value FROM json_each(?4)) AND {permitted} ORDER BY priority DESC, num LIMIT ?6"
    )
}

/// What a worker can take of what waits: its engines and the labels of its node, both as JSON.
struct Offer {
    engines: String,
    labels: String,
    /// The condition of SQL on a call `c` that its version permits the node; the labels are `?5`.
    permitted: String,
}

impl Offer {
    fn of(request: &CallsClaim, connection: &Connection) -> Result<Self, DbError> {
        let labels = nodes::labels_of(connection, &request.owner)?;
        let are_any_bound = nodes::are_any_bound(connection).map_err(|error| internal("claiming calls", &error))?;
        // Every query names the labels, so that all of them have the same parameters.
        let permitted = if are_any_bound {
            format!(
                "EXISTS (SELECT 1 FROM versions v WHERE v.namespace = c.namespace AND v.function = c.function
                 AND v.version = c.version AND {})",
                nodes::permits("v.nodes", "?5")
            )
        } else {
            "?5 IS NOT NULL".to_owned()
        };
        let engines = serde_json::to_string(&request.engines).unwrap_or_default();
        Ok(Self { engines, labels: serde_json::to_string(&labels).unwrap_or_default(), permitted })
    }
}

/// What waits in a queue, or in all of them.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    calls: u64,
    bytes: u64,
}

/// What one request knows of a queue, and puts into it.
#[derive(Debug, Default)]
struct Entering {
    /// What waits there; none before that was asked.
    waiting: Option<Waiting>,
    calls: u64,
    bytes: u64,
    due: u64,
}

/// The calls that one request puts into queues: what waits there is read once, and what comes is added once, by
/// [`EnqueueBatch::settle`], which has to happen before any of these calls takes a step, and at the end.
#[derive(Debug, Default)]
pub(super) struct EnqueueBatch {
    queues: HashMap<FunctionId, Entering>,
    everywhere: Option<Waiting>,
}

impl EnqueueBatch {
    /// Whether one more call may wait.
    ///
    /// # Errors
    /// [`DbError::QueueFull`] names the bound.
    pub(super) fn has_room(
        &mut self,
        connection: &Connection,
        spec: &CallSpec,
        weight: u64,
        bounds: &QueueBounds,
    ) -> Result<(), DbError> {
        let broken = |error| internal("counting calls", &error);
        let key = key(spec);
        let queue = match self.queues.get(&key).and_then(|queue| queue.waiting) {
            Some(read) => read,
            None => waiting_in(connection, &key).map_err(broken)?,
        };
        let all = match self.everywhere {
            Some(read) => read,
            None => waiting_everywhere(connection).map_err(broken)?,
        };
        self.queues.entry(key).or_default().waiting = Some(queue);
        self.everywhere = Some(all);
        let full = |message: String| Err(DbError::QueueFull { message });
        match () {
            () if queue.calls >= bounds.function_calls => {
                full(format!("{} calls of {} wait already, and no more may", queue.calls, spec.function))
            }
            () if queue.bytes + weight > bounds.function_bytes.0 => {
                full(format!("the waiting calls of {} hold {}, and no more may", spec.function, bounds.function_bytes))
            }
            () if all.calls >= bounds.calls => full(format!("{} calls wait already, and no more may", all.calls)),
            () if all.bytes + weight > bounds.bytes.0 => {
                full(format!("the waiting calls hold {}, and no more may", bounds.bytes))
            }
            () => Ok(()),
        }
    }

    /// One more call waits: its row has been written.
    pub(super) fn enter(&mut self, spec: &CallSpec, weight: u64, is_due: bool) {
        let queue = self.queues.entry(key(spec)).or_default();
        for waiting in queue.waiting.iter_mut().chain(&mut self.everywhere) {
            waiting.calls += 1;
            waiting.bytes += weight;
        }
        queue.calls += 1;
        queue.bytes += weight;
        queue.due += u64::from(is_due);
    }

    /// Adds to the queues what came since the last time, and forgets what waited there: what follows may be a step that changes it.
    pub(super) fn settle(&mut self, connection: &Connection) -> Result<(), DbError> {
        let came = std::mem::take(self).queues.into_iter().filter(|(_, queue)| queue.calls > 0);
        let write = || -> rusqlite::Result<()> {
            for (function, Entering { calls, bytes, due, .. }) in came {
                connection
                    .prepare_cached(
                        "INSERT INTO function_queues (namespace, function, pending, bytes, due) VALUES (?1, ?2, ?3, ?4, ?5)
                         ON CONFLICT (namespace, function) DO UPDATE
                             SET pending = pending + excluded.pending, bytes = bytes + excluded.bytes, due = due + excluded.due",
                    )?
                    .execute((function.namespace.as_str(), function.name.key(), calls, bytes, due))?;
                connection
                    .prepare_cached("UPDATE totals SET pending = pending + ?1, bytes = bytes + ?2")?
                    .execute((calls, bytes))?;
            }
            Ok(())
        };
        write().map_err(|error| internal("counting calls", &error))
    }
}

fn key(spec: &CallSpec) -> FunctionId {
    FunctionId::new(&spec.namespace, &spec.function)
}

fn waiting_in(connection: &Connection, function: &FunctionId) -> rusqlite::Result<Waiting> {
    let read = connection
        .prepare_cached("SELECT pending, bytes FROM function_queues WHERE namespace = ?1 AND function = ?2")?
        .query_row((function.namespace.as_str(), function.name.key()), waiting)
        .optional()?;
    Ok(read.unwrap_or(Waiting { calls: 0, bytes: 0 }))
}

fn waiting_everywhere(connection: &Connection) -> rusqlite::Result<Waiting> {
    connection.prepare_cached("SELECT pending, bytes FROM totals")?.query_row([], waiting)
}

fn waiting(row: &Row<'_>) -> rusqlite::Result<Waiting> {
    Ok(Waiting { calls: row.get(0)?, bytes: row.get(1)? })
}

/// Sets how many calls of a function may run at once.
pub(super) fn set_concurrency(
    connection: &Connection,
    namespace: &str,
    function: &str,
    concurrency: Option<u32>,
) -> rusqlite::Result<()> {
    connection
        .execute(
            "INSERT INTO function_queues (namespace, function, concurrency) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET concurrency = excluded.concurrency",
            (namespace, function, concurrency),
        )
        .map(drop)
}

/// Calls whose pause is over, or whose instant has come, can be claimed from now on.
pub(super) fn promote(connection: &Connection, context: &RequestContext<'_>) -> rusqlite::Result<()> {
    let waiting = "SELECT 1 FROM calls WHERE status = 'PENDING' AND run_at <= ?1 LIMIT 1";
    if connection.prepare_cached(waiting)?.exists([context.wall])? {
        connection
            .prepare_cached(
                "UPDATE calls SET run_at = NULL, not_before = ?2, queued_at = ?2, expires_at = max(?2 + (spec ->> 'maxAgeMs') - (?1 - run_at), ?2)
                 WHERE status = 'PENDING' AND run_at <= ?1",
            )?
            .execute((context.wall, context.now))?;
    }
    let waiting = "SELECT 1 FROM calls WHERE status = 'PENDING' AND ready = 1 AND due = 0 AND not_before <= ?1 AND run_at IS NULL LIMIT 1";
    if connection.prepare_cached(waiting)?.exists([context.now])? {
        connection
            .prepare_cached(
                "UPDATE calls SET due = 1
                 WHERE status = 'PENDING' AND ready = 1 AND due = 0 AND not_before <= ?1 AND run_at IS NULL",
            )?
            .execute([context.now])?;
    }
    Ok(())
}

#[derive(Debug)]
struct FunctionQueue {
    function: FunctionId,
    /// How many more may run.
    room: u32,
}

/// A namespace with calls that wait, and its queues in the order of their turns.
#[derive(Debug)]
struct NamespaceQueues {
    name: Namespace,
    weight: u32,
    /// How many more of its calls may run; none is no bound.
    room: Option<u32>,
    queues: VecDeque<FunctionQueue>,
    /// Calls that were claimed of it.
    claimed: u32,
}

/// The namespaces that have calls which are due.
fn namespaces(connection: &Connection, offer: &Offer) -> rusqlite::Result<Vec<NamespaceQueues>> {
    // From one name to the next by the index: as many steps as namespaces, however many functions they have.
    let permitted = nodes::permits("n.nodes", "?1");
    let mut statement = connection.prepare_cached(&format!(
        "WITH RECURSIVE waiting (name) AS (
             SELECT min(namespace) FROM function_queues WHERE due > 0
             UNION ALL
             SELECT (SELECT min(namespace) FROM function_queues WHERE due > 0 AND namespace > waiting.name) FROM waiting
             WHERE waiting.name IS NOT NULL
         )
         SELECT w.name, coalesce(n.weight, 1),
             iif(n.quota ->> 'concurrentCalls' IS NULL, NULL, n.quota ->> 'concurrentCalls'
                 - (SELECT count(*) FROM calls c INDEXED BY calls_leased WHERE c.status = 'RUNNING' AND c.namespace = w.name))
         FROM waiting w LEFT JOIN namespaces n ON n.name = w.name WHERE w.name IS NOT NULL AND {permitted}",
    ))?;
    let namespace = |row: &Row<'_>| {
        let room: Option<i64> = row.get(2)?;
        Ok(NamespaceQueues {
            name: row.get::<_, Text<_>>(0)?.0,
            weight: row.get(1)?,
            room: room.map(|room| u32::try_from(room).unwrap_or(0)),
            queues: VecDeque::new(),
            claimed: 0,
        })
    };
    statement.query_map([&offer.labels], namespace)?.collect()
}

/// The queues of a namespace that have calls for these engines; the one that was not served for the longest comes first.
fn queues(
    connection: &Connection,
    namespace: &Namespace,
    offer: &Offer,
    (limit, now): (u32, i64),
) -> rusqlite::Result<VecDeque<FunctionQueue>> {
    let permitted = &offer.permitted;
    let mut statement = connection.prepare_cached(&format!(
        "SELECT function, min(coalesce(concurrency - running, ?2), ?2) FROM function_queues l
         WHERE namespace = ?4 AND due > 0 AND (concurrency IS NULL OR running < concurrency)
         AND EXISTS (SELECT 1 FROM calls c WHERE c.namespace = l.namespace AND c.function = l.function
             AND c.status = 'PENDING' AND c.due = 1 AND c.expires_at > ?3 AND c.engine IN (SELECT value FROM json_each(?1)) AND {permitted})
         ORDER BY turn LIMIT ?2",
    ))?;
    let queue = |row: &Row<'_>| {
        let Text(name) = row.get(0)?;
        Ok(FunctionQueue { function: FunctionId { namespace: namespace.clone(), name }, room: row.get(1)? })
    };
    statement.query_map((&offer.engines, limit, now, namespace.as_str(), &offer.labels), queue)?.collect()
}

fn next_turn(connection: &Connection, queue: &FunctionQueue) -> rusqlite::Result<()> {
    connection.prepare_cached("UPDATE totals SET turn = turn + 1")?.execute([])?;
    connection
        .prepare_cached(
            "UPDATE function_queues SET turn = (SELECT turn FROM totals) WHERE namespace = ?1 AND function = ?2",
        )?
        .execute((queue.function.namespace.as_str(), queue.function.name.key()))
        .map(drop)
}

/// A call that may be claimed.
struct Candidate {
    num: CallNum,
    version: Version,
    /// What it adds to the message.
    bytes: usize,
}

fn best(connection: &Connection, offer: &Offer, params: impl rusqlite::Params) -> rusqlite::Result<Vec<Candidate>> {
    let candidate =
        |row: &Row<'_>| Ok(Candidate { num: CallNum(row.get(0)?), version: Version(row.get(1)?), bytes: row.get(2)? });
    connection.prepare_cached(&best_sql(&offer.permitted))?.query_map(params, candidate)?.collect()
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

    fn parallel(&mut self, connection: &Connection, version: &(FunctionId, Version)) -> rusqlite::Result<u32> {
        if let Some(known) = self.parallel.get(version) {
            return Ok(*known);
        }
        let (function, number) = version;
        let manifest: Option<Json<Manifest>> = connection
            .prepare_cached("SELECT manifest FROM versions WHERE namespace = ?1 AND function = ?2 AND version = ?3")?
            .query_row((function.namespace.as_str(), function.name.key(), number.0), |row| row.get(0))
            .optional()?;
        let parallel = manifest.map_or(1, |Json(manifest)| manifest.serving.parallel());
        self.parallel.insert(version.clone(), parallel);
        Ok(parallel)
    }
}

/// Claims a part of one queue after the other, of the namespace that has least for its weight: neither a long queue nor a
/// namespace with many queues delays a short one.
fn claim(request: &CallsClaim, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
    let broken = |error| internal("claiming calls", &error);
    let offer = Offer::of(request, connection)?;
    let mut budget = Budget::new(request);
    // Functions that hold their part already may wait before the others.
    let most = request.limit + u32::try_from(request.slots.held.len()).unwrap_or(0);
    let mut waiting = namespaces(connection, &offer).map_err(broken)?;
    for namespace in &mut waiting {
        namespace.queues = queues(connection, &namespace.name, &offer, (most, context.now)).map_err(broken)?;
    }
    waiting.retain(NamespaceQueues::may_go_on);
    while budget.calls > 0 && budget.bytes > 0 {
        let load = |namespace: &&mut NamespaceQueues| {
            (budget.slots.load(&namespace.name, namespace.weight), namespace.claimed / namespace.weight.max(1))
        };
        let namespaces = waiting.len();
        let Some(namespace) = waiting.iter_mut().min_by_key(load) else { return Ok(()) };
        let Some(mut queue) = namespace.queues.pop_front() else { return Ok(()) };
        let queues = namespaces * (namespace.queues.len() + 1);
        let others_wait = queues > 1;
        let most = namespace.room.map_or(queue.room, |room| room.min(queue.room));
        let part = Part { queue: &queue, queues, others_wait, most };
        let claimed = claim_of(&part, (request, &offer), &mut budget, connection, context)?;
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

impl NamespaceQueues {
    fn may_go_on(&self) -> bool {
        !self.queues.is_empty() && self.room != Some(0)
    }
}

/// A queue whose turn it is.
struct Part<'a> {
    queue: &'a FunctionQueue,
    /// Its part of a claim is what each of so many queues would get.
    queues: usize,
    others_wait: bool,
    /// How many of its calls may be claimed.
    most: u32,
}

/// Claims a queue's part, of calls and of slots; how many calls that were.
fn claim_of(
    part: &Part<'_>,
    (request, offer): (&CallsClaim, &Offer),
    budget: &mut Budget,
    connection: &Connection,
    context: &RequestContext<'_>,
) -> Result<u32, DbError> {
    let broken = |error| internal("claiming calls", &error);
    let Part { queue, queues, others_wait, most } = *part;
    let count = u32::try_from(queues).unwrap_or(u32::MAX);
    let share = budget.calls.div_ceil(count).min(most);
    let busy_at_most = budget.slots.busy() + budget.slots.free().div_ceil(count).max(1);
    let mut claimed = 0;
    let of_queue = (queue.function.namespace.as_str(), queue.function.name.key());
    let params = (of_queue.0, of_queue.1, context.now, &offer.engines, &offer.labels, share);
    for candidate in best(connection, offer, params).map_err(broken)? {
        // The first always fits.
        if budget.bytes < CLAIM_BYTES && candidate.bytes > budget.bytes {
            budget.bytes = 0;
            break;
        }
        let version = (queue.function.clone(), candidate.version);
        let parallel = budget.parallel(connection, &version).map_err(broken)?;
        if !budget.take(&version, parallel, others_wait) {
            break;
        }
        budget.bytes = budget.bytes.saturating_sub(candidate.bytes);
        let event = Event::Claim { owner: request.owner.clone() };
        let cause = TransitionContext { claim: Some(request.request.clone()), ..TransitionContext::default() };
        claimed += u32::from(apply(connection, candidate.num, &event, context, cause)?.is_some());
        if budget.slots.busy() >= busy_at_most && budget.spare.get(&version).is_none_or(|spare| *spare == 0) {
            break;
        }
    }
    if claimed > 0 {
        next_turn(connection, queue).map_err(broken)?;
    }
    Ok(claimed)
}

/// A claimed row, before it becomes a job.
struct ClaimedCall {
    num: CallNum,
    spec: CallSpec,
    version: Version,
    epoch: i64,
    deliveries: u32,
    queued_at: i64,
    expires_at: i64,
}

fn taken(request: &CallsClaim, connection: &Connection) -> rusqlite::Result<Vec<ClaimedCall>> {
    let mut statement = connection.prepare_cached(
        "SELECT num, spec, version, epoch, deliveries, queued_at, expires_at FROM calls
         WHERE claim = ?1 AND status = 'RUNNING' ORDER BY num",
    )?;
    let rows = statement.query_map([&request.request], |row| {
        let Json(spec) = row.get(1)?;
        Ok(ClaimedCall {
            num: CallNum(row.get(0)?),
            spec,
            version: Version(row.get(2)?),
            epoch: row.get(3)?,
            deliveries: row.get(4)?,
            queued_at: row.get(5)?,
            expires_at: row.get(6)?,
        })
    })?;
    rows.collect()
}

fn millis(span: i64) -> u64 {
    u64::try_from(span).unwrap_or(0)
}

fn job(call: ClaimedCall, code: faena_protocol::records::Code, now: i64) -> CallJob {
    let request = call.spec.sent_request();
    let spec = call.spec;
    let asked = spec.timeout_ms.unwrap_or(code.limits.timeout.0);
    let left = millis(call.expires_at - now);
    let timeout_ms = asked.min(left);
    CallJob {
        num: call.num,
        epoch: Epoch(call.epoch),
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
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Vec<CallJob>, DbError> {
        let broken = |error| internal("claiming calls", &error);
        let mut claimed = taken(&self, connection).map_err(broken)?;
        if claimed.is_empty() {
            promote(connection, context).map_err(broken)?;
            claim(&self, connection, context)?;
            claimed = taken(&self, connection).map_err(broken)?;
        }
        let mut jobs = Vec::with_capacity(claimed.len());
        for call in claimed {
            let spec = &call.spec;
            match functions::code(connection, &spec.namespace, &spec.function, call.version)? {
                Some(resolved) => jobs.push(job(call, resolved.code, context.now)),
                None => {
                    let cause =
                        TransitionContext::cancelled(CallStatus::Pending, "its function was deleted before it ran");
                    apply(connection, call.num, &Event::Cancel, context, cause)?;
                }
            }
        }
        Ok(jobs)
    }
}
