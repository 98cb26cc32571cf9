//! The workers, what each of them has, and which of them gets a call. Pure: instants are given, and connections are values.

mod placement;
#[cfg(test)]
mod tests;
mod warm;

use std::cmp::Ordering;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_db_client::KnownNodes;
use faena_domain::{
    CallNum, EngineKind, Epoch, FunctionId, Labels, Namespace, NodeName, NodeSelector, NodeState, Owner, Slots, slots,
};
use faena_protocol::db::{SlotsView, SparePlaces};
use faena_protocol::node::{CallOf, EngineInfo, LogOf, NodeInfo, PoolView, Question};
use faena_protocol::records::{BuildJob, BuildRef, CallJob, NodeRecord};

use crate::ledger::{Ledger, slots_view};
pub(crate) use placement::Assigned;
use warm::{Step, Warm};

/// Claims in db that are under way at once, of one kind of node. Each finds what waits; with a thousand workers it is not asked for
/// a thousand at once.
const CLAIMS: usize = 8;

/// A call and its claim.
pub(crate) type Claim = (CallNum, Epoch);

/// One worker, whose connection is a `P`.
#[derive(Debug)]
struct Worker<P> {
    info: NodeInfo,
    /// The connection, or since when there is none.
    peer: Result<P, Instant>,
    calls: HashMap<Claim, CallOf>,
    ledger: Ledger,
    builds: HashMap<BuildRef, FunctionId>,
    build_slots: Slots,
    /// A claim is under way.
    claim: Option<UnderWay>,
    /// It has said that it stops.
    is_leaving: bool,
    /// What an administrator says of its node; none before db has told.
    terms: Option<NodeTerms>,
    pool: PoolView,
}

/// What an administrator says of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeTerms {
    /// The run of its worker that db knows.
    incarnation: String,
    /// Its labels.
    pub(crate) labels: Labels,
    /// It takes no new work.
    pub(crate) is_cordoned: bool,
    /// It finishes what it has, and stops.
    pub(crate) is_draining: bool,
}

impl NodeTerms {
    /// What is said of the node of a worker; none where db has not told of this run of it: what is known then may be about the
    /// one before, which was to drain.
    pub(crate) fn of(known: &KnownNodes, owner: &Owner) -> Option<Self> {
        known.get(&owner.worker.parse().ok()?).map(Self::from).filter(|terms| terms.incarnation == owner.incarnation)
    }

    /// Whether the node takes new work.
    pub(crate) fn takes_work(&self) -> bool {
        !self.is_cordoned && !self.is_draining
    }
}

impl From<&NodeRecord> for NodeTerms {
    fn from(node: &NodeRecord) -> Self {
        Self {
            incarnation: node.incarnation.clone(),
            labels: node.labels.clone(),
            is_cordoned: node.is_cordoned,
            is_draining: node.is_draining,
        }
    }
}

/// A claim that db has not answered.
#[derive(Clone, Copy, Debug, Default)]
struct UnderWay {
    /// It is for calls: the slots that are free belong to it.
    is_for_calls: bool,
    /// Db may have got work since it looked; with true also for the reserve.
    outdated: Option<bool>,
}

/// A worker as it stands.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    /// What it said of itself.
    pub info: NodeInfo,
    /// READY, CORDONED or DRAINING; LOST where it is not connected.
    pub state: NodeState,
    /// Calls that it has by way of the scheduler.
    pub calls: usize,
    /// Builds that it has.
    pub builds: usize,
    /// What its pool holds.
    pub pool: PoolView,
}

/// What a worker can take from db.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) owner: Owner,
    pub(crate) engines: Vec<EngineKind>,
    /// Its slots and the free places in instances that work; none where it has neither.
    pub(crate) calls: Option<(SlotsView, Vec<SparePlaces>)>,
    /// Its slots for builds; none where it has none.
    pub(crate) builds: Option<SlotsView>,
    /// The most calls that it is to take now.
    pub(crate) limit: u32,
}

