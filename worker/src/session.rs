//! The one task that knows what a node holds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use faena_db_client::DbClient;
use faena_domain::{CallNum, Epoch, Owner};
use faena_miniworker::{Ended, Node, run_attempt, run_build};
use faena_protocol::Envelope;
use faena_protocol::db::{BuildFinish, BuildRef, CallFinish, LeaseRenew};
use faena_protocol::node::{NodeInfo, TYPE, ToApi, ToWorker};
use faena_protocol::records::{BuildJob, CallJob};
use faena_transport::{Link, LinkEvent, LinkHandle};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::metrics::{Built, End, Metrics};
use crate::{Worker, outbox};

/// How often leases are renewed; a lease is three times as long.
const RENEW: Duration = Duration::from_secs(10);
/// How long what was cut off at a stop may take to be given back.
const GIVE_BACK: Duration = Duration::from_secs(5);
/// Ends of calls that wait to be told; more than any node has slots.
const QUEUE: usize = 1024;

type Claim = (CallNum, Epoch);

/// What an attempt or a build has to say.
enum Event {
    Tell(ToApi),
    CallGone,
    BuildGone(BuildRef),
}

/// What every task of the node needs.
#[derive(Clone)]
struct Shared {
    node: Arc<Node>,
    db: DbClient,
    owner: Owner,
    metrics: Metrics,
    events: mpsc::Sender<Event>,
    /// Ends whatever still runs when the grace is over.
    cut: CancellationToken,
}

/// What a node holds, from its joining to its stop.
pub(crate) struct Session {
    shared: Shared,
    events: mpsc::Receiver<Event>,
    info: NodeInfo,
    grace: Duration,
    link: LinkHandle,
    calls: HashSet<Claim>,
    builds: HashSet<BuildRef>,
    /// Calls that have ended and whose instances are being destroyed.
    leaving: usize,
    /// Sent again after each reconnect until the api has acknowledged them.
    unheard: HashMap<Claim, ToApi>,
    draining: bool,
}

impl Session {
    pub(crate) fn new(worker: Worker, info: NodeInfo, link: LinkHandle) -> Self {
        let (sender, events) = mpsc::channel(QUEUE);
        let shared = Shared {
            node: worker.node,
            db: worker.db,
            owner: worker.config.owner,
            metrics: worker.metrics,
            events: sender,
            cut: CancellationToken::new(),
        };
        Self {
            shared,
            events,
            info,
            grace: worker.config.grace,
            link,
            calls: HashSet::new(),
            builds: HashSet::new(),
            leaving: 0,
            unheard: HashMap::new(),
            draining: false,
        }
    }

    /// Serves until told to stop, then drains.
    pub(crate) async fn run(mut self, mut link: Link, stop: CancellationToken) {
        let mut renew = tokio::time::interval(RENEW);
        let mut end = None;
        loop {
            let is_idle = self.calls.is_empty() && self.leaving == 0 && self.builds.is_empty();
            if self.draining && is_idle && self.unheard.is_empty() {
                return info!("everything is finished");
            }
            tokio::select! {
                event = link.next() => match event {
                    Some(event) => self.heard(event).await,
                    None => return,
                },
                Some(event) = self.events.recv() => self.event(event).await,
                _ = renew.tick() => self.renew(),
                () = stop.cancelled(), if !self.draining => {
                    info!(calls = self.calls.len(), builds = self.builds.len(), "draining");
                    self.draining = true;
                    end = Some(Instant::now() + self.grace);
                    self.tell(&ToApi::Draining).await;
                }
                () = until(end) => {
                    if self.shared.cut.is_cancelled() {
                        return warn!("some work could not be given back in time");
                    }
                    warn!(calls = self.calls.len(), builds = self.builds.len(), "the grace is over; giving back what still runs");
                    self.shared.cut.cancel();
                    end = Some(Instant::now() + GIVE_BACK);
                }
            }
        }
    }

    async fn tell(&self, message: &ToApi) {
        match Envelope::new("", TYPE, message).and_then(|envelope| envelope.encode()) {
            Ok(bytes) => drop(self.link.send(bytes).await),
            Err(error) => warn!(%error, "a message to the api cannot be sent"),
        }
    }

    async fn hello(&self) {
        let calls = self.calls.iter().chain(self.unheard.keys()).copied().collect();
        let builds = self.builds.iter().cloned().collect();
        self.tell(&ToApi::Hello { node: self.info.clone(), calls, builds }).await;
        if self.draining {
            self.tell(&ToApi::Draining).await;
        }
        for message in self.unheard.values() {
            self.tell(message).await;
        }
    }

