//! The one task that knows what a node holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use faena_db_client::DbClient;
use faena_domain::{CallNum, Epoch, FunctionId, Owner};
use faena_miniworker::{Node, find_image, run_build};
use faena_pool::Pool;
use faena_protocol::Envelope;
use faena_protocol::db::{BuildFinish, BuildRef, CallFinish, CallsStarted, LeaseRenew, Renewed, VersionsMinimum};
use faena_protocol::node::{
    CallOf, EngineInfo, HeldCall, Lease, NodeInfo, PoolView, Question, QueuedEnd, Reply, TYPE, ToApi, ToWorker,
};
use faena_protocol::records::{BuildJob, CallJob, Code};
use faena_transport::{Link, LinkEvent, LinkHandle, boot_id, boot_ms};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::attempt::run_attempt;
use crate::metrics::{Built, End, Metrics};
use crate::{Worker, lease, outbox};

/// How often leases are renewed; a lease is three times as long.
const RENEW: Duration = Duration::from_secs(10);
/// How long starts are gathered before db hears of them; what ends sooner needs no such word.
const GATHER: Duration = Duration::from_millis(100);
/// How often engines are asked whether they live.
const LOOK: Duration = Duration::from_secs(1);
/// How long what was cut off at a stop may take to be given back.
const GIVE_BACK: Duration = Duration::from_secs(5);
/// Ends of calls that wait to be told; more than any node has slots.
const QUEUE: usize = 1024;

type Claim = (CallNum, Epoch);

/// What an attempt or a build has to say.
enum Event {
    Tell(ToApi),
    CallGone,
    /// A build, and whether its version can be called now.
    BuildGone(BuildRef, bool),
    Started(Claim),
    Engines(Vec<EngineInfo>),
    Pool(PoolView),
    Renewed(Box<Renewal>),
}

/// Leases that were renewed, but for those that are not ours any more.
struct Renewal {
    /// When db was asked.
    asked_ms: u64,
    request: LeaseRenew,
    renewed: Renewed,
}

/// What the session keeps of a call or a build.
struct Claimed {
    epoch: Epoch,
    /// Ends it before it ends itself.
    stop: CancellationToken,
    /// Until when it may run.
    lease: watch::Sender<u64>,
    /// Whether db has a row of it, which may pass to another.
    has_row: bool,
    /// What it runs; none where it is a build.
    of: Option<CallOf>,
}

/// What an attempt or a build is told while it goes on.
struct TaskControl {
    lease: watch::Receiver<u64>,
    stop: CancellationToken,
}

/// What every task of the node needs.
#[derive(Clone)]
struct Shared {
    node: Arc<Node>,
    pool: Pool,
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
    calls: HashMap<Claim, Claimed>,
    builds: HashMap<BuildRef, Claimed>,
    /// Calls whose processes run and of which db has not heard so.
    begun: Vec<Claim>,
    /// Calls that have ended and whose instances are being destroyed.
    leaving: usize,
    /// Sent again after each reconnect until the api has acknowledged them.
    unheard: HashMap<Claim, ToApi>,
    draining: bool,
    /// Whether the api hears us.
    is_up: bool,
}

impl Session {
    pub(crate) fn new(worker: Worker, info: NodeInfo, link: LinkHandle) -> Self {
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
        Self {
            shared,
            events,
            info,
            grace: worker.config.grace,
            link,
            calls: HashMap::new(),
            builds: HashMap::new(),
            begun: Vec::new(),
            leaving: 0,
            unheard: HashMap::new(),
            draining: false,
            is_up: false,
        }
    }