/// Every worker by its name, and what is known of nodes.
#[derive(Debug)]
pub(crate) struct Fleet<P> {
    workers: BTreeMap<Arc<str>, Worker<P>>,
    /// Which worker a connection is of.
    peers: HashMap<P, Arc<str>>,
    /// The keys of `workers`, to draw from.
    names: Vec<Arc<str>>,
    terms: HashMap<NodeName, NodeTerms>,
    warm: Warm,
    /// Slots of all workers that each namespace holds.
    held: HashMap<Namespace, u32>,
    random: fastrand::Rng,
    /// The worker that the last claims ended with: the next ones begin behind it.
    last_claimed: Option<Arc<str>>,
    /// Instances that wait for calls which db has got, by worker: those workers are asked for them before the others.
    near: HashMap<Arc<str>, u32>,
    /// Workers were left out of claims, because others were nearer.
    has_left_out: bool,
}

impl<P> Default for Fleet<P> {
    fn default() -> Self {
        Self {
            workers: BTreeMap::new(),
            peers: HashMap::new(),
            names: Vec::new(),
            terms: HashMap::new(),
            warm: Warm::default(),
            held: HashMap::new(),
            random: fastrand::Rng::with_seed(1),
            last_claimed: None,
            near: HashMap::new(),
            has_left_out: false,
        }
    }
}

impl<P> Worker<P> {
    fn takes_work(&self) -> bool {
        self.state() == NodeState::Ready
    }

    fn state(&self) -> NodeState {
        match (&self.peer, &self.terms) {
            (Err(_), _) => NodeState::Lost,
            (Ok(_), _) if self.is_leaving => NodeState::Draining,
            (Ok(_), Some(terms)) if terms.is_draining => NodeState::Draining,
            (Ok(_), Some(terms)) if !terms.is_cordoned => NodeState::Ready,
            // What db has not told of yet may be cordoned.
            (Ok(_), _) => NodeState::Cordoned,
        }
    }

    fn offers(&self, engine: EngineKind, nodes: &[NodeSelector]) -> bool {
        let labels = self.terms.as_ref().map(|terms| &terms.labels);
        labels.is_some_and(|labels| nodes.iter().all(|selector| selector.permits(labels)))
            && self.info.engines.iter().any(|info| info.engine == engine)
    }

    fn engines(&self) -> Vec<EngineKind> {
        self.info.engines.iter().map(|info| info.engine).collect()
    }

    /// What it can take from db, which is kept for a claim until that is answered; none where it has no room.
    fn begin_claim(&mut self, reserve: bool, limit: u32) -> Option<Capacity> {
        let view = self.ledger.view();
        let calls = (has_room(self.ledger.slots(), reserve) || !view.1.is_empty()).then_some(view);
        let builds = has_room(&self.build_slots, reserve).then(|| slots_view(&self.build_slots));
        if calls.is_none() && builds.is_none() {
            return None;
        }
        self.claim = Some(UnderWay { is_for_calls: calls.is_some(), outdated: None });
        Some(Capacity { owner: self.info.owner.clone(), engines: self.engines(), calls, builds, limit })
    }

    fn begin(&mut self, claim: Claim, of: CallOf) {
        // A call that is reported twice is counted once.
        if let Entry::Vacant(call) = self.calls.entry(claim) {
            self.ledger.begin(&of);
            call.insert(of);
        }
    }

    fn begin_build(&mut self, build: BuildRef) {
        let function = build.function_id();
        if self.builds.insert(build, function.clone()).is_none() {
            self.build_slots.take(&function);
        }
    }
}

fn terms_of(all: &HashMap<NodeName, NodeTerms>, owner: &Owner) -> Option<NodeTerms> {
    all.get(&owner.worker.parse().ok()?).filter(|terms| terms.incarnation == owner.incarnation).cloned()
}

