//! The instances of a node: which of them wait, which work, and who gets the next one.
//!
//! Every call goes through here, on every call path. [`state`] decides and does nothing; what it decides is done
//! outside of its lock: a call begins in an instance, an instance is made. Identical cold starts are coalesced, since
//! calls of one version wait in one line and whichever instance is free first takes the next. A task that belongs to
//! the instance owns a call from there on ([`served`]), never the task that waits for it.

mod aside;
mod call;
mod http;
mod keeper;
pub(crate) mod metrics;
mod parked;
mod served;
mod start;
mod state;
mod stock;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use faena_domain::units::ByteSize;
use faena_domain::{CallNum, Contract, FunctionName, Namespace, Preload};
use faena_invoker::{Invocation, Invoker};
use faena_protocol::node::{LogOf, PoolView};
use faena_protocol::records::Code;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio_util::task::TaskTracker;

pub(crate) use call::{PoolCall, PoolEnd};
pub(crate) use parked::{Leave, State, Taken};
pub(crate) use start::StartError;

use crate::Node;
use aside::Aside;
use metrics::Metrics;
use state::{Action, Key, Waiting, Work};
use stock::Stock;

/// How long a stop waits for instances that are being made.
const MAKING: Duration = Duration::from_secs(10);

/// How a pool is set up.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Instances that work at once.
    pub slots: u32,
    /// Instances that are made at once.
    pub creations: u32,
    /// The most instances, waiting ones included.
    pub instances: usize,
    /// What all of them may hold of memory before the cheapest to lose goes.
    pub memory: ByteSize,
    /// How long an instance waits without a call, where its function names no time.
    pub idle: Duration,
    /// How long it waits before it is frozen.
    pub freeze_after: Duration,
    /// How long a server may take until it listens.
    pub start_timeout: Duration,
    /// What waits before calls come, where a function names nothing.
    pub preload: Preload,
    /// Where instances live that no call asked for; the others live where their first call came from.
    pub home: Handle,
}

#[derive(Debug)]
struct Shared {
    node: Arc<Node>,
    config: PoolConfig,
    metrics: Metrics,
    state: Mutex<state::State>,
    stock: Stock,
    aside: Aside,
    /// Whatever makes, renews or destroys instances: a stop waits for it.
    tasks: TaskTracker,
    /// Told when something waits that has to be watched.
    waits: Notify,
}

/// The instances of a node; clones share them.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

impl Pool {
    /// An empty pool, and the task that keeps it, which ends with the runtime.
    pub fn new(node: Arc<Node>, config: PoolConfig, metrics: Metrics) -> Self {
        let state = Mutex::new(state::State::new(&config));
        let home = config.home.clone();
        let (stock, aside) = (Stock::default(), Aside::default());
        let (tasks, waits) = (TaskTracker::new(), Notify::new());
        let pool = Self(Arc::new(Shared { node, config, metrics, state, stock, aside, tasks, waits }));
        home.spawn(keeper::keep(Arc::downgrade(&pool.0)));
        pool
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.0.node
    }

    /// Hands a call to an instance that answers many, now or when one is there.
    pub(crate) fn call(&self, code: &Arc<Code>, call: Box<PoolCall>) -> Result<(), Box<PoolCall>> {
        self.0.submit(code, Work::Call(call)).map_err(|work| match work {
            Work::Call(call) => call,
            Work::Take(_) => unreachable!("what was refused is what was handed over"),
        })
    }

    /// An instance of a version in which a process can be started; `Taken::done` gives it back.
    pub(crate) async fn take(&self, code: &Arc<Code>, until: std::time::Instant) -> Result<Taken, StartError> {
        let (give, given) = oneshot::channel();
        let work = Work::Take(state::Taker { until, give });
        self.0.submit(code, work).map_err(|_| StartError::Full)?;
        given.await.unwrap_or(Err(StartError::Late))
    }

    /// Ends a call; false where it is not known, or has ended.
    pub(crate) fn cancel(&self, num: CallNum) -> bool {
        let (cancelled, instances) = self.0.state().cancel(num);
        if let Some(call) = cancelled {
            let end = PoolEnd::cancelled(&call);
            (call.done)(end);
            return true;
        }
        instances.iter().any(|instance| instance.cancel(num))
    }

    /// What was written until now by a call or build that runs here, as it is stored.
    pub fn log(&self, of: &LogOf) -> Option<String> {
        self.0.node.logs.read(of).or_else(|| match of {
            LogOf::Call(num) => {
                // The pool's lock is not held while a log is copied.
                let busy = self.0.state().busy();
                busy.iter().find_map(|instance| instance.log_of(*num))
            }
            LogOf::Build(_) => None,
        })
    }

    /// What it holds, for people.
    pub fn view(&self) -> PoolView {
        let blank = self.0.stock.count();
        let interpreters = self.0.node.engines.values().map(|engine| engine.interpreters()).sum();
        PoolView { blank, interpreters, ..self.0.state().view(&self.0.metrics) }
    }

