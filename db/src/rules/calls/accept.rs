//! Accepting calls, many in one message: what all of them need is read first, each is decided by itself, and the accepted ones are
//! written together.

use std::collections::{HashMap, HashSet};

use faena_domain::queue::{Entry, Event};
use faena_domain::retry::DEFAULT_RETRIES;
use faena_domain::{CallNum, EngineKind, FunctionId, FunctionStatus, Payload, Version};
use faena_protocol::DbError;
use faena_protocol::db::CallsAccept;
use faena_protocol::records::{Accepted, CallSpec, NewCall, ResolvedVersion};

use super::find;
use crate::QueueBounds;
use crate::rules::idempotency_keys::Keys;
use crate::rules::transitions::{Cause, Step, apply_all};
use crate::rules::{RequestContext, RuleError, RuleResult, Write, blobs, builds, functions, refuse};
use crate::tx::{BlobOwner, NewCallRow, StoreResult, Tx, Waiting};

pub(super) fn millis(span: u64) -> i64 {
    i64::try_from(span).unwrap_or(i64::MAX)
}

/// What a call holds while it waits.
fn weight(spec: &CallSpec) -> u64 {
    spec.params.len() + spec.body.as_ref().map_or(0, Payload::len)
}

/// A call about to get its row.
pub(super) fn new_row<'a>(
    spec: &'a CallSpec,
    (version, engine): (Version, Option<EngineKind>),
    entry: Entry,
    (created_at, now): (i64, i64),
) -> NewCallRow<'a> {
    let is_due = entry.ready && entry.not_before <= now && spec.run_at.is_none();
    NewCallRow { spec, version, engine, entry, bytes: weight(spec), is_due, created_at }
}

/// Writes calls that wait, and counts them in their queues.
pub(super) fn enqueue(tx: &dyn Tx, rows: &[NewCallRow<'_>]) -> StoreResult<()> {
    tx.insert_calls(rows)?;
    let mut added: HashMap<FunctionId, Waiting> = HashMap::new();
    for NewCallRow { spec, bytes, is_due, .. } in rows {
        let owner = BlobOwner::Call(spec.namespace.clone(), spec.num);
        blobs::refer(tx, &owner, [&spec.params].into_iter().chain(&spec.body))?;
        let queue = added.entry(FunctionId::new(&spec.namespace, &spec.function)).or_default();
        queue.calls += 1;
        queue.bytes += bytes;
        queue.due += u64::from(*is_due);
    }
    let added: Vec<(FunctionId, Waiting)> = added.into_iter().collect();
    if added.is_empty() { Ok(()) } else { tx.add_waiting(&added) }
}

/// What waits in the queues that calls of one message go to.
#[derive(Debug, Default)]
struct Queues {
    functions: HashMap<FunctionId, Waiting>,
    everywhere: Waiting,
}

impl Queues {
    fn of<'a>(tx: &dyn Tx, calls: impl Iterator<Item = &'a CallSpec>) -> StoreResult<Self> {
        let functions: HashSet<FunctionId> =
            calls.map(|spec| FunctionId::new(&spec.namespace, &spec.function)).collect();
        let functions: Vec<FunctionId> = functions.into_iter().collect();
        let waiting = tx.waiting_in(&functions)?;
        Ok(Self { functions: functions.into_iter().zip(waiting).collect(), everywhere: tx.waiting_everywhere()? })
    }

    /// Whether one more call may wait.
    ///
    /// # Errors
    /// [`DbError::QueueFull`] names the bound.
    fn has_room(&self, function: &FunctionId, spec: &CallSpec, bounds: &QueueBounds) -> Result<(), DbError> {
        let (weight, all) = (weight(spec), self.everywhere);
        let queue = self.functions.get(function).copied().unwrap_or_default();
        let full = |message: String| Err(DbError::QueueFull { message });
        if queue.calls >= bounds.function_calls {
            return full(format!("{} calls of {} are waiting, which is the most", queue.calls, spec.function));
        }
        if queue.bytes + weight > bounds.function_bytes.0 {
            let most = bounds.function_bytes;
            return full(format!("the waiting calls of {} would hold more than {most}", spec.function));
        }
        if all.calls >= bounds.calls {
            return full(format!("{} calls are waiting, which is the most", all.calls));
        }
        if all.bytes + weight > bounds.bytes.0 {
            return full(format!("the waiting calls would hold more than {}", bounds.bytes));
        }
        Ok(())
    }

    /// One more call waits.
    fn enter(&mut self, function: &FunctionId, spec: &CallSpec) {
        let queue = self.functions.entry(function.clone()).or_default();
        for waiting in [queue, &mut self.everywhere] {
            waiting.calls += 1;
            waiting.bytes += weight(spec);
        }
    }
}

/// What is decided of a call.
enum Decision {
    /// It is new.
    New { version: Version, engine: Option<EngineKind> },
    /// It is there already, or stands for one that is.
    Known(CallNum),
}

/// The calls of one message.
struct Accepting<'a> {
    context: &'a RequestContext<'a>,
    /// Calls that have a row, or are about to get one.
    existing: HashSet<CallNum>,
    keys: Keys,
    queues: Queues,
    /// Versions that were looked up, by the version that was asked for.
    versions: HashMap<(FunctionId, Option<Version>), ResolvedVersion>,
    rows: Vec<NewCallRow<'a>>,
    /// What happens to calls once all rows are written.
    steps: Vec<Step<'a>>,
}

