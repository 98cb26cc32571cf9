//! One attempt at a call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use faena_blob::BlobError;
use faena_domain::call::StartKind;
use faena_domain::environment::{ca_variables, cgi_variables, package_variables, path_prefix, proxy_variables};
use faena_domain::limits::MAX_BODY;
use faena_domain::units::Millis;
use faena_domain::{Attempt, CallError, CallStatus, Command, Contract, EngineKind, ErrorKind, Layer, Network, Payload};
use faena_engine::{CA_BUNDLE, EngineError};
use faena_instance_protocol::{EGRESS_PORT, INPUT, REQUEST, Run};
use faena_protocol::direct::HttpRequest;
use faena_protocol::records::{CallJob, Code, Outcome};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::Node;
use crate::code::CodeError;
use crate::egress::Egress;
use crate::pool::{Leave, Pool, PoolCall, StartError, State, Taken};
use crate::process::{self, Cut, Finished, LeaseEnd, Order, RunError};
use crate::result;

/// An attempt that is over.
#[derive(Debug)]
pub struct Ended {
    /// How it ended; none where the node stopped before it could end.
    pub outcome: Option<Outcome>,
    leave: Option<Leave>,
}

impl Ended {
    /// Waits until what it ran in is as new, or gone.
    pub async fn left(self) {
        if let Some(leave) = self.leave {
            leave.over().await;
        }
    }
}

/// Why an attempt has no process to judge.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The call has failed.
    Call(CallError),
    /// The node stops.
    Stopped,
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let kind = match error {
            EngineError::Image(_) => ErrorKind::Image,
            EngineError::Unavailable { .. } | EngineError::Lost { .. } => ErrorKind::Infrastructure,
            EngineError::Create { .. } => ErrorKind::Start,
        };
        Self::Call(CallError::new(kind, Layer::Start, error.to_string()))
    }
}

fn platform_failure(layer: Layer, error: impl std::fmt::Display) -> Failure {
    Failure::Call(CallError::new(ErrorKind::Infrastructure, layer, error.to_string()))
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Self {
        match error {
            // Another delivery would find the same bytes, or none.
            BlobError::Damaged(_) | BlobError::NotFound(_) => {
                Self::Call(CallError::new(ErrorKind::Start, Layer::Start, error.to_string()))
            }
            error => platform_failure(Layer::Start, error),
        }
    }
}

impl From<CodeError> for Failure {
    fn from(error: CodeError) -> Self {
        match error {
            CodeError::Blob(error) => error.into(),
            CodeError::Archive(_) => Self::Call(CallError::new(ErrorKind::Start, Layer::Start, error.to_string())),
            CodeError::Folder(_) => platform_failure(Layer::Start, error),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Refused(message) => {
                let message = format!("the command could not be started: {message}");
                Self::Call(CallError::new(ErrorKind::Start, Layer::Start, message))
            }
            error => platform_failure(Layer::Run, error),
        }
    }
}

/// The environment of every process of a version.
pub(crate) fn base_environment(node: &Node, code: &Code) -> BTreeMap<String, String> {
    let mut env = package_variables(&code.path);
    if code.network == Network::Egress {
        env.extend(proxy_variables(EGRESS_PORT));
        if node.ca_bundle.is_some() {
            env.extend(ca_variables(CA_BUNDLE));
        }
    }
    env.extend(code.env.clone());
    env.into_iter().collect()
}

/// The environment of a call's process.
fn environment(node: &Node, job: &CallJob) -> Vec<(String, String)> {
    let mut env = base_environment(node, &job.code);
    let ours = [
        ("FAENA_CALL", job.num.to_string()),
        ("FAENA_FUNCTION", job.code.function.to_string()),
        ("FAENA_VERSION", job.code.version.to_string()),
        ("FAENA_ATTEMPT", job.attempt.to_string()),
        ("FAENA_DEADLINE_MS", job.deadline_unix_ms.to_string()),
        ("TRACEPARENT", job.traceparent.clone()),
    ];
    env.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    if let Some(request) = &job.request {
        env.extend(cgi_variables(&request.method, &request.path, &request.query, request.joined_headers()));
    }
    env.into_iter().collect()
}

fn run_frame(node: &Node, job: &CallJob) -> Result<Run, Failure> {
    let command = Command::parse(&job.code.run)
        .map_err(|error| Failure::Call(CallError::new(ErrorKind::Start, Layer::Start, error.to_string())))?;
    Ok(Run {
        id: job.epoch.0.unsigned_abs(),
        words: command.words,
        env: environment(node, job),
        path_prefix: path_prefix(&job.code.path),
        path: job.code.path.clone(),
        has_answers: false,
        wants_output: true,
        files: vec![INPUT.to_owned(), REQUEST.to_owned()],
    })
}

/// Times and numbers of an attempt as it goes.
struct Telling<'a> {
    node: &'a Node,
    job: &'a CallJob,
    engine: EngineKind,
    missing_layers: Vec<String>,
    begun: Instant,
    started: Option<Instant>,
    start: StartKind,
}

