//! The instances of a node: which are idle, which work, and who gets the next one.
//!
//! Every call goes through here, on every call path. `state` decides and does nothing; what it decides is done
//! outside of its lock: a call begins in an instance, an instance is made. Identical cold starts are coalesced, since
//! calls of one version wait in one queue and whichever instance is free first takes the next. A task that belongs to
//! the instance owns a call from there on ([`faena_miniworker::ServerInstance`]), never the task that waits for it.

mod exec;
mod keeper;
mod member;
mod metrics;
mod prewarm;
mod state;
mod teardown;
mod work;

use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::{CallNum, Contract, FunctionId, Preload};
use faena_invoker::{Invocation, Invoker};
use faena_miniworker::{InstanceCall, Made, Node, Preparation, StartError, fetch_image, interpreter_domain};
use faena_protocol::node::{LogOf, PoolView};
use faena_protocol::records::Code;
use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

pub use exec::{ExecLease, Release};
pub use metrics::Metrics;
pub use state::{PoolPolicy, PreloadSetting};

use exec::{ExecRequest, ExecSlot};
use member::Member;
use prewarm::PrewarmPool;
use state::{Effect, InstanceRef, Measured, Start, State};
use teardown::TeardownQueue;
use work::{PoolInstance, Shell, Work};

/// How long a stop waits for instances that are being made.
const MAKING: Duration = Duration::from_secs(10);

/// How a pool is set up.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// What it is allowed, and how long it keeps what is idle.
    pub policy: PoolPolicy,
    /// How long a server may take until it listens.
    pub start_timeout: Duration,
    /// Where instances live that no call asked for; the others live where their first call came from.
    pub home: Handle,
}

#[derive(Debug)]
struct Shared {
    node: Arc<Node>,
    config: PoolConfig,
    metrics: Metrics,
    state: Mutex<State<Shell>>,
    prewarm: PrewarmPool,
    teardown: TeardownQueue,
    /// Notified when something waits that has to be judged from time to time.
    waits: Notify,
}

/// The instances of a node; clones share them.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

impl Pool {
    /// An empty pool, and the task that keeps it, which ends with the runtime.
    pub fn new(node: Arc<Node>, config: PoolConfig, metrics: Metrics) -> Self {
        let state = Mutex::new(State::new(&config.policy, Instant::now()));
        let home = config.home.clone();
        let (prewarm, teardown) = (PrewarmPool::default(), TeardownQueue::default());
        let pool = Self(Arc::new(Shared { node, config, metrics, state, prewarm, teardown, waits: Notify::new() }));
        home.spawn(keeper::keep(Arc::downgrade(&pool.0)));
        pool
    }

    /// What every attempt of the node shares.
    pub fn node(&self) -> &Arc<Node> {
        &self.0.node
    }

    /// Hands a call to an instance that answers many, now or when one is there.
    ///
    /// # Errors
    /// The call itself, where too many wait already.
    pub fn call(&self, code: &Arc<Code>, call: Box<InstanceCall>) -> Result<(), Box<InstanceCall>> {
        self.0.submit(code, Work::Call(call)).map_err(|work| match work {
            Work::Call(call) => call,
            Work::Exec(_) => unreachable!("what was refused is what was handed over"),
        })
    }

