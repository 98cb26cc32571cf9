//! Calls: run, accepted, waited for, found and cancelled, whether or not they have a row.

use std::sync::Arc;
use std::time::Duration;

use faena_domain::plan::{CallPath, CallTarget, CallTerms, plan};
use faena_domain::{CallNum, CallStatus, FunctionId, Namespace, Version};
use faena_protocol::DbError;
use faena_protocol::db::{CallAcknowledge, CallCancel, CallGet, CallList};
use faena_protocol::records::{CallRecord, CallSpec, Code, NewCall};
use faena_scheduler::{Cancel, SyncAnswer, SyncCall};
use tokio::time::Instant;

use crate::app::App;
use crate::problem::{ErrorCode, Problem, Reply, busy, stopping};
use crate::versions::Current;

/// How often a followed call is looked at although nothing was heard of it.
const LOOK: Duration = Duration::from_secs(1);

/// Runs a call without a row until it has ended. If `wait` passes first, the call gets a row and goes on.
pub(crate) async fn run_sync(app: &App, spec: CallSpec, code: &Arc<Code>, wait: Option<Duration>) -> Reply<CallRecord> {
    let permit = app.completions().permit().ok_or_else(busy)?;
    let _waiting = app.follow(&spec.namespace, &spec.function)?;
    let num = spec.num;
    let (call, mut answer) = SyncCall::new(spec, Arc::clone(code), permit);
    if !app.scheduler().submit(call) {
        return Err(busy());
    }
    let runs_out = async {
        tokio::select! {
            () = sleep_or_never(wait) => {}
            () = app.draining().cancelled(), if wait.is_some() => {}
        }
    };
    let answered = tokio::select! {
        answered = &mut answer => answered,
        () = runs_out => {
            app.scheduler().abandon(num).await;
            answer.await
        }
    };
    match answered {
        Ok(SyncAnswer::Ended(call) | SyncAnswer::Persisted(call)) => Ok(*call),
        Ok(SyncAnswer::Refused(error)) => Err(error.into()),
        Err(_) => Err(stopping()),
    }
}

/// Runs a call on the path that its terms and its version give it. If `wait` passes first, the call goes on.
pub(crate) async fn invoke(
    app: &App,
    (spec, version): (CallSpec, Option<Version>),
    (current, asked): (&Current, CallTerms),
    wait: Option<Duration>,
) -> Reply<CallRecord> {
    let terms = CallTerms {
        is_waited: wait.is_some(),
        has_key: spec.key.is_some(),
        has_start: spec.run_at.is_some(),
        has_callback: spec.callback.is_some(),
        ..asked
    };
    let target = CallTarget {
        status: current.status,
        contract: current.code.serving.contract,
        has_concurrency: current.code.concurrency.is_some(),
        is_offered: false,
    };
    // `plan` returns none for WebSockets only, which no JSON asks for.
    match (plan(&terms, &target).unwrap_or(CallPath::Queued), wait) {
        (CallPath::Direct | CallPath::Sync, most) => run_sync(app, spec, &current.code, most).await,
        (CallPath::Queued, Some(most)) => accept_and_wait(app, spec, version, most).await,
        (CallPath::Queued, None) => accept(app, spec, version).await,
    }
}

async fn sleep_or_never(span: Option<Duration>) {
    match span {
        Some(span) => tokio::time::sleep(span).await,
        None => std::future::pending().await,
    }
}

/// Accepts a call durably: its row is committed when this returns.
pub(crate) async fn accept(app: &App, spec: CallSpec, version: Option<Version>) -> Reply<CallRecord> {
    let function = spec.run_at.is_none().then(|| FunctionId::new(&spec.namespace, &spec.function));
    let call = app.accepts().accept(NewCall { spec, version }).await?;
    if let Some(function) = function {
        app.scheduler().poke(function);
    }
    Ok(call)
}

/// Accepts a call durably and waits for its end. If that does not come in time, the call is acknowledged.
pub(crate) async fn accept_and_wait(
    app: &App,
    spec: CallSpec,
    version: Option<Version>,
    wait: Duration,
) -> Reply<CallRecord> {
    let namespace = spec.namespace.clone();
    let call = accept(app, CallSpec { waited: true, ..spec }, version).await?;
    let call = wait_for_end(app, &namespace, call, wait).await?;
    if !call.status.is_terminal() {
        // The client relies on it after the 202: if the call fails, it is a dead letter.
        app.db().ask(&CallAcknowledge { num: call.num }).await?;
    }
    Ok(call)
}