/// Whether slots have room: a free one, or the reserve, where that is looked at.
fn has_room(slots: &Slots, reserve: bool) -> bool {
    slots.free() > 0 || (reserve && slots.has_reserve())
}

impl<P: Clone + Eq + Hash> Fleet<P> {
    fn by_peer(&mut self, peer: &P) -> Option<&mut Worker<P>> {
        self.workers.get_mut(self.peers.get(peer)?)
    }

    fn run_of(&mut self, owner: &Owner) -> Option<&mut Worker<P>> {
        self.workers.get_mut(owner.worker.as_str()).filter(|worker| worker.info.owner == *owner)
    }

    /// Counts what a change of a worker's slots changes for a namespace.
    fn with_slots<T>(
        &mut self,
        name: &Arc<str>,
        namespace: &Namespace,
        change: impl FnOnce(&mut Worker<P>) -> T,
    ) -> Option<T> {
        let worker = self.workers.get_mut(name)?;
        let before = worker.ledger.slots().held_by_namespace(namespace);
        let changed = change(worker);
        let after = worker.ledger.slots().held_by_namespace(namespace);
        if before != after {
            let held = self.held.entry(namespace.clone()).or_default();
            *held = (*held + after).saturating_sub(before);
            if *held == 0 {
                self.held.remove(namespace);
            }
        }
        Some(changed)
    }

    /// A call begins or ends on a worker, which `change` counts.
    fn step(&mut self, name: &Arc<str>, of: &CallOf, now: Instant, change: impl FnOnce(&mut Worker<P>)) {
        let function = of.function_id();
        let step = self.with_slots(name, &of.namespace, |worker| {
            let before = worker.ledger.slots().held_by(&function);
            change(worker);
            match worker.ledger.slots().held_by(&function).cmp(&before) {
                Ordering::Greater => Step::Works,
                Ordering::Less => Step::Waits,
                Ordering::Equal => Step::Same,
            }
        });
        if let Some(step) = step {
            self.warm.ran((&function, of.version), name, step, now);
        }
    }

    fn begin(&mut self, name: &Arc<str>, claim: Claim, of: &CallOf, now: Instant) {
        self.step(name, of, now, |worker| worker.begin(claim, of.clone()));
    }

    /// Takes a worker out, with what it held.
    fn remove(&mut self, name: &str) -> Option<Worker<P>> {
        let worker = self.workers.remove(name)?;
        self.peers.retain(|_, of| **of != *name);
        self.names.retain(|other| **other != *name);
        let namespaces: std::collections::BTreeSet<Namespace> =
            worker.ledger.slots().held().map(|(function, _)| function.namespace.clone()).collect();
        for namespace in namespaces {
            let held = worker.ledger.slots().held_by_namespace(&namespace);
            if let Some(all) = self.held.get_mut(&namespace) {
                *all = all.saturating_sub(held);
            }
        }
        self.held.retain(|_, held| *held > 0);
        Some(worker)
    }

    /// Takes a worker in with what it has; returns the earlier run that it shows to be dead.
    pub(crate) fn joined(
        &mut self,
        peer: P,
        info: NodeInfo,
        calls: Vec<(Claim, CallOf)>,
        builds: Vec<BuildRef>,
    ) -> Option<Owner> {
        // Messages that were in a lost connection did not arrive. Their calls end by their lease or their age.
        let (owner, name): (Owner, Arc<str>) = (info.owner.clone(), info.owner.worker.as_str().into());
        let old = self.remove(&name);
        let worker = Worker {
            peer: Ok(peer.clone()),
            calls: HashMap::new(),
            ledger: Ledger::new(info.slots),
            builds: HashMap::new(),
            build_slots: Slots::new(info.build_slots),
            claim: None,
            is_leaving: false,
            terms: terms_of(&self.terms, &info.owner),
            info,
            pool: PoolView::default(),
        };
        self.workers.insert(Arc::clone(&name), worker);
        self.peers.insert(peer, Arc::clone(&name));
        self.names.push(Arc::clone(&name));
        for (claim, of) in calls {
            self.with_slots(&name, &of.namespace.clone(), |worker| worker.begin(claim, of));
        }
        if let Some(worker) = self.workers.get_mut(&name) {
            builds.into_iter().for_each(|build| worker.begin_build(build));
        }
        old.map(|old| old.info.owner).filter(|old| *old != owner)
    }