impl<'a> Telling<'a> {
    fn new(pool: &'a Pool, job: &'a CallJob) -> Self {
        let node = pool.node();
        let engine = job.code.engine.unwrap_or(EngineKind::Sandbox);
        let missing_layers = node.engines.get(&engine).map(|engine| engine.missing_layers()).unwrap_or_default();
        Self { node, job, engine, missing_layers, begun: Instant::now(), started: None, start: StartKind::Cold }
    }

    fn attempt(&self, finished: Option<&Finished>, hosts: Vec<String>) -> Attempt {
        let now = Instant::now();
        Attempt {
            attempt: self.job.attempt,
            worker: self.node.worker.clone(),
            engine: self.engine,
            start: self.start,
            epoch: self.job.epoch,
            queue_ms: Millis::from_millis(self.job.queue_ms),
            start_ms: self.started.unwrap_or(now).saturating_duration_since(self.begun).into(),
            run_ms: self.started.map(|started| now.saturating_duration_since(started).into()).unwrap_or_default(),
            exit: finished.map(|finished| result::exit(finished.ended.exit)),
            peak_memory_bytes: finished.and_then(|finished| finished.ended.peak_memory),
            cpu_ms: finished.map(|finished| Millis::from_micros(finished.ended.cpu_us)),
            missing_layers: self.missing_layers.clone(),
            egress_hosts: hosts,
            error: None,
        }
    }

    /// An attempt without a process to judge.
    fn failed(&self, error: CallError) -> Outcome {
        let status = match error.kind {
            ErrorKind::Timeout => CallStatus::Timeout,
            ErrorKind::Expired => CallStatus::Expired,
            _ => CallStatus::Failed,
        };
        let attempt = self.attempt(None, Vec::new());
        Outcome { status, result: Payload::empty(), error: Some(error), logs: Payload::empty(), attempt, head: None }
    }