    async fn heard(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up => self.hello().await,
            LinkEvent::Down => debug!("the api is gone; connecting anew"),
            LinkEvent::Message(bytes) => {
                match Envelope::decode(&bytes).and_then(|envelope| envelope.parse::<ToWorker>()) {
                    Ok(message) => self.message(message).await,
                    Err(error) => warn!(%error, "a message of the api was dropped"),
                }
            }
        }
    }

    async fn message(&mut self, message: ToWorker) {
        match message {
            ToWorker::Welcome => debug!("the api knows us"),
            ToWorker::SayHello => self.hello().await,
            ToWorker::EndedAck { num, epoch } => drop(self.unheard.remove(&(num, epoch))),
            ToWorker::Call { job } => self.call(*job).await,
            ToWorker::Build { job } => self.build(*job),
        }
    }

    async fn call(&mut self, job: CallJob) {
        let claim = (job.num, job.epoch);
        if self.calls.contains(&claim) || self.unheard.contains_key(&claim) {
            return;
        }
        self.calls.insert(claim);
        self.tell(&ToApi::Accepted { num: job.num, epoch: job.epoch }).await;
        let stop = if self.draining { cancelled() } else { self.shared.cut.clone() };
        self.shared.metrics.busy.inc();
        tokio::spawn(self.shared.clone().attempt(job, stop));
    }

    fn build(&mut self, job: BuildJob) {
        let build = reference(&job);
        if self.builds.insert(build) {
            let stop = if self.draining { cancelled() } else { self.shared.cut.clone() };
            tokio::spawn(self.shared.clone().build(job, stop));
        }
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Tell(message) => {
                if let ToApi::Ended { num, epoch, .. } = &message {
                    self.unheard.insert((*num, *epoch), message.clone());
                    self.calls.remove(&(*num, *epoch));
                    self.leaving += 1;
                }
                self.tell(&message).await;
            }
            Event::CallGone => {
                self.leaving -= 1;
                self.shared.metrics.busy.dec();
            }
            Event::BuildGone(build) => {
                self.builds.remove(&build);
                self.tell(&ToApi::BuildEnded { build }).await;
            }
        }
    }

    /// All leases in one message. A renewal that is lost is made up for by the next one.
    fn renew(&self) {
        if self.calls.is_empty() && self.builds.is_empty() {
            return;
        }
        let request = LeaseRenew {
            owner: self.shared.owner.clone(),
            calls: self.calls.iter().map(|(num, _)| *num).collect(),
            builds: self.builds.iter().cloned().collect(),
        };
        let db = self.shared.db.clone();
        tokio::spawn(async move {
            if let Err(error) = db.ask(&request).await {
                warn!(%error, "leases could not be renewed");
            }
        });
    }
}

fn cancelled() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel();
    token
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

fn reference(job: &BuildJob) -> BuildRef {
    BuildRef { namespace: job.code.namespace.clone(), function: job.code.function.clone(), version: job.code.version }
}

impl Shared {
    async fn say(&self, event: Event) {
        // The session is gone only when the process is about to be.
        let _ = self.events.send(event).await;
    }

    async fn attempt(self, job: CallJob, stop: CancellationToken) {
        let (num, epoch) = (job.num, job.epoch);
        let events = self.events.clone();
        let ended = run_attempt(&self.node, &job, &stop, || {
            // A hint for the api; where the queue is full it learns from the end.
            let _ = events.try_send(Event::Tell(ToApi::Started { num, epoch }));
        })
        .await;
        let Ended { outcome, instance } = ended;
        if let Some(outcome) = &outcome {
            let end = End { engine: outcome.attempt.engine.as_str(), status: outcome.status.as_str() };
            self.metrics.attempts.get_or_create(&end).inc();
            self.metrics.start_seconds.observe(seconds(outcome.attempt.start_ms));
            self.metrics.run_seconds.observe(seconds(outcome.attempt.run_ms));
        }
        let destroyed = instance.map(|instance| tokio::spawn(instance.destroy()));
        let to_api = if job.has_row {
            outbox::deliver(&self.db, &CallFinish { num, epoch, owner: self.owner.clone(), outcome }).await;
            None
        } else {
            outcome.map(Box::new)
        };
        self.say(Event::Tell(ToApi::Ended { num, epoch, outcome: to_api })).await;
        if let Some(destroyed) = destroyed {
            // A panic there is logged by the runtime; the slot is free all the same.
            let _ = destroyed.await;
        }
        self.say(Event::CallGone).await;
    }

    async fn build(self, job: BuildJob, stop: CancellationToken) {
        let outcome = run_build(&self.node, &job, &stop).await;
        if let Some(outcome) = &outcome {
            let status = if outcome.result.is_ok() { "READY" } else { "ERROR" };
            self.metrics.builds.get_or_create(&Built { status }).inc();
        }
        let build = reference(&job);
        let finish = BuildFinish {
            namespace: build.namespace.clone(),
            function: build.function.clone(),
            version: build.version,
            epoch: job.epoch,
            owner: self.owner.clone(),
            outcome,
        };
        outbox::deliver(&self.db, &finish).await;
        self.say(Event::BuildGone(build)).await;
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of an attempt")]
fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}