/// A call as it stands: without a row, or with one.
pub(crate) async fn find(app: &App, namespace: &Namespace, num: CallNum) -> Reply<CallRecord> {
    if let Some(call) = app.in_flight().get(namespace, num) {
        return Ok(call);
    }
    match app.db().ask(&CallGet { namespace: namespace.clone(), num }).await {
        // It may have been written between the two looks, or just been submitted.
        Err(error @ DbError::NotFound { .. }) => app.in_flight().get(namespace, num).ok_or_else(|| error.into()),
        found => Ok(found?),
    }
}

/// A call that has its row. Waits for the row of one that has just ended; one that runs without is a conflict.
pub(crate) async fn written(app: &App, namespace: &Namespace, num: CallNum) -> Reply<CallRecord> {
    app.in_flight().written(namespace, num).await;
    if app.in_flight().get(namespace, num).is_some() {
        let detail = format!("call {num} has not ended yet, and a client waits for it");
        return Err(Problem::new(ErrorCode::Conflict, detail));
    }
    Ok(app.db().ask(&CallGet { namespace: namespace.clone(), num }).await?)
}

/// Waits until something is heard of a call, or a second has passed.
pub(crate) async fn something_happens(ends: &mut tokio::sync::broadcast::Receiver<CallNum>, num: CallNum) {
    let heard = async {
        loop {
            match ends.recv().await {
                Ok(ended) if ended != num => {}
                // This call's end, or so many were missed that it may be among them.
                _ => return,
            }
        }
    };
    let _ = tokio::time::timeout(LOOK, heard).await;
}

/// Follows a call until it has ended, the time is over, or the api stops.
pub(crate) async fn wait_for_end(
    app: &App,
    namespace: &Namespace,
    mut call: CallRecord,
    most: Duration,
) -> Reply<CallRecord> {
    // Where too many wait already the call is answered as it stands.
    let Ok(_place) = app.follow(namespace, &call.function) else { return Ok(call) };
    let deadline = Instant::now() + most;
    let mut ends = app.scheduler().ends();
    while !call.status.is_terminal() {
        tokio::select! {
            () = something_happens(&mut ends, call.num) => {}
            () = tokio::time::sleep_until(deadline) => return Ok(call),
            () = app.draining().cancelled() => return Ok(call),
        }
        call = find(app, namespace, call.num).await?;
    }
    Ok(call)
}

/// Cancels a call that has no row; none where it has one.
async fn cancel_in_flight(app: &App, namespace: &Namespace, num: CallNum) -> Reply<Option<CallRecord>> {
    let ended = |status| Err(DbError::Ended { status }.into());
    match app.in_flight().cancel(namespace, num) {
        None => Ok(None),
        Some(Cancel::Ended(status)) => ended(status),
        Some(Cancel::Direct(call)) => {
            call.cancel();
            let call = match app.in_flight().end_of(namespace, num).await {
                Some(call) => call,
                None => find(app, namespace, num).await?,
            };
            // It may have ended by itself before it could be cancelled.
            if call.status == CallStatus::Cancelled { Ok(Some(call)) } else { ended(call.status) }
        }
        // One that is given its row at this moment is cancelled there, and one that has just ended is not.
        Some(Cancel::Sync) => match (app.scheduler().cancel(num).await, app.in_flight().cancel(namespace, num)) {
            (None, Some(Cancel::Ended(status))) => ended(status),
            (cancelled, _) => Ok(cancelled),
        },
    }
}

/// Calls listed per request.
const CANCELLED: u32 = 200;

/// Cancels every call of a namespace that runs and has a row; no other one begins, since its functions are deleted.
pub(crate) async fn cancel_running(app: &App, namespace: &Namespace) -> Reply<()> {
    let mut before = None;
    loop {
        let running = CallList {
            namespace: namespace.clone(),
            function: None,
            status: Some(CallStatus::Running),
            dead: false,
            unreplayed: false,
            before,
            limit: CANCELLED,
        };
        let calls = app.db().ask(&running).await?;
        let Some(last) = calls.last() else { return Ok(()) };
        before = Some(last.num);
        for call in calls {
            match cancel(app, namespace, call.num).await {
                // It has ended by itself meanwhile.
                Err(problem) if problem.is(ErrorCode::AlreadyEnded) || problem.is(ErrorCode::UnknownCall) => {}
                cancelled => drop(cancelled?),
            }
        }
    }
}

/// Cancels a call: one that waits at once, one that runs by ending its instance.
pub(crate) async fn cancel(app: &App, namespace: &Namespace, num: CallNum) -> Reply<CallRecord> {
    if let Some(call) = cancel_in_flight(app, namespace, num).await? {
        return Ok(call);
    }
    let cancelled = app.db().ask(&CallCancel { namespace: namespace.clone(), num }).await?;
    if let Some((owner, epoch)) = cancelled.running {
        app.scheduler().stop(owner, num, epoch).await;
    }
    app.scheduler().tell(num);
    Ok(cancelled.record)
}
