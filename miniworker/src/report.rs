//! What is told of an attempt, while it goes on and at its end.

use faena_domain::call::StartKind;
use faena_domain::units::Millis;
use faena_domain::{Attempt, CallError, CallStatus, EgressUse, EngineKind, ErrorKind, Layer, Payload};
use faena_protocol::records::{CallJob, Outcome};
use tokio::time::Instant;

use crate::process::Finished;
use crate::{Node, result};

/// Times and numbers of an attempt as it goes.
#[derive(Debug)]
pub struct AttemptReport<'a> {
    pub(crate) node: &'a Node,
    pub(crate) job: &'a CallJob,
    engine: EngineKind,
    missing_layers: Vec<String>,
    begun: Instant,
    /// When its process began.
    pub(crate) started: Option<Instant>,
    /// Whether an instance had to be made for it.
    pub start: StartKind,
}

impl<'a> AttemptReport<'a> {
    /// The report of an attempt that begins now.
    pub fn new(node: &'a Node, job: &'a CallJob) -> Self {
        let engine = job.code.engine.unwrap_or(EngineKind::Sandbox);
        let missing_layers = node.engines.get(&engine).map(|engine| engine.missing_layers()).unwrap_or_default();
        Self { node, job, engine, missing_layers, begun: Instant::now(), started: None, start: StartKind::Cold }
    }

    /// When the attempt began.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    pub(crate) fn attempt(&self, finished: Option<&Finished>, egress: Option<EgressUse>) -> Attempt {
        let now = Instant::now();
        Attempt {
            attempt: self.job.attempt,
            worker: self.node.worker.clone(),
            engine: self.engine,
            start: self.start,
            epoch: self.job.epoch,
            placement: self.job.placement,
            queue_ms: Millis::from_millis(self.job.queue_ms),
            start_ms: self.started.unwrap_or(now).saturating_duration_since(self.begun).into(),
            run_ms: self.started.map(|started| now.saturating_duration_since(started).into()).unwrap_or_default(),
            exit: finished.map(|finished| result::exit(finished.ended.exit)),
            peak_memory_bytes: finished.and_then(|finished| finished.ended.peak_memory),
            cpu_ms: finished.map(|finished| Millis::from_micros(finished.ended.cpu_us)),
            missing_layers: self.missing_layers.clone(),
            egress,
            error: None,
        }
    }

    /// An attempt without a process to judge.
    pub fn failed(&self, error: CallError) -> Outcome {
        let status = match error.kind {
            ErrorKind::Timeout => CallStatus::Timeout,
            ErrorKind::Expired => CallStatus::Expired,
            _ => CallStatus::Failed,
        };
        let attempt = self.attempt(None, None);
        Outcome { status, result: Payload::empty(), error: Some(error), logs: Payload::empty(), attempt, head: None }
    }

    /// Whose end the deadline was: the call's, or only this attempt's.
    pub fn late(&self, layer: Layer, what: &str) -> CallError {
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
