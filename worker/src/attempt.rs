//! One attempt at a call: an instance of the pool, the call in it, and what is told of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use faena_domain::call::StartKind;
use faena_domain::{CallError, CallStatus, Contract, ErrorKind, Layer};
use faena_miniworker::{
    AttemptFailure, AttemptReport, CallInput, InstanceCall, InstanceState, LeaseEnd, Node, StartError, fetch_image,
    run_command,
};
use faena_pool::{ExecLease, Pool, Release};
use faena_protocol::records::{CallJob, Outcome};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// An attempt that is over.
#[derive(Debug)]
pub struct FinishedAttempt {
    /// How it ended; none where the node stopped before it could end.
    pub outcome: Option<Outcome>,
    release: Option<Release>,
}

impl FinishedAttempt {
    /// Waits until what it ran in is clean, or gone.
    pub async fn released(self) {
        if let Some(release) = self.release {
            release.done().await;
        }
    }
}

/// Runs one attempt to its end. `started` is called when it begins in its instance.
pub async fn run_attempt(
    pool: &Pool,
    job: &CallJob,
    lease: LeaseEnd,
    stop: &CancellationToken,
    started: impl FnOnce() + Send + 'static,
) -> FinishedAttempt {
    // It may take longer than the call may.
    let fetched = stop.run_until_cancelled(fetch_image(pool.node(), &job.code)).await;
    let mut report = AttemptReport::new(pool.node(), job);
    let (ran, release) = if let Some(Err(error)) = fetched {
        (Err(error.into()), None)
    } else if job.code.serving.contract == Contract::Command {
        run_in_instance(pool, job, &mut report, lease, stop, started).await
    } else {
        (call_server(pool, job, lease, stop, started).await, None)
    };
    let outcome = match ran {
        Ok(outcome) => Some(outcome),
        Err(AttemptFailure::Call(error)) => Some(report.failed(error)),
        Err(AttemptFailure::Stopped) => None,
    };
    if let Some(error) = outcome.as_ref().and_then(|outcome| outcome.error.as_ref()) {
        // One line for each failed attempt.
        info!(call = %job.num, function = %job.code.function, attempt = job.attempt, kind = ?error.kind, layer = ?error.layer, "a call failed");
    }
    FinishedAttempt { outcome, release }
}

/// One call of an instance that answers many.
async fn call_server(
    pool: &Pool,
    job: &CallJob,
    lease: LeaseEnd,
    stop: &CancellationToken,
    started: impl FnOnce() + Send + 'static,
) -> Result<Outcome, AttemptFailure> {
    let node = pool.node();
    let input = CallInput::load(&node.blobs, job).await?;
    let (tell, told) = oneshot::channel();
    let call = InstanceCall::of_job((job, node), input, lease, started, move |end| drop(tell.send(end)));
    if stop.is_cancelled() {
        return Err(AttemptFailure::Stopped);
    }
    let full = |_| AttemptFailure::Call(StartError::Full.into_call_error());
    pool.call(&Arc::new(job.code.clone()), call).map_err(full)?;
    let mut end = tokio::select! {
        end = told => end.map_err(|_| AttemptFailure::Stopped)?,
        () = stop.cancelled() => {
            pool.cancel(job.num);
            return Err(AttemptFailure::Stopped);
        }
    };
    if end.error.is_none() && !job.direct && std::str::from_utf8(&end.result).is_err() {
        let message = "the output is no UTF-8; call it on /f/ where bytes are meant";
        end.error = Some(CallError::new(ErrorKind::Output, Layer::Run, message));
        (end.status, end.result) = (CallStatus::Failed, Bytes::new());
    }
    let blobs = node.blobs.of(&job.code.namespace);
    Ok(Outcome {
        status: end.status,
        result: blobs.payload(end.result).await?,
        error: end.error,
        logs: blobs.payload(end.log).await?,
        attempt: end.attempt,
        head: end.head,
    })
}

/// A process of its own, in an instance that no other call has meanwhile.
async fn run_in_instance(
    pool: &Pool,
    job: &CallJob,
    report: &mut AttemptReport<'_>,
    mut lease: LeaseEnd,
    stop: &CancellationToken,
    started: impl FnOnce(),
) -> (Result<Outcome, AttemptFailure>, Option<Release>) {
    let deadline = report.begun() + Duration::from_millis(job.timeout_ms);
    let prepared = tokio::select! {
        prepared = tokio::time::timeout_at(deadline, prepare(pool, job, deadline, &mut lease)) => prepared,
        () = stop.cancelled() => return (Err(AttemptFailure::Stopped), None),
    };
    let (mut taken, input) = match prepared {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(AttemptFailure::Call(error))) if error.kind == ErrorKind::Timeout => return (Err(late(report)), None),
        Ok(Err(failure)) => return (Err(failure), None),
        Err(_) => return (Err(late(report)), None),
    };
    report.start = if taken.is_cold { StartKind::Cold } else { StartKind::Warm };
    let ran = run_command(report, (taken.instance(), &input), (deadline, lease), stop, started).await;
    let (outcome, state) = match ran {
        Ok((outcome, state)) => (Ok(outcome), state),
        Err(failure) => (Err(failure), InstanceState::Spent),
    };
    (outcome, Some(taken.release(state)))
}

fn late(report: &AttemptReport<'_>) -> AttemptFailure {
    AttemptFailure::Call(report.late(Layer::Start, "its instance was made"))
}

/// An instance that is ready for the call's process, and what the process gets.
async fn prepare(
    pool: &Pool,
    job: &CallJob,
    deadline: Instant,
    lease: &mut LeaseEnd,
) -> Result<(ExecLease, CallInput), AttemptFailure> {
    let node: &Node = pool.node();
    let input = CallInput::load(&node.blobs, job).await?;
    let taken = pool.take(&Arc::new(job.code.clone()), deadline.into_std()).await;
    // One that cannot be prepared is destroyed when this is dropped.
    let mut taken = taken.map_err(|error| AttemptFailure::Call(error.into_call_error()))?;
    taken.instance().prepare(lease).await?;
    Ok((taken, input))
}