    /// Serves until told to stop, then drains.
    pub(crate) async fn run(mut self, mut link: Link, stop: CancellationToken) {
        let mut renew = tokio::time::interval(RENEW);
        let watching = tokio::spawn(self.shared.clone().watch());
        let _watching = AbortOnDrop(watching.abort_handle());
        let mut end = None;
        let mut tell_begun = None;
        loop {
            let is_idle = self.calls.is_empty() && self.leaving == 0 && self.builds.is_empty();
            if self.draining && is_idle && self.unheard.is_empty() {
                // Clients of this process get their replies within the grace.
                let left = end.map_or(Duration::ZERO, |end: Instant| end.saturating_duration_since(Instant::now()));
                self.shared.pool.drain(left).await;
                return info!("everything is finished");
            }
            tokio::select! {
                event = link.next() => match event {
                    Some(event) => self.heard(event).await,
                    None => return,
                },
                Some(event) = self.events.recv() => {
                    self.event(event).await;
                    if !self.begun.is_empty() && tell_begun.is_none() {
                        tell_begun = Some(Instant::now() + GATHER);
                    }
                }
                () = until(tell_begun) => {
                    tell_begun = None;
                    self.tell_begun();
                }
                _ = renew.tick() => {
                    self.renew();
                    self.expect_minimum();
                }
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
        let held =
            |(claim, held): (&Claim, &Claimed)| Some(HeldCall { num: claim.0, epoch: claim.1, of: held.of.clone()? });
        let (calls, ended) = (self.calls.iter().filter_map(held).collect(), self.unheard.keys().copied().collect());
        let builds = self.builds.keys().cloned().collect();
        self.tell(&ToApi::Hello { node: self.info.clone(), calls, ended, builds }).await;
        if self.draining {
            self.tell(&ToApi::Draining).await;
        }
        for message in self.unheard.values() {
            self.tell(message).await;
        }
    }

    async fn heard(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up => {
                self.is_up = true;
                self.hello().await;
                self.expect_minimum();
            }
            LinkEvent::Down => {
                self.is_up = false;
                debug!("the api is gone; connecting anew");
            }
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
            ToWorker::Call { job, lease } => self.call(*job, &lease).await,
            ToWorker::Build { job, lease } => self.build(*job, &lease),
            ToWorker::Persisted { num, epoch } => {
                if let Some(held) = self.calls.get_mut(&(num, epoch)) {
                    held.has_row = true;
                }
            }
            ToWorker::Built { build } => {
                debug!(function = %build.function, version = %build.version, "another worker has built a version");
                self.expect_minimum();
            }
            ToWorker::Forget { namespace, function } => {
                self.shared.pool.forget(&FunctionId::new(&namespace, &function));
            }
            ToWorker::Ask { id, question } => {
                let shared = self.shared.clone();
                tokio::spawn(async move {
                    let reply = shared.reply(question).await;
                    shared.say(Event::Tell(ToApi::Reply { id, reply })).await;
                });
            }
            ToWorker::Cancel { num, epoch } => {
                if let Some(held) = self.calls.get(&(num, epoch)) {
                    held.stop.cancel();
                }
            }
        }
    }

    /// Has the pool make what waits whether or not calls come.
    fn expect_minimum(&self) {
        if self.draining {
            return;
        }
        let (shared, asked) = (self.shared.clone(), std::time::Instant::now());
        tokio::spawn(async move {
            match shared.db.ask(&VersionsMinimum {}).await {
                Ok(codes) => shared.pool.reconcile(codes, asked),
                // It is asked again, as often as leases are renewed.
                Err(error) => debug!(%error, "what should wait for calls is not known"),
            }
        });
    }

    /// What is kept of a claim, and what its task is told. While the node drains nothing begins any more.
    fn take_up(&self, epoch: Epoch, has_row: bool, until_ms: u64) -> (Claimed, TaskControl) {
        let stop = self.shared.cut.child_token();
        if self.draining {
            stop.cancel();
        }
        let (sender, receiver) = watch::channel(until_ms);
        let control = TaskControl { lease: receiver, stop: stop.clone() };
        (Claimed { epoch, stop, lease: sender, has_row, of: None }, control)
    }

    async fn call(&mut self, job: CallJob, lease: &Lease) {
        let claim = (job.num, job.epoch);
        if self.calls.contains_key(&claim) || self.unheard.contains_key(&claim) {
            return;
        }
        let now = boot_ms();
        let known = lease::first_end(lease, boot_id()).filter(|end| *end > now);
        // A call without a row is its api's to judge, which waits as long as a lease from when it lost us.
        let until_ms = if job.has_row { known.unwrap_or(0) } else { lease::end_of(now) };
        let (held, control) = self.take_up(job.epoch, job.has_row, until_ms);
        self.calls.insert(claim, Claimed { of: Some(CallOf::of(&job.code)), ..held });
        self.tell(&ToApi::Accepted { num: job.num, epoch: job.epoch }).await;
        self.shared.metrics.busy.inc();
        tokio::spawn(self.shared.clone().attempt(job, control));
    }

    fn build(&mut self, job: BuildJob, lease: &Lease) {
        let build = job.reference();
        if self.builds.contains_key(&build) {
            return;
        }
        // One that is over already is asked for again before anything begins.
        let until_ms = lease::first_end(lease, boot_id()).filter(|end| *end > boot_ms()).unwrap_or(0);
        let (held, control) = self.take_up(job.epoch, true, until_ms);
        self.builds.insert(build, held);
        tokio::spawn(self.shared.clone().build(job, control));
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
            Event::BuildGone(build, is_ready) => {
                self.builds.remove(&build);
                self.tell(&ToApi::BuildEnded { build, is_ready }).await;
            }
            Event::Started(claim) => {
                if self.calls.get(&claim).is_some_and(|held| held.has_row) {
                    self.begun.push(claim);
                }
                self.tell(&ToApi::Started { num: claim.0, epoch: claim.1 }).await;
            }
            Event::Pool(pool) => self.tell(&ToApi::Pool { pool }).await,
            Event::Engines(engines) => {
                self.info.engines.clone_from(&engines);
                self.tell(&ToApi::Engines { engines }).await;
            }
            Event::Renewed(renewal) => self.renewed(&renewal),
        }
    }

