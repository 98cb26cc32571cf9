//! The workers, what each of them has, and which of them gets a call. Pure: instants are given, and connections are values.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use faena_db_client::KnownNodes;
use faena_domain::{
    CallNum, EngineKind, Epoch, FunctionId, Labels, Namespace, NodeName, NodeState, Owner, Slots, slots,
};
use faena_protocol::db::{SlotsView, SparePlaces};
use faena_protocol::node::{CallOf, EngineInfo, NodeInfo, PoolView};
use faena_protocol::records::{BuildJob, BuildRef, CallJob, NodeRecord};

use crate::ledger::{Ledger, slots_view};

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
}

/// Every worker by its name, and what is known of nodes.
#[derive(Debug)]
pub(crate) struct Fleet<P> {
    workers: BTreeMap<String, Worker<P>>,
    terms: HashMap<NodeName, NodeTerms>,
}

impl<P> Default for Fleet<P> {
    fn default() -> Self {
        Self { workers: BTreeMap::new(), terms: HashMap::new() }
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

    fn offers(&self, engine: EngineKind) -> bool {
        self.info.engines.iter().any(|info| info.engine == engine)
    }

    fn begin(&mut self, claim: Claim, of: CallOf) {
        self.ledger.begin(&of);
        if let Some(before) = self.calls.insert(claim, of) {
            self.ledger.end(&before);
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

impl<P: Clone + PartialEq> Fleet<P> {
    fn by_peer(&mut self, peer: &P) -> Option<&mut Worker<P>> {
        self.workers.values_mut().find(|worker| worker.peer.as_ref() == Ok(peer))
    }

    fn run_of(&mut self, owner: &Owner) -> Option<&mut Worker<P>> {
        self.workers.get_mut(&owner.worker).filter(|worker| worker.info.owner == *owner)
    }

    /// Takes a worker in with what it has; returns the earlier run that it shows to be dead.
    pub(crate) fn joined(
        &mut self,
        peer: P,
        info: NodeInfo,
        calls: Vec<(Claim, CallOf)>,
        builds: Vec<BuildRef>,
    ) -> Option<Owner> {
        // What was sent and lay in a connection that was lost never came: its lease, or its age, ends it.
        let mut worker = Worker {
            peer: Ok(peer),
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
        calls.into_iter().for_each(|(claim, of)| worker.begin(claim, of));
        builds.into_iter().for_each(|build| worker.begin_build(build));
        let owner = worker.info.owner.clone();
        let old = self.workers.insert(owner.worker.clone(), worker);
        old.map(|old| old.info.owner).filter(|old| *old != owner)
    }

    /// A connection is gone; its worker may come back.
    pub(crate) fn lost(&mut self, peer: &P, now: Instant) {
        if let Some(worker) = self.by_peer(peer) {
            worker.peer = Err(now);
        }
    }

    /// Forgets the workers that have been away for too long.
    pub(crate) fn forget_away(&mut self, most: Duration, now: Instant) -> Vec<Owner> {
        let is_gone =
            |worker: &Worker<P>| worker.peer.as_ref().is_err_and(|since| now.saturating_duration_since(*since) > most);
        let gone = self.workers.extract_if(.., |_, worker| is_gone(worker));
        gone.map(|(_, worker)| worker.info.owner).collect()
    }

    /// The connection of a run of a worker, while it has one.
    pub(crate) fn peer(&mut self, owner: &Owner) -> Option<P> {
        self.run_of(owner)?.peer.clone().ok()
    }

    /// Every connection there is.
    pub(crate) fn peers(&self) -> Vec<P> {
        self.workers.values().filter_map(|worker| worker.peer.clone().ok()).collect()
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
    pub(crate) fn call_ended(&mut self, peer: &P, claim: Claim) -> Option<CallOf> {
        let worker = self.by_peer(peer)?;
        let of = worker.calls.remove(&claim)?;
        worker.ledger.end(&of);
        Some(of)
    }

    /// A build has ended on a worker; false where the worker did not have it.
    pub(crate) fn build_ended(&mut self, peer: &P, build: &BuildRef) -> bool {
        let Some(worker) = self.by_peer(peer) else { return false };
        let function = worker.builds.remove(build);
        function.iter().for_each(|function| worker.build_slots.give_back(function));
        function.is_some()
    }

    /// Whether any worker that takes work has this engine.
    pub(crate) fn offers(&self, engine: EngineKind) -> bool {
        self.workers.values().any(|worker| worker.takes_work() && worker.offers(engine))
    }

    /// Gives a call to a worker: to one where it joins an instance that works, else to the one with the most free slots.
    pub(crate) fn assign(
        &mut self,
        engine: EngineKind,
        claim: Claim,
        of: &CallOf,
        others_wait: bool,
    ) -> Option<(P, Owner)> {
        let able = |worker: &&mut Worker<P>| {
            worker.takes_work()
                && worker.offers(engine)
                && !worker.claim.is_some_and(|claim| claim.is_for_calls)
                && worker.ledger.may_begin(of, others_wait)
        };
        let order = |worker: &&mut Worker<P>| (worker.ledger.joins(of), worker.ledger.slots().free());
        let worker = self.workers.values_mut().filter(able).max_by_key(order)?;
        worker.begin(claim, of.clone());
        Some((worker.peer.clone().ok()?, worker.info.owner.clone()))
    }

    /// What each worker can take; it is kept for the claim until [`Fleet::claimed`]. The reserve of a worker whose slots one
    /// function holds is looked at now and then, since it costs a claim that finds nothing as a rule.
    pub(crate) fn capacities(&mut self, reserve: bool) -> Vec<Capacity> {
        let mut capacities = Vec::new();
        for worker in self.workers.values_mut().filter(|worker| worker.takes_work()) {
            if let Some(claim) = &mut worker.claim {
                claim.outdated = Some(reserve || claim.outdated == Some(true));
                continue;
            }
            let view = worker.ledger.view();
            let calls = (has_room(worker.ledger.slots(), reserve) || !view.1.is_empty()).then_some(view);
            let builds = has_room(&worker.build_slots, reserve).then(|| slots_view(&worker.build_slots));
            if calls.is_none() && builds.is_none() {
                continue;
            }
            worker.claim = Some(UnderWay { is_for_calls: calls.is_some(), outdated: None });
            let engines = worker.info.engines.iter().map(|info| info.engine).collect();
            capacities.push(Capacity { owner: worker.info.owner.clone(), engines, calls, builds });
        }
        capacities
    }

    /// Whether db may have got work for a worker since the claim under way looked; true where it may be for the reserve.
    pub(crate) fn outdated(&mut self, owner: &Owner) -> Option<bool> {
        self.run_of(owner).and_then(|worker| worker.claim).and_then(|claim| claim.outdated)
    }

    /// What a namespace has of all workers' slots, for its weight.
    pub(crate) fn load(&self, namespace: &Namespace, weight: u32) -> u64 {
        let held = self.workers.values().map(|worker| worker.ledger.slots().held_by_namespace(namespace)).sum();
        slots::load(held, weight)
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

    /// Takes over what db has claimed for a worker; none where that has gone meanwhile.
    pub(crate) fn claimed(&mut self, owner: &Owner, calls: &[CallJob], builds: &[BuildJob]) -> Option<P> {
        let worker = self.run_of(owner)?;
        worker.claim = None;
        let peer = worker.peer.clone().ok().filter(|_| worker.takes_work())?;
        calls.iter().for_each(|job| worker.begin((job.num, job.epoch), CallOf::of(&job.code)));
        builds.iter().for_each(|job| worker.begin_build(job.reference()));
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

#[cfg(test)]
mod tests {
    use faena_domain::{FunctionName, Version};
    use proptest::prelude::*;

    use super::*;

    fn node(worker: &str, slots: u32) -> NodeInfo {
        let engine = EngineInfo {
            engine: EngineKind::Sandbox,
            version: String::new(),
            missing_layers: Vec::new(),
            egress: faena_protocol::node::EgressWay::Proxy,
        };
        let owner = Owner { worker: worker.to_owned(), incarnation: "1".to_owned() };
        NodeInfo {
            owner,
            engines: vec![engine],
            slots,
            build_slots: 2,
            memory_bytes: 0,
            version: String::new(),
            direct: Vec::new(),
        }
    }

    fn terms() -> NodeTerms {
        NodeTerms { incarnation: "1".to_owned(), ..NodeTerms::default() }
    }

    fn fleet(workers: &[(&'static str, u32)]) -> Fleet<&'static str> {
        let mut fleet = Fleet::default();
        let terms = |(name, _): &(&str, u32)| (name.parse().expect("a name"), terms());
        fleet.administer(workers.iter().map(terms).collect());
        for (name, slots) in workers {
            assert_eq!(fleet.joined(*name, node(name, *slots), Vec::new(), Vec::new()), None);
        }
        fleet
    }

    fn of(function: &str, parallel: u32) -> CallOf {
        let function: FunctionName = function.parse().expect("a name");
        CallOf { namespace: Namespace::default(), function, version: Version(1), parallel, weight: 1 }
    }

    fn claim(num: i64) -> Claim {
        (CallNum(num), Epoch(1))
    }

    fn assign(fleet: &mut Fleet<&'static str>, num: i64, of: &CallOf, others_wait: bool) -> Option<&'static str> {
        fleet.assign(EngineKind::Sandbox, claim(num), of, others_wait).map(|(peer, _)| peer)
    }

    #[test]
    fn a_call_joins_an_instance_that_works_or_goes_where_most_is_free() {
        let (mut fleet, server, plain) = (fleet(&[("a", 2), ("b", 4)]), of("server", 2), of("plain", 1));
        assert_eq!(assign(&mut fleet, 1, &server, false), Some("b"));
        assert_eq!(assign(&mut fleet, 2, &plain, false), Some("b"));
        assert_eq!(assign(&mut fleet, 3, &plain, false), Some("b"));
        assert_eq!(assign(&mut fleet, 4, &server, false), Some("b"), "it has an instance there");
        assert_eq!(assign(&mut fleet, 5, &server, false), Some("a"));
    }

    #[test]
    fn the_reserve_of_a_worker_is_for_another_function() {
        let (mut fleet, long, short) = (fleet(&[("a", 2)]), of("long", 1), of("short", 1));
        assert_eq!(assign(&mut fleet, 1, &long, false), Some("a"));
        assert_eq!(assign(&mut fleet, 2, &long, true), None, "all but one, while others wait");
        assert_eq!(assign(&mut fleet, 2, &long, false), Some("a"));
        assert!(fleet.capacities(false).iter().all(|capacity| capacity.calls.is_none()));
        let capacities = fleet.claimed(&node("a", 2).owner, &[], &[]).map(|_| fleet.capacities(true));
        assert!(capacities.expect("a worker")[0].calls.is_some(), "db may have a call of another function");
        fleet.claimed(&node("a", 2).owner, &[], &[]);
        assert_eq!(assign(&mut fleet, 3, &short, false), Some("a"));
        assert_eq!(assign(&mut fleet, 4, &short, false), None);
        fleet.call_ended(&"a", claim(3));
        assert_eq!(assign(&mut fleet, 4, &short, false), Some("a"));
    }

    #[test]
    fn free_slots_belong_to_the_claim_under_way() {
        let (mut fleet, plain) = (fleet(&[("a", 2)]), of("plain", 1));
        assert_eq!(fleet.capacities(false).len(), 1);
        assert_eq!((assign(&mut fleet, 1, &plain, false), fleet.capacities(false).len()), (None, 0));
        assert_eq!(fleet.claimed(&node("a", 2).owner, &[], &[]), Some("a"));
        assert_eq!(assign(&mut fleet, 1, &plain, false), Some("a"));
    }

    #[test]
    fn a_claim_for_builds_leaves_the_slots_to_calls() {
        let (mut fleet, plain) = (fleet(&[("a", 1)]), of("plain", 1));
        assert_eq!(assign(&mut fleet, 1, &plain, false), Some("a"));
        assert!(fleet.capacities(false)[0].calls.is_none(), "builds alone");
        fleet.call_ended(&"a", claim(1));
        assert_eq!(assign(&mut fleet, 2, &plain, false), Some("a"));
        let owner = node("a", 1).owner;
        assert!(
            fleet.outdated(&owner).is_none()
                && fleet.capacities(true).is_empty()
                && fleet.outdated(&owner) == Some(true)
        );
        assert!(
            fleet.capacities(false).is_empty() && fleet.outdated(&owner) == Some(true),
            "the reserve is not forgotten"
        );
        fleet.claimed(&owner, &[], &[]);
        assert!(fleet.outdated(&owner).is_none() && fleet.has_left_reserve(&"a", &of("other", 1)));
    }

    #[test]
    fn who_is_away_or_drains_gets_nothing() {
        let (mut fleet, plain, now) = (fleet(&[("a", 2), ("b", 2)]), of("plain", 1), Instant::now());
        fleet.draining(&"a");
        fleet.lost(&"b", now);
        assert_eq!(assign(&mut fleet, 1, &plain, false), None);
        assert!(fleet.capacities(true).is_empty() && !fleet.offers(EngineKind::Sandbox));
        let long = Duration::from_secs(30);
        assert!(fleet.forget_away(long, now + long).is_empty());
        assert_eq!(fleet.forget_away(long, now + 2 * long), [node("b", 2).owner]);
        assert_eq!(fleet.statuses().len(), 1);
    }

    #[test]
    fn a_node_takes_work_only_while_its_administrator_lets_it() {
        let (mut fleet, plain) = (fleet(&[("a", 2)]), of("plain", 1));
        let administer = |fleet: &mut Fleet<&'static str>, terms: Option<NodeTerms>| {
            let terms = terms.map(|terms| ("a".parse().expect("a name"), terms));
            (fleet.administer(terms.into_iter().collect()), fleet.statuses()[0].state)
        };
        let cordoned = NodeTerms { is_cordoned: true, ..terms() };
        assert_eq!(administer(&mut fleet, Some(cordoned)), (vec![], NodeState::Cordoned));
        assert_eq!(assign(&mut fleet, 1, &plain, false), None);
        assert_eq!(administer(&mut fleet, None).1, NodeState::Cordoned, "nobody knows the node");
        let draining = NodeTerms { is_draining: true, ..terms() };
        assert_eq!(administer(&mut fleet, Some(draining.clone())), (vec!["a"], NodeState::Draining));
        assert_eq!(administer(&mut fleet, Some(draining)).0, [""; 0], "it is told once");
        assert_eq!(administer(&mut fleet, Some(terms())), (vec![], NodeState::Ready));
        assert_eq!(assign(&mut fleet, 1, &plain, false), Some("a"));
    }

    #[test]
    fn a_worker_that_comes_back_has_what_it_says() {
        let (mut fleet, plain) = (fleet(&[("a", 2)]), of("plain", 1));
        (1..=2).for_each(|num| assert!(assign(&mut fleet, num, &plain, false).is_some()));
        let held = vec![(claim(1), plain.clone())];
        assert_eq!(fleet.joined("a2", node("a", 2), held, Vec::new()), None);
        assert_eq!(assign(&mut fleet, 3, &plain, false), Some("a2"));
        let mut next = node("a", 2);
        next.owner.incarnation = "2".to_owned();
        assert_eq!(fleet.joined("a3", next, Vec::new(), Vec::new()), Some(node("a", 2).owner));
        assert_eq!((fleet.owner(&"a2"), fleet.peer(&node("a", 2).owner)), (None, None));
        assert_eq!(fleet.statuses()[0].state, NodeState::Cordoned, "db has not told of this run");
    }

    proptest! {
        /// Against a model that knows only which call is where: no worker has more than its slots and one, a call is at one
        /// worker, and whatever has ended is free again.
        #[test]
        fn calls_are_counted_where_they_are(steps in prop::collection::vec((0..6_u8, 0..4_usize, any::<bool>()), 0..200)) {
            let mut fleet = fleet(&[("a", 2), ("b", 3)]);
            let works = [of("w", 1), of("x", 1), of("y", 4), of("z", 1)];
            let (mut next, mut at): (i64, Vec<(i64, &'static str, usize)>) = (0, Vec::new());
            for (step, index, others_wait) in steps {
                if step < 4 {
                    next += 1;
                    if let Some(peer) = assign(&mut fleet, next, &works[index], others_wait) {
                        at.push((next, peer, index));
                    }
                } else if !at.is_empty() {
                    let (num, peer, _) = at.swap_remove(index % at.len());
                    fleet.call_ended(&peer, claim(num));
                }
                for (name, slots) in [("a", 2), ("b", 3)] {
                    let worker = &fleet.workers[name];
                    let count = |work| at.iter().filter(|(_, peer, index)| *peer == name && *index == work).count();
                    let filled = (0..4).map(|work| count(work).div_ceil(works[work].parallel as usize)).sum::<usize>();
                    prop_assert_eq!(worker.ledger.slots().busy() as usize, filled);
                    prop_assert!(filled <= slots + 1);
                }
            }
            at.iter().for_each(|(num, peer, _)| drop(fleet.call_ended(peer, claim(*num))));
            prop_assert!(fleet.workers.values().all(|worker| worker.ledger.slots().busy() == 0 && worker.calls.is_empty()));
        }
    }
}