    /// A connection is gone; its worker may come back.
    pub(crate) fn lost(&mut self, peer: &P, now: Instant) {
        if let Some(worker) = self.by_peer(peer) {
            worker.peer = Err(now);
        }
        self.peers.remove(peer);
    }

    /// Forgets the workers that have been away for too long.
    pub(crate) fn forget_away(&mut self, most: Duration, now: Instant) -> Vec<Owner> {
        let is_gone =
            |worker: &Worker<P>| worker.peer.as_ref().is_err_and(|since| now.saturating_duration_since(*since) > most);
        let gone: Vec<Arc<str>> =
            self.workers.iter().filter(|(_, worker)| is_gone(worker)).map(|(name, _)| Arc::clone(name)).collect();
        gone.iter().filter_map(|name| self.remove(name)).map(|worker| worker.info.owner).collect()
    }

    /// The connection of a run of a worker, while it has one.
    pub(crate) fn peer(&mut self, owner: &Owner) -> Option<P> {
        self.run_of(owner)?.peer.clone().ok()
    }

    /// Every connection there is.
    pub(crate) fn peers(&self) -> Vec<P> {
        self.workers.values().filter_map(|worker| worker.peer.clone().ok()).collect()
    }

    /// Who can answer a question: about something that runs, the worker that has it, where that is known; else everybody. A
    /// worker is not asked, and so not believed, about what another one runs.
    pub(crate) fn who_knows(&self, question: &Question) -> Vec<P> {
        let has = |worker: &Worker<P>| match question {
            Question::Log(LogOf::Call(num)) => worker.calls.keys().any(|(held, _)| held == num),
            Question::Log(LogOf::Build(build)) => worker.builds.contains_key(build),
            Question::Image(..) => false,
        };
        let holder = self.workers.values().find(|worker| has(worker));
        holder.map_or_else(|| self.peers(), |worker| worker.peer.iter().cloned().collect())
    }

    /// Whose connection it is.
    pub(crate) fn owner(&mut self, peer: &P) -> Option<Owner> {
        self.by_peer(peer).map(|worker| worker.info.owner.clone())
    }

    /// A worker makes instances with these from now on.
    pub(crate) fn engines(&mut self, peer: &P, engines: Vec<EngineInfo>) {
        if let Some(worker) = self.by_peer(peer) {
            worker.info.engines = engines;
        }
    }

    /// What a worker's pool holds from now on.
    pub(crate) fn pool(&mut self, peer: &P, pool: PoolView) {
        if let Some(worker) = self.by_peer(peer) {
            worker.pool = pool;
        }
    }

    /// What an administrator says of all nodes. Returns the connections of workers that are to drain from now on.
    pub(crate) fn administer(&mut self, terms: HashMap<NodeName, NodeTerms>) -> Vec<P> {
        self.terms = terms;
        let mut drained = Vec::new();
        for worker in self.workers.values_mut() {
            let drains = |terms: &Option<NodeTerms>| terms.as_ref().is_some_and(|terms| terms.is_draining);
            let drained_before = drains(&worker.terms);
            worker.terms = terms_of(&self.terms, &worker.info.owner);
            if drains(&worker.terms) && !drained_before {
                drained.extend(worker.peer.clone().ok());
            }
        }
        drained
    }

    /// Whether db has told of the node of a worker, and that it is to drain.
    pub(crate) fn is_to_drain(&self, worker: &str) -> Option<bool> {
        self.workers.get(worker)?.terms.as_ref().map(|terms| terms.is_draining)
    }

