//! The tasks of a node: one for each attempt and each build, and one that watches engines and pool.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use faena_db_client::DbClient;
use faena_domain::{BlobKey, EngineKind, Epoch, Owner};
use faena_miniworker::{Node, find_image, run_build};
use faena_pool::Pool;
use faena_protocol::db::{BuildFinish, CallFinish, LeaseRenew};
use faena_protocol::node::{EngineInfo, PoolView, Question, QueuedEnd, Reply, ToApi};
use faena_protocol::records::{BuildJob, BuildRef, CallJob, Code};
use faena_transport::boot_ms;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::holdings::{CallClaim, Event, Renewal};
use crate::attempt::run_attempt;
use crate::metrics::{Built, End, Metrics};

/// How often engines are asked whether they live.
const LOOK: Duration = Duration::from_secs(1);

/// What an attempt or a build is told while it goes on.
pub(super) struct TaskControl {
    pub(super) lease: watch::Receiver<u64>,
    pub(super) stop: CancellationToken,
}

/// What every task of the node needs.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) node: Arc<Node>,
    pub(super) pool: Pool,
    pub(super) db: DbClient,
    pub(super) owner: Owner,
    pub(super) metrics: Metrics,
    pub(super) events: mpsc::Sender<Event>,
    /// Ends whatever still runs when the grace is over.
    pub(super) cut: CancellationToken,
}

impl Shared {
    pub(super) async fn say(&self, event: Event) {
        // The session is gone only when the process is about to be.
        let _ = self.events.send(event).await;
    }

    pub(super) async fn reply(&self, question: Question) -> Reply {
        match question {
            Question::Log(of) => Reply::Log(self.pool.log(&of)),
            Question::Image(image, engine) => Reply::Image(find_image(&self.node, &image, engine).await),
        }
    }

    /// A claim whose lease is by another machine's clock is renewed before anything begins.
    async fn confirm(&self, control: &mut TaskControl, calls: Vec<CallClaim>, builds: Vec<(BuildRef, Epoch)>) {
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
    pub(super) async fn watch(self) {
        let mut told = PoolView::default();
        let mut offered: Vec<EngineInfo> =
            self.node.engines.values().map(|engine| crate::engine_info(engine.as_ref(), Vec::new())).collect();
        let (mut images, mut images_of) = (HashMap::new(), None);
        loop {
            tokio::time::sleep(LOOK).await;
            let view = self.pool.view();
            if view != told {
                told = view;
                self.say(Event::Pool(view)).await;
            }
            let changes = self.node.images.changes();
            if images_of != Some(changes) {
                (images, images_of) = (self.images().await, Some(changes));
            }
            let mut available = Vec::new();
            for (kind, engine) in &self.node.engines {
                if engine.is_available().await {
                    available.push(crate::engine_info(engine.as_ref(), images.get(kind).cloned().unwrap_or_default()));
                }
            }
            if available == offered {
                continue;
            }
            let kinds = |engines: &[EngineInfo]| engines.iter().map(|info| info.engine).collect::<Vec<_>>();
            if kinds(&available) != kinds(&offered) {
                warn!(engines = ?kinds(&available), "the engines that answer have changed");
            }
            offered.clone_from(&available);
            self.say(Event::Engines(available)).await;
        }
    }

    /// The images of the platform that each engine has.
    async fn images(&self) -> HashMap<EngineKind, Vec<BlobKey>> {
        let mut images = HashMap::new();
        for (kind, engine) in &self.node.engines {
            // One that does not answer is not offered either.
            let mut found: Vec<BlobKey> =
                engine.images().await.unwrap_or_default().iter().map(|image| image.key).collect();
            found.sort_unstable();
            images.insert(*kind, found);
        }
        images
    }

    pub(super) async fn attempt(self, job: CallJob, mut control: TaskControl) {
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
            let status = self.db.deliver(&finish).await.filter(|status| status.is_terminal());
            (None, status.zip(attempt).map(|(status, attempt)| Box::new(QueuedEnd { status, attempt })))
        } else {
            (outcome.map(Box::new), None)
        };
        self.say(Event::Tell(ToApi::Ended { num, epoch, outcome, queued })).await;
        ended.released().await;
        self.say(Event::CallReleased).await;
    }

    pub(super) async fn build(self, job: BuildJob, mut control: TaskControl) {
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
        self.db.deliver(&finish).await;
        // From now on db tells that the version is built.
        if let Some(code) = built {
            self.pool.expect(&code);
        }
        self.say(Event::BuildEnded(build, is_ready)).await;
    }
}
