//! A call without a row: somebody holds a connection open for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::call::Placement;
use faena_domain::{CallError, CallStatus, Epoch, ErrorKind, Layer, Owner};
use faena_protocol::DbError;
use faena_protocol::records::{CallJob, CallRecord, CallSpec, Code, Outcome};
use tokio::sync::oneshot;

use crate::completions::BacklogPermit;

/// What a waiting client is told.
#[derive(Debug)]
pub enum SyncAnswer {
    /// The call has ended.
    Ended(Box<CallRecord>),
    /// The wait ran out, and the call has its row.
    Persisted(Box<CallRecord>),
    /// The wait ran out, and the call could not be given its row.
    Refused(DbError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    None,
    Coming,
    There,
}

/// One waited call.
#[derive(Debug)]
pub struct SyncCall {
    pub(crate) spec: CallSpec,
    pub(crate) code: Arc<Code>,
    /// When it was accepted, in Unix milliseconds.
    pub(crate) created_at: i64,
    pub(crate) epoch: Epoch,
    pub(crate) owner: Option<Owner>,
    pub(crate) permit: Option<BacklogPermit>,
    /// An outcome that came before the row was there.
    pub(crate) outcome: Option<Option<Outcome>>,
    begun: Instant,
    attempts: u32,
    started: bool,
    row: Row,
    reply: Option<oneshot::Sender<SyncAnswer>>,
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Wall time in Unix milliseconds.
pub fn unix_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl SyncCall {
    /// A call, and where its answer comes.
    pub fn new(spec: CallSpec, code: Arc<Code>, permit: BacklogPermit) -> (Self, oneshot::Receiver<SyncAnswer>) {
        let (reply, answer) = oneshot::channel();
        let call = Self {
            spec,
            code,
            created_at: unix_ms(),
            epoch: Epoch(0),
            owner: None,
            permit: Some(permit),
            outcome: None,
            begun: Instant::now(),
            attempts: 0,
            started: false,
            row: Row::None,
            reply: Some(reply),
        };
        (call, answer)
    }

    pub(crate) fn answer(&mut self, answer: SyncAnswer) {
        // The client may have gone; the call does not depend on it.
        self.reply.take().map(|reply| reply.send(answer));
    }

    pub(crate) fn queued(&mut self) {
        self.owner = None;
        self.started = false;
    }

    pub(crate) fn started(&mut self) {
        self.started = true;
    }

    pub(crate) fn has_started(&self) -> bool {
        self.started
    }

    pub(crate) fn persisting(&mut self) {
        self.row = Row::Coming;
    }

    pub(crate) fn persisted(&mut self) {
        self.row = Row::There;
    }

    pub(crate) fn not_persisted(&mut self) {
        self.row = Row::None;
    }

    pub(crate) fn is_persisted(&self) -> bool {
        self.row != Row::None
    }

    pub(crate) fn is_being_persisted(&self) -> bool {
        self.row == Row::Coming
    }

    /// How long ago it was accepted, in milliseconds.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        millis(self.begun.elapsed())
    }

    /// Whether its age has run out.
    pub(crate) fn is_late(&self) -> bool {
        millis(self.begun.elapsed()) >= self.spec.max_age_ms
    }

    /// Whether no worker can have it any longer: it should have ended long ago, and nobody has told.
    pub(crate) fn has_vanished(&self, beyond: Duration) -> bool {
        let most = Duration::from_millis(self.spec.max_age_ms).saturating_add(beyond);
        self.row == Row::None && self.owner.is_some() && self.begun.elapsed() > most
    }

    /// Raises the epoch and makes the job for a worker.
    pub(crate) fn dispatch(&mut self, owner: Owner, placement: Placement) -> CallJob {
        self.owner = Some(owner);
        self.epoch = self.epoch.next();
        self.attempts += 1;
        let waited = millis(self.begun.elapsed());
        let asked = self.spec.timeout_ms.unwrap_or(self.code.limits.timeout.0);
        let left = self.spec.max_age_ms.saturating_sub(waited);
        let timeout_ms = asked.min(left);
        CallJob {
            num: self.spec.num,
            epoch: self.epoch,
            attempt: self.attempts,
            code: (*self.code).clone(),
            params: self.spec.params.clone(),
            body: self.spec.body.clone(),
            request: self.spec.sent_request(),
            direct: self.spec.direct,
            timeout_ms,
            expires: left < asked,
            deadline_unix_ms: unix_ms().saturating_add(i64::try_from(timeout_ms).unwrap_or(i64::MAX)),
            queue_ms: waited,
            traceparent: self.spec.traceparent.clone(),
            has_row: false,
            placement: Some(placement),
        }
    }

    /// The call as it stands.
    pub(crate) fn record(&self) -> CallRecord {
        CallRecord {
            function: self.spec.function.clone(),
            params: self.spec.params.clone(),
            body: self.spec.body.clone(),
            request: self.spec.request.clone(),
            status: if self.started { CallStatus::Running } else { CallStatus::Pending },
            account: self.spec.account.clone(),
            ..CallRecord::begin(self.spec.num, &self.code, self.created_at, self.spec.traceparent.clone())
        }
    }

    /// The call after its attempt.
    pub(crate) fn ended(&self, outcome: &Outcome) -> CallRecord {
        let mut attempt = outcome.attempt.clone();
        attempt.error.clone_from(&outcome.error);
        CallRecord {
            status: outcome.status,
            result: outcome.result.clone(),
            head: outcome.head.clone(),
            error: outcome.error.clone(),
            logs: outcome.logs.clone(),
            attempts: vec![attempt],
            ended_at: Some(unix_ms()),
            ..self.record()
        }
    }

    fn failed(&self, status: CallStatus, error: CallError) -> CallRecord {
        CallRecord { status, error: Some(error), ended_at: Some(unix_ms()), ..self.record() }
    }

    pub(crate) fn unavailable(&self) -> CallRecord {
        let engine = self.code.engine.map_or("any engine", |engine| engine.as_str());
        let nodes: Vec<String> = self.code.nodes.iter().map(ToString::to_string).collect();
        let message = if nodes.is_empty() {
            format!("no worker that offers {engine} is connected; GET /workers lists them")
        } else {
            let selector = nodes.join(" and ");
            format!("no node with the labels {selector} offers {engine} and takes work; GET /nodes lists them")
        };
        self.failed(CallStatus::Failed, CallError::new(ErrorKind::Unavailable, Layer::Queue, message))
    }

    pub(crate) fn expired(&self) -> CallRecord {
        let message = "the call reached its maxAgeMs while it waited for a slot";
        self.failed(CallStatus::Expired, CallError::new(ErrorKind::Expired, Layer::Queue, message))
    }

    pub(crate) fn cancelled(&self) -> CallRecord {
        let layer = if self.owner.is_some() { Layer::Run } else { Layer::Queue };
        self.failed(CallStatus::Cancelled, CallError::new(ErrorKind::Cancelled, layer, "the call was cancelled"))
    }

    pub(crate) fn lost(&self) -> CallRecord {
        let message = "the worker that ran this call was lost before it could tell the end; call again";
        self.failed(CallStatus::Failed, CallError::new(ErrorKind::Infrastructure, Layer::Run, message))
    }
}