    /// A worker takes no more work.
    pub(crate) fn draining(&mut self, peer: &P) {
        if let Some(worker) = self.by_peer(peer) {
            worker.is_leaving = true;
        }
    }

    /// A call has ended on a worker; returns what it ran, where that was known.
    pub(crate) fn call_ended(&mut self, peer: &P, claim: Claim, now: Instant) -> Option<CallOf> {
        let name = Arc::clone(self.peers.get(peer)?);
        let of = self.workers.get_mut(&name)?.calls.remove(&claim)?;
        self.step(&name, &of, now, |worker| worker.ledger.end(&of));
        Some(of)
    }

    /// A build has ended on a worker; false where the worker did not have it.
    pub(crate) fn build_ended(&mut self, peer: &P, build: &BuildRef) -> bool {
        let Some(worker) = self.by_peer(peer) else { return false };
        let function = worker.builds.remove(build);
        function.iter().for_each(|function| worker.build_slots.give_back(function));
        function.is_some()
    }

    /// Whether any worker that takes work has this engine, on a node that these selectors permit.
    pub(crate) fn offers(&self, engine: EngineKind, nodes: &[NodeSelector]) -> bool {
        self.workers.values().any(|worker| worker.takes_work() && worker.offers(engine, nodes))
    }

    /// Db has got calls of these functions. Workers where instances of them wait are asked for work before the others, for no more
    /// than these instances can take.
    pub(crate) fn expect<'a>(&mut self, functions: impl IntoIterator<Item = &'a FunctionId>, now: Instant) {
        if self.workers.len() < 2 {
            return;
        }
        for function in functions {
            for (worker, idle) in self.warm.idle(function, now) {
                *self.near.entry(Arc::clone(worker)).or_default() += idle;
            }
        }
    }

    /// Whether workers were left out of claims since this was asked.
    pub(crate) fn has_left_out(&mut self) -> bool {
        std::mem::take(&mut self.has_left_out)
    }

    /// What workers can take; it is kept for the claim until [`Fleet::claimed`]. The reserve of a worker whose slots one
    /// function holds is looked at now and then, since it costs a claim that finds nothing as a rule. Of workers that are alike
    /// only some are asked for at a time, and the others next.
    pub(crate) fn capacities(&mut self, reserve: bool) -> Vec<Capacity> {
        let behind = self.last_claimed.clone();
        let (earlier, later): (Vec<_>, Vec<_>) =
            self.workers.iter_mut().partition(|(name, _)| behind.as_ref().is_some_and(|last| *name <= last));
        let mut under_way: HashMap<(Vec<EngineKind>, Labels), usize> = HashMap::new();
        let mut roomy: HashSet<(Vec<EngineKind>, Labels)> = HashSet::new();
        let (mut capacities, mut waiting) = (Vec::new(), Vec::new());
        for (name, worker) in later.into_iter().chain(earlier).filter(|(_, worker)| worker.takes_work()) {
            let engines = worker.engines();
            let labels = worker.terms.as_ref().map(|terms| terms.labels.clone()).unwrap_or_default();
            let has_room = worker.claim.is_some() || has_room(worker.ledger.slots(), reserve);
            if has_room && !worker.pool.disk_low {
                roomy.insert((engines.clone(), labels.clone()));
            }
            let alike = under_way.entry((engines.clone(), labels)).or_default();
            if let Some(claim) = &mut worker.claim {
                claim.outdated = Some(reserve || claim.outdated == Some(true));
                *alike += 1;
                continue;
            }
            waiting.push((name, worker, engines));
        }
        let near = std::mem::take(&mut self.near);
        let nearness =
            |name: &Arc<str>, worker: &Worker<P>| near.get(name).copied().filter(|_| worker.ledger.slots().free() > 0);
        let has_near = waiting.iter().any(|(name, worker, _)| nearness(name, worker).is_some());
        for (name, worker, engines) in waiting {
            let idle = nearness(name, worker);
            if has_near && idle.is_none() {
                self.has_left_out = true;
                continue;
            }
            let kind = (engines.clone(), worker.terms.as_ref().map(|terms| terms.labels.clone()).unwrap_or_default());
            // What it would need may not fit on its disk, and fits on another's.
            if worker.pool.disk_low && roomy.contains(&kind) {
                continue;
            }
            let alike = under_way.entry(kind).or_default();
            if *alike >= CLAIMS {
                continue;
            }
            if let Some(capacity) = worker.begin_claim(reserve, idle.unwrap_or(u32::MAX)) {
                *alike += 1;
                self.last_claimed = Some(Arc::clone(name));
                capacities.push(capacity);
            }
        }
        capacities
    }

    /// What one worker can take now. Its last claim was answered before db got more work, so its claim alone is repeated: if all
    /// workers were asked again, claims that overlap would repeat each other without end.
    pub(crate) fn capacity_of(&mut self, owner: &Owner, reserve: bool) -> Option<Capacity> {
        let worker = self.run_of(owner).filter(|worker| worker.takes_work() && worker.claim.is_none())?;
        // The next claims of all look at who else has room.
        if worker.pool.disk_low { None } else { worker.begin_claim(reserve, u32::MAX) }
    }

    /// Whether db may have got work for a worker since the claim under way looked; true where it may be for the reserve.
    pub(crate) fn outdated(&mut self, owner: &Owner) -> Option<bool> {
        self.run_of(owner).and_then(|worker| worker.claim).and_then(|claim| claim.outdated)
    }

    /// What a namespace has of all workers' slots, for its weight.
    pub(crate) fn load(&self, namespace: &Namespace, weight: u32) -> u64 {
        slots::load(self.held.get(namespace).copied().unwrap_or(0), weight)
    }

    /// Whether a function could take the reserve of any worker.
    pub(crate) fn has_reserve_for(&self, function: &FunctionId) -> bool {
        let has_one = |worker: &Worker<P>| {
            worker.ledger.slots().reserve_is_for(function) || worker.build_slots.reserve_is_for(function)
        };
        self.workers.values().any(|worker| worker.takes_work() && has_one(worker))
    }

    /// Whether a function whose call has ended was in the reserve of a worker: another one could take it now.
    pub(crate) fn has_left_reserve(&mut self, peer: &P, of: &CallOf) -> bool {
        let function = of.function_id();
        self.by_peer(peer).is_some_and(|worker| worker.ledger.slots().reserve_is_for(&function))
    }

    /// Takes over what db has claimed for a worker, and says why each call fits there; none where the worker has gone meanwhile.
    pub(crate) fn claimed(
        &mut self,
        owner: &Owner,
        calls: &mut [CallJob],
        builds: &[BuildJob],
        now: Instant,
    ) -> Option<P> {
        let worker = self.run_of(owner)?;
        worker.claim = None;
        let peer = worker.peer.clone().ok().filter(|_| worker.takes_work())?;
        builds.iter().for_each(|job| worker.begin_build(job.reference()));
        let name = Arc::clone(self.peers.get(&peer)?);
        for job in calls {
            let of = CallOf::of(&job.code);
            job.placement = Some(self.reason_for(&name, &of, now));
            self.begin(&name, (job.num, job.epoch), &of, now);
        }
        Some(peer)
    }

    /// All of them, sorted by name.
    pub(crate) fn statuses(&self) -> Vec<WorkerStatus> {
        let status = |worker: &Worker<P>| WorkerStatus {
            info: worker.info.clone(),
            state: worker.state(),
            calls: worker.calls.len(),
            builds: worker.builds.len(),
            pool: worker.pool,
        };
        self.workers.values().map(status).collect()
    }
}