    /// An instance of a version in which a process can be started; [`ExecLease::release`] gives it back.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn take(&self, code: &Arc<Code>, until: Instant) -> Result<ExecLease, StartError> {
        let (give, given) = oneshot::channel();
        self.0.submit(code, Work::Exec(ExecRequest { until, give })).map_err(|_| StartError::Full)?;
        given.await.unwrap_or(Err(StartError::Late))
    }

    /// Ends a call; false where it is not known, or has ended.
    pub fn cancel(&self, num: CallNum) -> bool {
        // The lock is not held while instances are asked.
        let waiting_or_active = self.0.state().cancel(num);
        match waiting_or_active {
            Ok(Work::Call(call)) => {
                let end = call.cancelled();
                call.end(end);
                true
            }
            Ok(Work::Exec(_)) => false,
            Err(active) => active.iter().filter_map(PoolInstance::server).any(|server| server.cancel(num)),
        }
    }

    /// What was written until now by a call or build that runs here, as it is stored.
    pub fn log(&self, of: &LogOf) -> Option<String> {
        self.0.node.logs.read(of).or_else(|| match of {
            LogOf::Call(num) => {
                // The lock is not held while a log is copied.
                let active = self.0.state().active();
                active.iter().filter_map(PoolInstance::server).find_map(|server| server.log_of(*num))
            }
            LogOf::Build(_) => None,
        })
    }

    /// What it holds, for people.
    pub fn view(&self) -> PoolView {
        let counts = self.0.state().counts();
        let metrics = &self.0.metrics;
        PoolView {
            instances: counts.instances,
            working: counts.working,
            waiting_calls: counts.waiting,
            frozen: counts.frozen,
            memory_bytes: counts.memory,
            hits: metrics.hits.get(),
            misses: metrics.misses.get(),
            refills: metrics.refills.get(),
            evictions: metrics.evictions.get(),
            prewarmed: self.0.prewarm.count(),
            interpreters: self.0.node.engines.values().map(|engine| engine.interpreters()).sum(),
            disk_low: self.0.node.code.is_disk_low(),
        }
    }

    /// What the platform says of what waits for calls; the node's own setting is nearer.
    pub fn preload(&self, of_platform: Preload) {
        self.0.config.policy.preload.of_platform(of_platform);
    }

    /// A version can be called, or has a minimum of instances: what its next call needs is made, where that takes long.
    pub fn expect(&self, code: &Code) {
        self.0.restock(code, None);
        if code.serving.contract == Contract::Handler && self.0.preloads(code) {
            self.0.hold_interpreter(code);
        }
        let shared = Arc::new(code.clone());
        self.0.apply(|state, now| state.expect(&shared, now));
        // Unpacking takes time in proportion to the size of the code; no call should wait for it.
        let (pool, code) = (Arc::clone(&self.0), code.clone());
        self.0.config.home.spawn(async move {
            match pool.node.code.get(&code).await {
                Ok(tree) => {
                    if pool.preloads(&code)
                        && let Some(domain) = interpreter_domain(&code, &tree)
                    {
                        pool.restock(&code, Some(&domain));
                    }
                }
                Err(error) => tracing::debug!(%error, "code could not be unpacked before it is called"),
            }
        });
    }

    /// These are all versions with a minimum of instances, as they were when db was asked.
    pub fn reconcile(&self, codes: Vec<Code>, asked: Instant) {
        let ours = codes.into_iter().filter(|code| self.offers(code)).collect();
        let unknown = self.0.state().reconcile(ours, asked);
        unknown.iter().for_each(|code| self.expect(code));
    }

    /// A function is deleted: its instances go when they have no call, and its code when it has no instance.
    pub fn forget(&self, function: &FunctionId) {
        self.0.node.code.forget(function);
        self.0.state().forget(function);
    }

    /// Takes nothing more in, lets what works finish within a grace, and returns when every instance is gone.
    pub async fn drain(&self, grace: Duration) {
        let tasks = &self.0.node.tasks;
        let instances = self.0.state().close();
        let end = tokio::time::Instant::now() + grace;
        for instance in instances {
            tasks.spawn(instance.destroy(end));
        }
        for prewarmed in self.0.prewarm.empty() {
            tasks.spawn(prewarmed.destroy());
        }
        tasks.close();
        // What is being made is destroyed when it is there.
        if tokio::time::timeout(grace + MAKING, tasks.wait()).await.is_err() {
            tracing::warn!("some instances are not gone yet; they go at the next start");
        }
    }
}

impl Invoker for Pool {
    fn offers(&self, code: &Code) -> bool {
        code.engine.is_some_and(|engine| self.0.node.engines.contains_key(&engine))
    }

    fn submit(&self, call: Invocation) -> Result<(), Box<Invocation>> {
        let code = Arc::clone(&call.code);
        let call = InstanceCall::of_direct(call, &self.0.node);
        self.call(&code, call).map_err(|call| {
            (*call).into_direct(&code).unwrap_or_else(|| unreachable!("what was refused is what was handed over"))
        })
    }

