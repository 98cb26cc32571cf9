//! Builds: claimed, leased and fenced like calls.

use faena_domain::build::MAX_REDELIVERIES;
use faena_domain::build_queue::{BuildEntry, BuildEvent, Refused, Said, step};
use faena_domain::queue::Event;
use faena_domain::{
    BlobKey, BuildFailure, CallError, Epoch, ErrorKind, FunctionId, FunctionName, FunctionStatus, ImageName, Layer,
    Namespace,
};
use faena_protocol::DbError;
use faena_protocol::db::{BuildFinish, BuildGet, BuildRetry, BuildsClaim, Resource};
use faena_protocol::records::{BuildJob, BuildOutcome, BuildRecord, BuildRef};

use super::transitions::{Cause, apply_same};
use super::{Read, Request, RequestContext, RuleResult, Write, conflict, not_found, read, refuse, write};
use super::{blobs, functions, quotas};
use crate::clock::day;
use crate::tx::{BlobOwner, BuildEnd, CallSelection, StoreResult, Tx};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] =
    &[read::<BuildGet>(), write::<BuildRetry>(), write::<BuildsClaim>(), write::<BuildFinish>()];

/// Pending builds that are looked at in one claim, at most.
const PENDING: u32 = 256;

fn newest(tx: &dyn Tx, namespace: &Namespace, function: &FunctionName) -> RuleResult<BuildRecord> {
    let newest = tx.newest_build(&FunctionId::new(namespace, function))?;
    Ok(newest.ok_or_else(|| not_found(Resource::Function, function))?)
}

impl Read for BuildGet {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<BuildRecord> {
        newest(tx, &self.namespace, &self.function)
    }
}

impl Write for BuildRetry {
    fn changed_function(&self) -> Option<FunctionId> {
        Some(FunctionId::new(&self.namespace, &self.function))
    }

    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<BuildRecord> {
        let build = newest(tx, &self.namespace, &self.function)?;
        if build.status == FunctionStatus::Ready {
            return conflict(format!("version {} of {} is built already", build.version, self.function));
        }
        quotas::check_build_time(tx, &self.namespace, context.wall)?;
        let (namespace, function) = (self.namespace.clone(), self.function.clone());
        let reference = BuildRef { namespace, function, version: build.version };
        if apply(tx, &reference, &BuildEvent::Again, context)?.is_ok() {
            tx.clear_build(&reference)?;
        }
        newest(tx, &self.namespace, &self.function)
    }
}

/// Takes a step of [`faena_domain::build_queue`] and writes it; a build that does not exist is refused as a stale claim is.
pub(super) fn apply(
    tx: &dyn Tx,
    build: &BuildRef,
    event: &BuildEvent,
    context: &RequestContext<'_>,
) -> StoreResult<Result<BuildEntry, Refused>> {
    let Some(before) = tx.build_for_update(build)? else { return Ok(Err(Refused::Stale)) };
    let after = match step(&before, event, context.now) {
        Ok(after) => after,
        Err(refused) => return Ok(Err(refused)),
    };
    let has_built = before.status == FunctionStatus::Building && after.status != FunctionStatus::Building;
    if has_built && let Some(since) = tx.building_since(build)? {
        tx.add_build_time(&build.namespace, day(context.wall), (context.now - since).max(0))?;
    }
    tx.save_build(build, &after)?;
    Ok(Ok(after))
}

/// The builds that this very claim took already, else pending ones, now taken: the oldest first, within what one function
/// may hold of the worker's slots.
fn claim(request: &BuildsClaim, tx: &dyn Tx, context: &RequestContext<'_>) -> StoreResult<Vec<(BuildRef, Epoch)>> {
    let again = tx.claimed_builds(&request.request)?;
    if !again.is_empty() {
        return Ok(again);
    }
    let labels = tx.labels_of(&request.owner.worker)?;
    let pending = tx.pending_builds(&request.engines, &labels, PENDING)?;
    let mut slots = request.slots.to_slots();
    for build in &pending {
        let function = build.function_id();
        // One that was passed over waits as well.
        let others_wait = pending.iter().any(|other| other.function_id() != function);
        if !slots.may_take(&function, others_wait) {
            continue;
        }
        let event = BuildEvent::Claim { owner: request.owner.clone() };
        if apply(tx, build, &event, context)?.is_ok() {
            slots.take(&function);
            tx.begin_build(build, &request.request, context.now)?;
        }
    }
    tx.claimed_builds(&request.request)
}

/// A version, as an owner of blobs.
fn owner(build: &BuildRef) -> BlobOwner {
    BlobOwner::Version(build.function_id(), build.version)
}

/// Lets go of the image that a version is bound to.
fn release_image(tx: &dyn Tx, build: &BuildRef) -> StoreResult<()> {
    match tx.bound_image(build)? {
        Some(image) => tx.release_one(&owner(build), &image.key),
        None => Ok(()),
    }
}

