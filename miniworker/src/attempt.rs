//! One attempt at a call.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use faena_blob::BlobError;
use faena_domain::call::StartKind;
use faena_domain::environment::{ca_variables, package_variables, path_prefix, proxy_variables};
use faena_domain::limits::{MAX_BODY, MAX_CALL_LOG, MAX_RESULT};
use faena_domain::{Attempt, CallError, CallStatus, Command, EngineKind, ErrorKind, Layer, Network, Payload};
use faena_engine::{CA_BUNDLE, Engine, EngineError, Guard, Instance, InstanceSpec};
use faena_instance_protocol::{EGRESS_PORT, Run};
use faena_protocol::records::{CallJob, Outcome};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::code::CodeError;
use crate::egress::Egress;
use crate::process::{self, Bounds, Cut, Finished, LeaseEnd, Order, RunError};
use crate::{Node, instance, result};

/// Params of the direct road hold a body in base64, and the request's headers.
const MAX_PARAMS: u64 = 2 * MAX_BODY;

/// An attempt that is over.
#[derive(Debug)]
pub struct Ended {
    /// How it ended; none where the node stopped before it could end.
    pub outcome: Option<Outcome>,
    /// What it ran in; it has to be destroyed before its slot is free.
    pub instance: Option<Box<dyn Guard>>,
}

/// Why an attempt has no process to judge.
#[derive(Debug)]
enum Failure {
    /// The call has failed.
    Call(CallError),
    /// The node stops.
    Stopped,
}

