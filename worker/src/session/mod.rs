//! The session of a node with its api, from its joining to its stop: the task that owns what the node holds.
//!
//! [`holdings`] decides and does nothing; this carries out what it decides.

mod holdings;
mod tasks;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
mod tests;

use std::collections::HashMap;
use std::time::Duration;

use faena_protocol::Envelope;
use faena_protocol::db::{CallsStarted, LeaseRenew, VersionsMinimum};
use faena_protocol::node::{NodeInfo, TYPE, ToApi, ToWorker};
use faena_transport::{Link, LinkEvent, LinkHandle, boot_id, boot_ms};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use crate::Worker;
use holdings::{CallClaim, Claim, Effect, Event, Holdings, Now, Renewal};
use tasks::{Shared, TaskControl};

/// How often leases are renewed; a lease is three times as long.
const RENEW: Duration = Duration::from_secs(10);
/// How long starts are gathered before db hears of them; what ends sooner needs no such word.
const GATHER: Duration = Duration::from_millis(100);
/// How long what was cut off at a stop may take to be given back.
const GIVE_BACK: Duration = Duration::from_secs(5);
/// Events that wait to be told; more than any node has slots.
const QUEUE: usize = 1024;

/// How a task of ours is controlled.
struct TaskHandle {
    /// Ends it before it ends itself.
    stop: CancellationToken,
    /// Until when it may run.
    lease: watch::Sender<u64>,
}

/// The task that owns what a node holds.
pub(crate) struct Session {
    shared: Shared,
    events: mpsc::Receiver<Event>,
    grace: Duration,
    link: LinkHandle,
    /// Stops this worker; none where the platform of its process goes on without it.
    stopped_by_drain: Option<CancellationToken>,
    holdings: Holdings,
    tasks: HashMap<Claim, TaskHandle>,
}

impl Session {
    pub(crate) fn new(worker: Worker, info: NodeInfo, link: LinkHandle, stop: &CancellationToken) -> Self {
        let (sender, events) = mpsc::channel(QUEUE);
        let shared = Shared {
            node: worker.node,
            pool: worker.pool,
            db: worker.db,
            owner: worker.config.owner,
            metrics: worker.metrics,
            events: sender,
            cut: CancellationToken::new(),
        };
        let (holdings, tasks) = (Holdings::new(info), HashMap::new());
        let stopped_by_drain = worker.config.stops_when_drained.then(|| stop.clone());
        Self { shared, events, grace: worker.config.grace, link, stopped_by_drain, holdings, tasks }
    }

    /// Serves until told to stop, then drains; whether nothing is left then.
    pub(crate) async fn run(mut self, mut link: Link, stop: CancellationToken) -> bool {
        let mut renew = tokio::time::interval(RENEW);
        let _watching = AbortOnDropHandle::new(tokio::spawn(self.shared.clone().watch()));
        let mut end = None;
        let mut tell_started = None;
        loop {
            if self.holdings.is_drained() {
                // Clients of this process get their replies within the grace.
                let left = end.map_or(Duration::ZERO, |end: Instant| end.saturating_duration_since(Instant::now()));
                self.shared.pool.drain(left).await;
                info!("everything is finished");
                return true;
            }
            let effects = tokio::select! {
                event = link.next() => match event {
                    Some(event) => self.link_event(event),
                    None => return false,
                },
                Some(event) = self.events.recv() => {
                    if matches!(event, Event::CallReleased) {
                        self.shared.metrics.busy.dec();
                    }
                    let effects = self.holdings.event(event);
                    if self.holdings.has_started() && tell_started.is_none() {
                        tell_started = Some(Instant::now() + GATHER);
                    }
                    effects
                }
                () = until(tell_started) => {
                    tell_started = None;
                    self.holdings.tell_started()
                }
                _ = renew.tick() => self.holdings.renew(&self.shared.owner, boot_ms()),
                () = stop.cancelled(), if !self.holdings.is_draining() => {
                    let (calls, builds) = self.holdings.running();
                    info!(calls, builds, "draining");
                    end = Some(Instant::now() + self.grace);
                    self.shared.node.draining.cancel();
                    self.holdings.drain()
                }
                () = until(end) => {
                    if self.shared.cut.is_cancelled() {
                        warn!("some work could not be given back in time");
                        return false;
                    }
                    let (calls, builds) = self.holdings.running();
                    warn!(calls, builds, "the grace is over; giving back what still runs");
                    self.shared.cut.cancel();
                    end = Some(Instant::now() + GIVE_BACK);
                    Vec::new()
                }
            };
            for effect in effects {
                self.perform(effect).await;
            }
        }
    }