    /// Whose end the deadline was: the call's, or only this attempt's.
    fn late(&self, layer: Layer, what: &str) -> CallError {
        if self.job.expires {
            CallError::new(ErrorKind::Expired, layer, format!("the call reached its maxAgeMs while {what}"))
        } else {
            CallError::new(
                ErrorKind::Timeout,
                layer,
                format!("the attempt took longer than {} ms while {what}", self.job.timeout_ms),
            )
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
) -> Ended {
    let ended = if job.code.serving.contract == Contract::Command {
        run_command(pool, job, lease, stop, started).await
    } else {
        let outcome = match call_served(pool, job, lease, stop, started).await {
            Ok(outcome) => Some(outcome),
            Err(Failure::Call(error)) => Some(Telling::new(pool, job).failed(error)),
            Err(Failure::Stopped) => None,
        };
        Ended { outcome, leave: None }
    };
    if let Some(error) = ended.outcome.as_ref().and_then(|outcome| outcome.error.as_ref()) {
        // One line for each failed attempt.
        info!(call = %job.num, function = %job.code.function, attempt = job.attempt, kind = ?error.kind, layer = ?error.layer, "a call failed");
    }
    ended
}

/// One call of an instance that answers many.
async fn call_served(
    pool: &Pool,
    job: &CallJob,
    lease: LeaseEnd,
    stop: &CancellationToken,
    started: impl FnOnce() + Send + 'static,
) -> Result<Outcome, Failure> {
    let node = pool.node();
    let since = std::time::Instant::now();
    let params = node.blobs.bytes(&job.params, MAX_BODY).await?;
    let body = match &job.body {
        Some(body) => Some(node.blobs.bytes(body, MAX_BODY).await?),
        None => None,
    };
    let (tell, told) = oneshot::channel();
    let call = Box::new(PoolCall {
        num: job.num,
        attempt: job.attempt,
        params,
        body,
        request: job.request.clone(),
        timeout_ms: job.timeout_ms,
        deadline: since + Duration::from_millis(job.timeout_ms),
        expires: job.expires,
        begins_late: false,
        deadline_unix_ms: job.deadline_unix_ms,
        traceparent: job.traceparent.as_str().into(),
        lease: Some(lease),
        started: Some(Box::new(started)),
        done: Box::new(move |end| drop(tell.send(end))),
        since,
        cold: false,
        has_moved: false,
        is_sent: Arc::default(),
    });
    if stop.is_cancelled() {
        return Err(Failure::Stopped);
    }
    let full = |_| Failure::Call(StartError::Full.into_call_error());
    pool.call(&Arc::new(job.code.clone()), call).map_err(full)?;
    let mut end = tokio::select! {
        end = told => end.map_err(|_| Failure::Stopped)?,
        () = stop.cancelled() => {
            pool.cancel(job.num);
            return Err(Failure::Stopped);
        }
    };
    let engine = job.code.engine.unwrap_or(EngineKind::Sandbox);
    let attempt =
        Attempt { queue_ms: Millis::from_millis(job.queue_ms), ..end.attempt(node, engine, job.attempt, job.epoch) };
    if end.error.is_none() && !job.direct && std::str::from_utf8(&end.result).is_err() {
        let message = "the output is no UTF-8; call it on /f/ where bytes are meant";
        end.error = Some(CallError::new(ErrorKind::Output, Layer::Run, message));
        (end.status, end.result) = (CallStatus::Failed, Bytes::new());
    }
    Ok(Outcome {
        status: end.status,
        result: node.blobs.payload(end.result).await?,
        error: end.error,
        logs: node.blobs.payload(end.log).await?,
        attempt,
        head: end.head,
    })
}

/// A process of its own, in an instance that nobody else has meanwhile.
async fn run_command(
    pool: &Pool,
    job: &CallJob,
    mut lease: LeaseEnd,
    stop: &CancellationToken,
    started: impl FnOnce(),
) -> Ended {
    let mut telling = Telling::new(pool, job);
    let deadline = telling.begun + Duration::from_millis(job.timeout_ms);
    let ended = |outcome| Ended { outcome, leave: None };
    let prepared = tokio::select! {
        prepared = tokio::time::timeout_at(deadline, prepare(pool, job, deadline, &mut lease)) => prepared,
        () = stop.cancelled() => return ended(None),
    };
    let mut ready = match prepared {
        Ok(Ok(ready)) => ready,
        Ok(Err(Failure::Call(error))) if error.kind != ErrorKind::Timeout => {
            return ended(Some(telling.failed(error)));
        }
        Ok(Err(Failure::Stopped)) => return ended(None),
        Ok(Err(Failure::Call(_))) | Err(_) => {
            let error = telling.late(Layer::Start, "its instance was made");
            return ended(Some(telling.failed(error)));
        }
    };
    telling.start = if ready.parked.is_cold { StartKind::Cold } else { StartKind::Warm };
    let ran = run_in(&mut telling, &mut ready, (deadline, lease), stop, started).await;
    let (outcome, state) = match ran {
        Ok((outcome, state)) => (Some(outcome), state),
        Err(Failure::Call(error)) => (Some(telling.failed(error)), State::Spent),
        Err(Failure::Stopped) => (None, State::Spent),
    };
    Ended { outcome, leave: Some(ready.parked.done(state)) }
}

/// An instance with all that its process needs.
struct Ready {
    parked: Taken,
    params: Bytes,
    stdin: Bytes,
}

async fn prepare(pool: &Pool, job: &CallJob, deadline: Instant, lease: &mut LeaseEnd) -> Result<Ready, Failure> {
    let blobs = &pool.node().blobs;
    let params = blobs.bytes(&job.params, MAX_BODY).await?;
    let stdin = match &job.body {
        Some(body) => blobs.bytes(body, MAX_BODY).await?,
        None => params.clone(),
    };
    let taken = pool.take(&Arc::new(job.code.clone()), deadline.into_std()).await;
    let mut parked = taken.map_err(|error| Failure::Call(error.into_call_error()))?;
    let woken = parked.thaw().map_err(|error| platform_failure(Layer::Start, error));
    let leased = match woken {
        Ok(()) => {
            process::tell_lease(&parked.instance.agent, lease).await.map_err(|error| RunError::from(error).into())
        }
        Err(failure) => Err(failure),
    };
    match leased {
        Ok(()) => Ok(Ready { parked, params, stdin }),
        Err(failure) => {
            parked.done(State::Spent);
            Err(failure)
        }
    }
}

async fn run_in(
    telling: &mut Telling<'_>,
    ready: &mut Ready,
    (deadline, lease): (Instant, LeaseEnd),
    stop: &CancellationToken,
    started: impl FnOnce(),
) -> Result<(Outcome, State), Failure> {
    let (node, job) = (telling.node, telling.job);
    let order = Order {
        run: run_frame(node, job)?,
        stdin: &ready.stdin,
        files: vec![
            (INPUT, ready.params.clone()),
            (REQUEST, job.request.as_deref().map(HttpRequest::to_context).unwrap_or_else(|| "null".to_owned()).into()),
        ],
        deadline,
        lease,
        stop,
        log: node.logs.of_command(job.num),
    };
    let at = &mut telling.started;
    let finished = process::run(&mut ready.parked.instance.agent, order, || {
        *at = Some(Instant::now());
        started();
    })
    .await?;
    if finished.cut == Some(Cut::Stop) {
        return Err(Failure::Stopped);
    }
    let is_whole = finished.cut.is_none() && finished.ended.oom_kills == 0;
    let hosts = ready.parked.egress.as_ref().map(Egress::end_call).unwrap_or_default();
    let attempt = telling.attempt(Some(&finished), hosts);
    let late = (finished.cut == Some(Cut::Deadline)).then(|| telling.late(Layer::Run, "its process ran"));
    let answer = result::answer(finished, job.direct, job.timeout_ms, &job.code.limits.memory.to_string());
    let mut outcome = Outcome {
        status: answer.status,
        result: node.blobs.payload(answer.result).await?,
        error: answer.error,
        logs: node.blobs.payload(answer.log.into_bytes()).await?,
        attempt,
        head: None,
    };
    if let (Some(late), Some(error)) = (late, &mut outcome.error)
        && job.expires
    {
        *error = CallError { stderr_tail: std::mem::take(&mut error.stderr_tail), ..late };
        outcome.status = CallStatus::Expired;
    }
    Ok((outcome, if is_whole { State::Used } else { State::Spent }))
}