    /// Db counts a delivery that is lost only if it knows that its process had begun.
    fn tell_begun(&mut self) {
        let begun = std::mem::take(&mut self.begun);
        let calls: Vec<Claim> = begun.into_iter().filter(|claim| self.calls.contains_key(claim)).collect();
        if calls.is_empty() {
            return;
        }
        let (db, owner) = (self.shared.db.clone(), self.shared.owner.clone());
        tokio::spawn(async move {
            if let Err(error) = db.ask(&CallsStarted { owner, calls }).await {
                debug!(%error, "db did not hear of starts");
            }
        });
    }

    /// What was renewed may go on; what is not ours any more has to end at once.
    fn renewed(&self, asked: &Renewal) {
        let until_ms = lease::end_of(asked.asked_ms);
        for claim in &asked.request.calls {
            let Some(held) = self.calls.get(claim).filter(|held| held.has_row) else { continue };
            if asked.renewed.stale_calls.contains(claim) {
                warn!(call = %claim.0, "another claim has taken over; stopping this one");
                held.stop.cancel();
            } else {
                held.lease.send_replace(until_ms);
            }
        }
        for build in &asked.request.builds {
            let Some(held) = self.builds.get(&build.0).filter(|held| held.epoch == build.1) else { continue };
            if asked.renewed.stale_builds.contains(build) {
                warn!(function = %build.0.function, "another claim has taken over; stopping this build");
                held.stop.cancel();
            } else {
                held.lease.send_replace(until_ms);
            }
        }
    }

    /// All leases in one message. A renewal that is lost is made up for by the next one.
    fn renew(&self) {
        if self.calls.is_empty() && self.builds.is_empty() {
            return;
        }
        let asked_ms = boot_ms();
        // A call without a row is its api's to judge, which gives it up a lease after it lost us.
        for held in self.calls.values().filter(|held| !held.has_row && self.is_up) {
            held.lease.send_replace(lease::end_of(asked_ms));
        }
        let request = LeaseRenew {
            owner: self.shared.owner.clone(),
            calls: self.calls.keys().copied().collect(),
            builds: self.builds.iter().map(|(build, held)| (build.clone(), held.epoch)).collect(),
        };
        let shared = self.shared.clone();
        tokio::spawn(async move {
            match shared.db.ask(&request).await {
                Ok(renewed) => shared.say(Event::Renewed(Box::new(Renewal { asked_ms, request, renewed }))).await,
                Err(error) => warn!(%error, "leases could not be renewed"),
            }
        });
    }
}