    /// A version can be called, or its instances wait whether or not calls come: what its next call needs is made, where
    /// that takes long.
    pub fn expect(&self, code: &Code) {
        self.0.restock(code, None);
        if code.serving.contract == Contract::Handler && self.0.preloads(code) {
            self.0.hold_interpreter(code);
        }
        let actions = self.0.state().expect(&Arc::new(code.clone()), std::time::Instant::now());
        self.0.perform(actions);
        // Unpacking takes the longer the larger it is; no call shall wait for it.
        let (pool, code) = (Arc::clone(&self.0), code.clone());
        self.0.config.home.spawn(async move {
            match pool.node.code.get(&code).await {
                Ok(tree) => {
                    if let Some(domain) = start::domain(&pool, &code, &tree) {
                        pool.restock(&code, Some(&domain));
                    }
                }
                Err(error) => tracing::debug!(%error, "code could not be unpacked before it is called"),
            }
        });
    }

    /// These are all versions of which instances wait whether or not calls come, as they were when db was asked.
    pub fn reconcile(&self, codes: Vec<Code>, asked: std::time::Instant) {
        let ours = codes.into_iter().filter(|code| self.offers(code)).collect();
        let unknown = self.0.state().reconcile(ours, asked);
        unknown.iter().for_each(|code| self.expect(code));
    }

    /// A function is deleted: its instances go when they have no call, and its code when it has no instance.
    pub fn forget(&self, namespace: &Namespace, function: &FunctionName) {
        self.0.node.code.forget(namespace, function);
        self.0.state().forget(namespace, function);
    }

    /// Takes nothing more in, lets what works finish within a grace, and returns when every instance is gone.
    pub async fn drain(&self, grace: Duration) {
        let leaving = self.0.state().close();
        let end = tokio::time::Instant::now() + grace;
        for gone in leaving {
            self.0.tasks.spawn(gone.destroyed(end));
        }
        for blank in self.0.stock.empty() {
            self.0.tasks.spawn(blank.guard.destroy());
        }
        self.0.tasks.close();
        // What is being made is destroyed when it is there.
        if tokio::time::timeout(grace + MAKING, self.0.tasks.wait()).await.is_err() {
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
        let call = PoolCall::of_direct(call, &self.0.node);
        self.call(&code, call).map_err(|call| (*call).into_direct(&code))
    }

    fn cancel(&self, num: CallNum) -> bool {
        Self::cancel(self, num)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, state::State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something waits for a version before it is called.
    fn preloads(&self, code: &Code) -> bool {
        code.serving.preload.unwrap_or(self.config.preload) >= Preload::Runtime
    }

    /// A version's interpreter is loaded beforehand, where its engine can do that.
    fn hold_interpreter(&self, code: &Code) {
        let Some(engine) = code.engine.and_then(|engine| self.node.engines.get(&engine)) else { return };
        let (engine, domain) = (Arc::clone(engine), code.namespace.to_string());
        self.config.home.spawn(async move { engine.hold_interpreter(&domain).await });
    }

    fn submit(self: &Arc<Self>, code: &Arc<Code>, work: Work) -> Result<(), Work> {
        let now = std::time::Instant::now();
        let actions = self.state().submit(code, Waiting { work }, now)?;
        self.perform(actions);
        Ok(())
    }

    /// Does what was decided, outside of the lock.
    fn perform(self: &Arc<Self>, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Begin { key, id, instance, call } => {
                    if !call.cold {
                        self.metrics.hits.inc();
                    }
                    if let Err(call) = instance.begin(call) {
                        // It died a moment ago, or takes no more; the call goes to the next one.
                        instance.retire();
                        let actions = self.state().came_back(&key, id, call);
                        self.perform(actions);
                    }
                }
                Action::Hand { parked, taker } => {
                    if !parked.is_cold {
                        self.metrics.hits.inc();
                    }
                    if let Err(Ok(taken)) = taker.give.send(Ok(Taken::new(*parked))) {
                        taken.done(State::Clean);
                    }
                }
                Action::Start { key, code, asked } => {
                    if asked {
                        self.metrics.misses.inc();
                    } else {
                        self.metrics.refills.inc();
                    }
                    let home = if asked { Handle::try_current().ok() } else { None };
                    let home = home.unwrap_or_else(|| self.config.home.clone());
                    self.tasks.spawn_on(start::start(Arc::clone(self), key, code, asked), &home);
                }
                Action::Fail { waiting, error } => waiting.fail(error),
                Action::Destroy(leaving) => {
                    self.metrics.evictions.inc();
                    self.tasks.spawn_on(leaving.destroyed(tokio::time::Instant::now()), &self.config.home);
                }
                Action::Watch => self.waits.notify_one(),
            }
        }
    }

    /// Takes in what was made, or that nothing was.
    fn started(self: &Arc<Self>, key: &Key, asked: bool, made: Result<state::Made, StartError>) {
        let actions = self.state().started(key, asked, made, std::time::Instant::now());
        self.perform(actions);
    }

    /// A call has ended in an instance, which may take another.
    fn finished(self: &Arc<Self>, key: &Key, id: u64) {
        let actions = self.state().finished(key, id, std::time::Instant::now());
        self.perform(actions);
    }

    /// An instance has ended.
    fn gone(self: &Arc<Self>, key: &Key, id: u64) {
        let actions = self.state().gone(key, id);
        self.perform(actions);
    }

    /// A call has left an instance, which takes no more.
    fn retire(self: &Arc<Self>, key: &Key, id: u64) {
        let actions = self.state().retire(key, id);
        self.perform(actions);
    }
}
