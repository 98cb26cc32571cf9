//! The workers, what each of them has, and which of them gets a call. Pure: instants are given, and connections are values.

mod claims;
mod placement;
#[cfg(test)]
mod tests;
mod warm;
mod worker;

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::{EngineKind, FunctionId, Namespace, NodeName, NodeSelector, NodeState, Owner, Slots, slots};
use faena_protocol::node::{CallOf, EngineInfo, LogOf, NodeInfo, PoolView, Question};
use faena_protocol::records::BuildRef;

use crate::ledger::Ledger;
pub(crate) use placement::Assigned;
use warm::{Step, Warm};
use worker::Worker;
pub(crate) use worker::{Capacity, Claim, NodeTerms};

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
    /// Workers that hold another number of slots than [`Fleet::changed_slots`] has told.
    changed: HashSet<Arc<str>>,
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
            changed: HashSet::new(),
        }
    }
}

fn terms_of(all: &HashMap<NodeName, NodeTerms>, owner: &Owner) -> Option<NodeTerms> {
    all.get(&owner.worker.parse().ok()?).filter(|terms| terms.incarnation == owner.incarnation).cloned()
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
            self.changed.insert(Arc::clone(name));
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
            others: 0,
        };
        self.changed.insert(Arc::clone(&name));
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

    /// Takes over what a worker's pool holds. Returns whether work would begin there at once that had to wait before.
    pub(crate) fn pool(&mut self, peer: &P, pool: PoolView) -> bool {
        let Some(worker) = self.by_peer(peer) else { return false };
        let was_roomy = worker.is_roomy();
        let working = u32::try_from(pool.working).unwrap_or(u32::MAX);
        worker.others = working.saturating_sub(worker.ledger.slots().busy());
        worker.pool = pool;
        worker.is_roomy() && !was_roomy
    }

    /// Workers that hold another number of slots by way of the scheduler than was told before, with that number.
    pub(crate) fn changed_slots(&mut self) -> Vec<(Arc<str>, u32)> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.filter_map(|name| self.workers.get(&name).map(|worker| (name, worker.ledger.slots().busy()))).collect()
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