    fn cancel(&self, num: CallNum) -> bool {
        Self::cancel(self, num)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State<Shell>> {
        self.state.lock()
    }

    /// Whether something is held ready for a version before it is called.
    fn preloads(&self, code: &Code) -> bool {
        code.serving.preload.unwrap_or_else(|| self.config.policy.preload.get()) >= Preload::Runtime
    }

    /// Has a version's interpreter loaded in advance, where its engine can do that.
    fn hold_interpreter(&self, code: &Code) {
        let Some(engine) = code.engine.and_then(|engine| self.node.engines.get(&engine)) else { return };
        let (engine, domain) = (Arc::clone(engine), code.namespace.to_string());
        self.config.home.spawn(async move { engine.hold_interpreter(&domain).await });
    }

    fn submit(self: &Arc<Self>, code: &Arc<Code>, work: Work) -> Result<(), Work> {
        let effects = self.state().submit(code, work.waiting(), Instant::now())?;
        self.perform(effects);
        Ok(())
    }

    /// Tells the state what happened, and does what it decides.
    fn apply(self: &Arc<Self>, decide: impl FnOnce(&mut State<Shell>, Instant) -> Vec<Effect<Shell>>) {
        let effects = decide(&mut self.state(), Instant::now());
        self.perform(effects);
    }

    /// Does what was decided, outside of the lock.
    fn perform(self: &Arc<Self>, effects: Vec<Effect<Shell>>) {
        for effect in effects {
            match effect {
                Effect::Begin { at, instance, waiting } => {
                    if !waiting.is_cold {
                        self.metrics.hits.inc();
                    }
                    let is_cold = waiting.is_cold;
                    self.begin(at, instance, waiting.work, is_cold);
                }
                Effect::Start { at, code, is_asked } => self.begin_start(at, code, is_asked),
                Effect::Refuse { work, why } => work.refuse(why),
                Effect::Destroy(instance) => {
                    self.metrics.evictions.inc();
                    self.node.tasks.spawn_on(instance.destroy(tokio::time::Instant::now()), &self.config.home);
                }
                Effect::Measure { at, instance, idle_since, freeze } => {
                    let (memory, is_frozen) = instance.measure(freeze);
                    self.state().measured(&at, Measured { idle_since, memory, is_frozen });
                }
                Effect::Watch => self.waits.notify_one(),
            }
        }
    }

    fn begin(self: &Arc<Self>, at: InstanceRef, instance: PoolInstance, work: Work, is_cold: bool) {
        match (instance, work) {
            (PoolInstance::Server(server), Work::Call(mut call)) => {
                call.is_cold = is_cold;
                if let Err(call) = server.begin(call) {
                    // It died a moment ago, or takes no more; the call goes to the next one.
                    server.retire();
                    self.apply(|state, now| state.returned(&at, Work::Call(call).waiting(), now));
                }
            }
            (PoolInstance::Exec(slot), Work::Exec(request)) => ExecLease::grant(self, at, slot, request, is_cold),
            (PoolInstance::Server(_), Work::Exec(_)) | (PoolInstance::Exec(_), Work::Call(_)) => {
                unreachable!("a version has one contract, which says what its calls and instances are")
            }
        }
    }

    fn begin_start(self: &Arc<Self>, at: InstanceRef, code: Arc<Code>, is_asked: bool) {
        let counter = if is_asked { &self.metrics.misses } else { &self.metrics.refills };
        counter.inc();
        let home = if is_asked { Handle::try_current().ok() } else { None };
        let home = home.unwrap_or_else(|| self.config.home.clone());
        self.node.tasks.spawn_on(Arc::clone(self).start(at, code, is_asked), &home);
    }

    /// Makes one instance, and tells the state.
    async fn start(self: Arc<Self>, at: InstanceRef, code: Arc<Code>, is_asked: bool) {
        let fetched = fetch_image(&self.node, &code).await;
        let (began, limit) = (Instant::now(), code.limits.timeout);
        let made = match fetched {
            Ok(()) => tokio::time::timeout(limit.duration(), self.make(&at, &code))
                .await
                .unwrap_or_else(|_| Err(StartError::timed_out(limit))),
            Err(error) => Err(error.into()),
        };
        if made.is_ok() {
            self.state().learn(&at.version, began.elapsed().as_secs_f64() * 1000.0);
        }
        self.apply(|state, now| {
            // Under the lock: one that has ended meanwhile has not told so yet.
            let start = match made {
                Ok(Made::Server(server)) if !server.is_open() => Start::Ended(PoolInstance::Server(server)),
                Ok(Made::Server(server)) => Start::Made(PoolInstance::Server(server)),
                Ok(Made::Exec(exec)) => Start::Made(PoolInstance::Exec(ExecSlot::holding(exec, code.serving.reuse))),
                Err(error) => Start::Failed(error),
            };
            state.started(&at, is_asked, start, now)
        });
    }

    async fn make(self: &Arc<Self>, at: &InstanceRef, code: &Arc<Code>) -> Result<Made, StartError> {
        let preparation = Preparation::new(&self.node, code, self.preloads(code)).await?;
        let domain = preparation.domain().map(str::to_owned);
        let created = preparation.create(self.take_prewarmed(code, domain.as_deref())).await;
        self.restock(code, domain.as_deref());
        let owner = Arc::new(Member { pool: Arc::clone(self), at: at.clone() });
        created?.start(owner, self.config.start_timeout).await
    }
}