impl<'a> Accepting<'a> {
    fn begin(tx: &dyn Tx, context: &'a RequestContext<'a>, calls: &[NewCall]) -> StoreResult<Self> {
        let numbers: Vec<CallNum> = calls.iter().map(|call| call.spec.num).collect();
        let specs = || calls.iter().map(|call| &call.spec);
        Ok(Self {
            context,
            existing: tx.existing_calls(&numbers)?.into_iter().collect(),
            keys: Keys::of(tx, specs())?,
            queues: Queues::of(tx, specs())?,
            versions: HashMap::new(),
            rows: Vec::new(),
            steps: Vec::new(),
        })
    }

    fn resolve(&mut self, tx: &dyn Tx, spec: &CallSpec, version: Option<Version>) -> RuleResult<&ResolvedVersion> {
        let key = (FunctionId::new(&spec.namespace, &spec.function), version);
        if !self.versions.contains_key(&key) {
            let resolved = functions::resolve(tx, self.context, &key.0, version)?;
            self.versions.insert(key.clone(), resolved);
        }
        Ok(&self.versions[&key])
    }

    /// Decides about a call. If it is refused, nothing of it is written.
    fn decide(&mut self, tx: &dyn Tx, NewCall { spec, version }: &'a NewCall) -> RuleResult<Decision> {
        if self.existing.contains(&spec.num) {
            return Ok(Decision::Known(spec.num));
        }
        if let Some(earlier) = self.keys.earlier(spec)? {
            let num = earlier.call;
            if !spec.waited {
                // This client gets 202, even if another one waits.
                self.steps.push(Step::new(num, Event::Acknowledged));
            }
            return Ok(Decision::Known(num));
        }
        self.context.takes_new_work()?;
        let context = self.context;
        let resolved = self.resolve(tx, spec, *version)?;
        let (status, chosen) = (resolved.status, (resolved.code.version, resolved.code.engine));
        let entry = accepted(spec, resolved, context);
        let function = FunctionId::new(&spec.namespace, &spec.function);
        self.queues.has_room(&function, spec, &context.settings.queue)?;
        self.keys.remember(tx, spec, context.now)?;
        self.existing.insert(spec.num);
        self.rows.push(new_row(spec, chosen, entry, (context.now, context.now)));
        if status == FunctionStatus::Error {
            let error = tx.build_failure(&function, chosen.0)?.as_ref().map(builds::call_error);
            let cause = Cause { error, ..Cause::default() };
            self.steps.push(Step { num: spec.num, event: Event::BuildFailed, cause });
            return Ok(Decision::Known(spec.num));
        }
        self.queues.enter(&function, spec);
        Ok(Decision::New { version: chosen.0, engine: chosen.1 })
    }

    fn write(self, tx: &dyn Tx) -> RuleResult<()> {
        enqueue(tx, &self.rows)?;
        tx.insert_keys(&self.keys.into_new())?;
        apply_all(tx, self.context, self.steps).map(drop)
    }
}

/// The entry of a call that is accepted now.
fn accepted(spec: &CallSpec, resolved: &ResolvedVersion, context: &RequestContext<'_>) -> Entry {
    let retries = spec.retries.or(resolved.retries).unwrap_or(DEFAULT_RETRIES);
    // The age of a call with `runAt` begins at that time.
    let expires_at = if spec.run_at.is_some() { i64::MAX } else { context.now.saturating_add(millis(spec.max_age_ms)) };
    Entry::accepted(retries, context.now, expires_at, resolved.status == FunctionStatus::Ready, spec.waited)
}

/// Accepts calls. One that is refused does not affect the others.
pub(super) fn accept(
    tx: &dyn Tx,
    context: &RequestContext<'_>,
    calls: &[NewCall],
) -> RuleResult<Vec<Result<Accepted, DbError>>> {
    let mut accepting = Accepting::begin(tx, context, calls)?;
    let mut decisions = Vec::with_capacity(calls.len());
    for call in calls {
        decisions.push(refusal(accepting.decide(tx, call))?);
    }
    accepting.write(tx)?;
    let answer = |(call, decision): (&NewCall, Result<Decision, DbError>)| match decision {
        Ok(Decision::New { version, engine }) => Ok(Ok(Accepted::New { version, engine, created_at: context.now })),
        Ok(Decision::Known(num)) => {
            refusal(find(tx, &call.spec.namespace, num).map(|call| Accepted::Known(Box::new(call))))
        }
        Err(refused) => Ok(Err(refused)),
    };
    calls.iter().zip(decisions).map(answer).collect()
}

/// Separates the refusal of one call from a failure of the store.
fn refusal<T>(result: RuleResult<T>) -> RuleResult<Result<T, DbError>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(RuleError::Refused(error)) => Ok(Err(error)),
        Err(error @ RuleError::Store(_)) => Err(error),
    }
}

/// Accepts one call.
pub(super) fn accept_one(tx: &dyn Tx, context: &RequestContext<'_>, call: NewCall) -> RuleResult<Accepted> {
    match accept(tx, context, &[call])?.pop() {
        Some(Ok(accepted)) => Ok(accepted),
        Some(Err(error)) => refuse(error),
        None => refuse(DbError::Internal { message: "a call was neither accepted nor refused".to_owned() }),
    }
}

impl Write for CallsAccept {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Self::Reply> {
        accept(tx, context, &self.calls)
    }
}