/// Ends a task that nobody needs any longer.
pub(crate) struct AbortOnDrop(pub(crate) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

impl Shared {
    async fn say(&self, event: Event) {
        // The session is gone only when the process is about to be.
        let _ = self.events.send(event).await;
    }

    async fn reply(&self, question: Question) -> Reply {
        match question {
            Question::Log(of) => Reply::Log(self.pool.log(&of)),
            Question::Image(image, engine) => Reply::Image(find_image(&self.node, &image, engine).await),
        }
    }

    /// A claim whose lease is by another machine's clock is renewed before anything begins.
    async fn confirm(&self, control: &mut TaskControl, calls: Vec<Claim>, builds: Vec<(BuildRef, Epoch)>) {
        if *control.lease.borrow() > 0 {
            return;
        }
        let asked_ms = boot_ms();
        let request = LeaseRenew { owner: self.owner.clone(), calls, builds };
        if let Ok(renewed) = self.db.ask_until_known(&request).await {
            self.say(Event::Renewed(Box::new(Renewal { asked_ms, request, renewed }))).await;
            tokio::select! {
                // The session answers in one of these ways.
                _ = control.lease.changed() => {}
                () = control.stop.cancelled() => {}
            }
        }
    }

    /// An engine that cannot make instances is offered to nobody until it can again; and what waits is told.
    async fn watch(self) {
        let mut offered = self.node.engines.len();
        let mut told = PoolView::default();
        loop {
            tokio::time::sleep(LOOK).await;
            let view = self.pool.view();
            if view != told {
                told = view;
                self.say(Event::Pool(view)).await;
            }
            let mut available = Vec::new();
            for engine in self.node.engines.values() {
                if engine.is_available().await {
                    available.push(crate::engine_info(engine.as_ref()));
                }
            }
            if available.len() != offered {
                offered = available.len();
                warn!(engines = ?available.iter().map(|info| info.engine).collect::<Vec<_>>(), "the engines that answer have changed");
                self.say(Event::Engines(available)).await;
            }
        }
    }

    async fn attempt(self, job: CallJob, mut control: TaskControl) {
        let (num, epoch) = (job.num, job.epoch);
        self.confirm(&mut control, vec![(num, epoch)], Vec::new()).await;
        let events = self.events.clone();
        let mut ended = run_attempt(&self.pool, &job, control.lease, &control.stop, move || {
            // A hint; where the queue is full everybody learns from the end.
            let _ = events.try_send(Event::Started((num, epoch)));
        })
        .await;
        let outcome = ended.outcome.take();
        if let Some(outcome) = &outcome {
            let end = End { engine: outcome.attempt.engine.as_str(), status: outcome.status.as_str() };
            self.metrics.attempts.get_or_create(&end).inc();
            self.metrics.start_seconds.observe(outcome.attempt.start_ms.duration().as_secs_f64());
            self.metrics.run_seconds.observe(outcome.attempt.run_ms.duration().as_secs_f64());
        }
        let (outcome, queued) = if job.has_row {
            let attempt = outcome.as_ref().map(|outcome| outcome.attempt.clone());
            let finish = CallFinish { num, epoch, owner: self.owner.clone(), outcome };
            let status = outbox::deliver(&self.db, &finish).await.filter(|status| status.is_terminal());
            (None, status.zip(attempt).map(|(status, attempt)| Box::new(QueuedEnd { status, attempt })))
        } else {
            (outcome.map(Box::new), None)
        };
        self.say(Event::Tell(ToApi::Ended { num, epoch, outcome, queued })).await;
        ended.released().await;
        self.say(Event::CallGone).await;
    }

    async fn build(self, job: BuildJob, mut control: TaskControl) {
        self.confirm(&mut control, Vec::new(), vec![(job.reference(), job.epoch)]).await;
        let outcome = run_build(&self.node, &job, control.lease, &control.stop).await;
        let is_ready = outcome.as_ref().is_some_and(|outcome| outcome.result.is_ok());
        let mut built = None;
        if let Some(outcome) = &outcome {
            if let Ok(archive) = outcome.result {
                let code = job.code.clone();
                built = Some(Code { engine: outcome.engine, image_id: outcome.image_id.clone(), archive, ..code });
            }
            let status = if is_ready { "READY" } else { "ERROR" };
            self.metrics.builds.get_or_create(&Built { status }).inc();
        }
        let build = job.reference();
        let finish = BuildFinish {
            namespace: build.namespace.clone(),
            function: build.function.clone(),
            version: build.version,
            epoch: job.epoch,
            owner: self.owner.clone(),
            outcome,
        };
        outbox::deliver(&self.db, &finish).await;
        // From now on db tells that the version is built.
        if let Some(code) = built {
            self.pool.expect(&code);
        }
        self.say(Event::BuildGone(build, is_ready)).await;
    }
}