fn start_failure(error: &EngineError) -> Failure {
    let kind = match error {
        EngineError::Image(_) => ErrorKind::Image,
        EngineError::Unavailable { .. } | EngineError::Lost { .. } => ErrorKind::Infrastructure,
        EngineError::Create { .. } => ErrorKind::Start,
    };
    Failure::Call(CallError::new(kind, Layer::Start, error.to_string()))
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

/// An instance with all that its process needs.
struct Ready {
    instance: Instance,
    egress: Option<Egress>,
    params: Bytes,
    body: Option<Bytes>,
}

async fn prepare(node: &Node, engine: &Arc<dyn Engine>, job: &CallJob, lease: &mut LeaseEnd) -> Result<Ready, Failure> {
    let params = node.blobs.bytes(&job.params, MAX_PARAMS).await?;
    let body = match &job.body {
        Some(body) => Some(node.blobs.bytes(body, MAX_BODY).await?),
        None => None,
    };
    let code = node.code.get(&job.code.archive).await?;
    let has_egress = job.code.network == Network::Egress;
    let image = job.code.image_id.clone().unwrap_or_else(|| job.code.image.clone());
    let spec = InstanceSpec {
        name: instance::name('c'),
        image: faena_engine::ImageId(image),
        code: code.path().to_owned(),
        path: job.code.path.clone(),
        limits: job.code.limits,
        egress: has_egress,
        ca_bundle: node.ca_bundle.clone().filter(|_| has_egress),
    };
    let mut instance = instance::create(Arc::clone(engine), spec, code).await.map_err(|error| start_failure(&error))?;
    let leased = process::tell_lease(&instance.agent, lease).await;
    leased.map_err(|error| Failure::from(RunError::from(error)))?;
    let egress = instance.listener.take().map(|listener| Egress::serve(listener, node.egress.clone()));
    Ok(Ready { instance, egress, params, body })
}

/// The environment of a call's process.
fn environment(node: &Node, job: &CallJob) -> Vec<(String, String)> {
    let mut env = package_variables(&job.code.path);
    if job.code.network == Network::Egress {
        env.extend(proxy_variables(EGRESS_PORT));
        if node.ca_bundle.is_some() {
            env.extend(ca_variables(CA_BUNDLE));
        }
    }
    env.extend(job.code.env.clone());
    let ours = [
        ("FAENA_CALL", job.num.to_string()),
        ("FAENA_FUNCTION", job.code.function.to_string()),
        ("FAENA_VERSION", job.code.version.to_string()),
        ("FAENA_ATTEMPT", job.attempt.to_string()),
        ("FAENA_DEADLINE_MS", job.deadline_unix_ms.to_string()),
        ("TRACEPARENT", job.traceparent.clone()),
    ];
    env.extend(ours.map(|(name, value)| (name.to_owned(), value)));
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
        wants_output: true,
        has_params: true,
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
}

fn millis(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(u64::MAX)
}

impl Telling<'_> {
    fn attempt(&self, finished: Option<&Finished>, hosts: Vec<String>) -> Attempt {
        let now = Instant::now();
        Attempt {
            attempt: self.job.attempt,
            worker: self.node.worker.clone(),
            engine: self.engine,
            start: StartKind::Cold,
            epoch: self.job.epoch,
            queue_ms: self.job.queue_ms,
            start_ms: millis(self.begun, self.started.unwrap_or(now)),
            run_ms: self.started.map_or(0, |started| millis(started, now)),
            exit: finished.map(|finished| result::exit(finished.ended.exit)),
            peak_memory_bytes: finished.and_then(|finished| finished.ended.peak_memory),
            cpu_ms: finished.map(|finished| finished.ended.cpu_us / 1000),
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
        Outcome { status, result: Payload::empty(), error: Some(error), logs: Payload::empty(), attempt }
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

/// Runs one attempt to its end. `started` is called when the process runs.
pub async fn run_attempt(
    node: &Node,
    job: &CallJob,
    mut lease: LeaseEnd,
    stop: &CancellationToken,
    started: impl FnOnce(),
) -> Ended {
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(job.timeout_ms);
    let chosen = job.code.engine.and_then(|kind| node.engines.get(&kind));
    let mut telling = Telling {
        node,
        job,
        engine: job.code.engine.unwrap_or(EngineKind::Sandbox),
        missing_layers: chosen.map(|engine| engine.missing_layers()).unwrap_or_default(),
        begun,
        started: None,
    };
    let Some(engine) = chosen else {
        let message = format!("this worker has no engine {}", telling.engine);
        let error = CallError::new(ErrorKind::Unavailable, Layer::Start, message);
        return Ended { outcome: Some(telling.failed(error)), instance: None };
    };
    let prepared = tokio::select! {
        prepared = tokio::time::timeout_at(deadline, prepare(node, engine, job, &mut lease)) => prepared,
        () = stop.cancelled() => return Ended { outcome: None, instance: None },
    };
    let mut ready = match prepared {
        Ok(Ok(ready)) => ready,
        Ok(Err(Failure::Call(error))) => return Ended { outcome: Some(telling.failed(error)), instance: None },
        Ok(Err(Failure::Stopped)) => return Ended { outcome: None, instance: None },
        Err(_) => {
            let error = telling.late(Layer::Start, "its instance was made");
            return Ended { outcome: Some(telling.failed(error)), instance: None };
        }
    };
    let outcome = run_in(&mut telling, &mut ready, (deadline, lease), stop, started).await;
    let outcome = match outcome {
        Ok(outcome) => Some(outcome),
        Err(Failure::Call(error)) => Some(telling.failed(error)),
        Err(Failure::Stopped) => None,
    };
    Ended { outcome, instance: Some(ready.instance.guard) }
}

async fn run_in(
    telling: &mut Telling<'_>,
    ready: &mut Ready,
    (deadline, lease): (Instant, LeaseEnd),
    stop: &CancellationToken,
    started: impl FnOnce(),
) -> Result<Outcome, Failure> {
    let (node, job) = (telling.node, telling.job);
    let order = Order {
        run: run_frame(node, job)?,
        stdin: ready.body.as_deref().unwrap_or(&ready.params),
        params: Some(&ready.params),
        deadline,
        lease,
        stop,
        bounds: Bounds { stdout: MAX_RESULT, stderr: MAX_CALL_LOG, output: MAX_RESULT, joined: false },
    };
    let at = &mut telling.started;
    let finished = process::run(&mut ready.instance.agent, order, || {
        *at = Some(Instant::now());
        started();
    })
    .await?;
    if finished.cut == Some(Cut::Stop) {
        return Err(Failure::Stopped);
    }
    let hosts = ready.egress.take().map(Egress::end).unwrap_or_default();
    let attempt = telling.attempt(Some(&finished), hosts);
    let late = (finished.cut == Some(Cut::Deadline)).then(|| telling.late(Layer::Run, "its process ran"));
    let answer = result::answer(finished, job.direct, job.timeout_ms, &job.code.limits.memory.to_string());
    let mut outcome = Outcome {
        status: answer.status,
        result: node.blobs.payload(answer.result).await?,
        error: answer.error,
        logs: node.blobs.payload(answer.log.into_bytes()).await?,
        attempt,
    };
    if let (Some(late), Some(error)) = (late, &mut outcome.error)
        && job.expires
    {
        *error = CallError { stderr_tail: std::mem::take(&mut error.stderr_tail), ..late };
        outcome.status = CallStatus::Expired;
    }
    Ok(outcome)
}