/// Binds a version to what its image is now, where the platform keeps it.
fn bind_image(tx: &dyn Tx, build: &BuildRef, image: &ImageName) -> StoreResult<()> {
    let content = tx.image(image)?.map(|image| image.content);
    release_image(tx, build)?;
    if let Some(content) = &content {
        tx.refer(&owner(build), &[content.key])?;
    }
    tx.bind_image(build, content.as_ref())
}

impl Write for BuildsClaim {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Vec<BuildJob>> {
        let mut jobs = Vec::new();
        for (build, epoch) in claim(self, tx, context)? {
            let function = build.function_id();
            let Some(stored) = tx.version(&function, build.version)? else { continue };
            bind_image(tx, &build, &stored.runtime.image)?;
            let (env, config) = functions::build_env(tx, context, &build.namespace, &stored.manifest)?;
            if let Some(resolved) = functions::code(tx, context, &function, build.version)? {
                jobs.push(BuildJob { epoch, runtime: stored.runtime, code: resolved.code, env, config });
            }
        }
        Ok(jobs)
    }
}

impl Write for BuildFinish {
    fn changed_function(&self) -> Option<FunctionId> {
        Some(FunctionId::new(&self.namespace, &self.function))
    }

    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        let said = match &self.outcome {
            None => Said::GiveBack,
            Some(outcome) => outcome.result.as_ref().map_or_else(|failure| Said::Failed(failure.kind), |_| Said::Built),
        };
        let build =
            BuildRef { namespace: self.namespace.clone(), function: self.function.clone(), version: self.version };
        let event = BuildEvent::Of { epoch: self.epoch, owner: self.owner.clone(), said };
        match (apply(tx, &build, &event, context)?, &self.outcome) {
            (Err(Refused::Already), _) => Ok(()),
            (Err(Refused::Stale | Refused::NotDue), _) => refuse(DbError::Stale),
            (Ok(after), Some(outcome)) if matches!(after.status, FunctionStatus::Ready | FunctionStatus::Error) => {
                end(tx, &build, outcome, context)?;
                functions::note_public(tx, context, &build.function_id())
            }
            // It is built again.
            (Ok(_), _) => Ok(()),
        }
    }
}

/// Writes how a build ended, and what that means for the calls that wait for it.
fn end(tx: &dyn Tx, build: &BuildRef, outcome: &BuildOutcome, context: &RequestContext<'_>) -> RuleResult<()> {
    let log_tail = if outcome.result.is_err() { outcome.log_tail.as_str() } else { "" };
    tx.end_build(build, BuildEnd { outcome, log_tail, at: context.now })?;
    blobs::refer(tx, &owner(build), [&outcome.log])?;
    match &outcome.result {
        Ok(artifact) => release_calls(tx, build, (artifact, outcome), context),
        Err(failure) => {
            // A build that is tried again binds the image that is current then.
            release_image(tx, build)?;
            fail_calls(tx, build, failure, context)
        }
    }
}

/// The version is what calls run from now on, and those that waited for it can be claimed.
fn release_calls(
    tx: &dyn Tx,
    build: &BuildRef,
    (artifact, outcome): (&BlobKey, &BuildOutcome),
    context: &RequestContext<'_>,
) -> RuleResult<()> {
    tx.refer(&owner(build), &[*artifact])?;
    let function = build.function_id();
    if tx.raise_current(&function, build.version)?
        && let Some(resolved) = functions::code(tx, context, &function, build.version)?
    {
        tx.set_concurrency(&function, resolved.code.concurrency)?;
    }
    // `Event::Built` for all of them at once.
    Ok(tx.make_ready(build, outcome.engine, context.now)?)
}

/// The error of a call whose version could not be built.
pub(super) fn call_error(failure: &BuildFailure) -> CallError {
    let kind = if failure.kind == ErrorKind::Image { ErrorKind::Image } else { ErrorKind::Build };
    CallError::new(kind, Layer::Build, failure.message.clone())
}

fn fail_calls(tx: &dyn Tx, build: &BuildRef, failure: &BuildFailure, context: &RequestContext<'_>) -> RuleResult<()> {
    let waiting = tx.select_calls(CallSelection::WaitingFor(build))?;
    let cause = Cause { error: Some(call_error(failure)), ..Cause::default() };
    apply_same(tx, context, &waiting, &Event::BuildFailed, &cause).map(drop)
}

/// Builds that lost their workers are started again, a few times; how many there were.
pub(super) fn lose(tx: &dyn Tx, lost: &[BuildRef], context: &RequestContext<'_>) -> RuleResult<u64> {
    for build in lost {
        if let Ok(BuildEntry { status: FunctionStatus::Error, .. }) = apply(tx, build, &BuildEvent::Lost, context)? {
            give_up(tx, build, context)?;
        }
    }
    Ok(lost.len() as u64)
}

fn give_up(tx: &dyn Tx, build: &BuildRef, context: &RequestContext<'_>) -> RuleResult<()> {
    let failure = BuildFailure {
        kind: ErrorKind::Infrastructure,
        message: format!("the build was given up: its worker was lost {} times while it ran", MAX_REDELIVERIES + 1),
    };
    tx.fail_build(build, &failure, context.now)?;
    fail_calls(tx, build, &failure, context)
}