    fn link_event(&mut self, event: LinkEvent) -> Vec<Effect> {
        match event {
            LinkEvent::Up => self.holdings.connected(),
            LinkEvent::Down => {
                self.holdings.disconnected();
                debug!("the api is gone; connecting again");
                Vec::new()
            }
            LinkEvent::Message(bytes) => {
                match Envelope::decode(&bytes).and_then(|envelope| envelope.parse::<ToWorker>()) {
                    Ok(message) => self.holdings.message(message, Now { boot: boot_id(), ms: boot_ms() }),
                    Err(error) => {
                        warn!(%error, "a message of the api was dropped");
                        Vec::new()
                    }
                }
            }
        }
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Tell(message) => self.tell(&message).await,
            Effect::BeginCall { job, until_ms, is_stopped } => {
                let control = self.control(Claim::Call((job.num, job.epoch)), until_ms, is_stopped);
                self.shared.metrics.busy.inc();
                tokio::spawn(self.shared.clone().attempt(*job, control));
            }
            Effect::BeginBuild { job, until_ms, is_stopped } => {
                let control = self.control(Claim::Build((job.reference(), job.epoch)), until_ms, is_stopped);
                tokio::spawn(self.shared.clone().build(*job, control));
            }
            Effect::Extend { claim, until_ms } => {
                if let Some(task) = self.tasks.get(&claim) {
                    task.lease.send_replace(until_ms);
                }
            }
            Effect::Stop(claim) => {
                if let Some(task) = self.tasks.get(&claim) {
                    task.stop.cancel();
                }
            }
            Effect::Forget(claim) => drop(self.tasks.remove(&claim)),
            Effect::Renew(request) => self.renew(request),
            Effect::TellStarted(calls) => self.tell_started(calls),
            Effect::Preload(preload) => self.shared.pool.preload(preload),
            Effect::KeepMinimum => self.keep_minimum(),
            Effect::StopWorker => {
                info!("an administrator drains this node");
                if let Some(stop) = &self.stopped_by_drain {
                    stop.cancel();
                }
            }
            Effect::ForgetFunction(function) => self.shared.pool.forget(&function),
            Effect::Answer { id, question } => {
                let shared = self.shared.clone();
                tokio::spawn(async move {
                    let reply = shared.reply(question).await;
                    shared.say(Event::Tell(ToApi::Reply { id, reply })).await;
                });
            }
        }
    }

    async fn tell(&self, message: &ToApi) {
        match Envelope::new("", TYPE, message).and_then(|envelope| envelope.encode()) {
            Ok(bytes) => drop(self.link.send(bytes).await),
            Err(error) => warn!(%error, "a message to the api cannot be sent"),
        }
    }

    /// What a task that begins is told, and how it is controlled.
    fn control(&mut self, claim: Claim, until_ms: u64, is_stopped: bool) -> TaskControl {
        let stop = self.shared.cut.child_token();
        if is_stopped {
            stop.cancel();
        }
        let (lease, receiver) = watch::channel(until_ms);
        let control = TaskControl { lease: receiver, stop: stop.clone() };
        self.tasks.insert(claim, TaskHandle { stop, lease });
        control
    }

    fn renew(&self, request: LeaseRenew) {
        let (shared, asked_ms) = (self.shared.clone(), boot_ms());
        tokio::spawn(async move {
            match shared.db.ask(&request).await {
                Ok(renewed) => shared.say(Event::Renewed(Box::new(Renewal { asked_ms, request, renewed }))).await,
                Err(error) => warn!(%error, "leases could not be renewed"),
            }
        });
    }

    fn tell_started(&self, calls: Vec<CallClaim>) {
        let (db, owner) = (self.shared.db.clone(), self.shared.owner.clone());
        tokio::spawn(async move {
            if let Err(error) = db.ask(&CallsStarted { owner, calls }).await {
                debug!(%error, "db did not hear of starts");
            }
        });
    }

    fn keep_minimum(&self) {
        let (shared, asked) = (self.shared.clone(), std::time::Instant::now());
        tokio::spawn(async move {
            match shared.db.ask(&VersionsMinimum { owner: shared.owner.clone() }).await {
                Ok(codes) => shared.pool.reconcile(codes, asked),
                // It is asked again, as often as leases are renewed.
                Err(error) => debug!(%error, "which versions have a minimum of instances is not known"),
            }
        });
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}
