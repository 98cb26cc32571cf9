//! Who gets a call, and what is counted where.

use faena_domain::call::Placement;
use faena_domain::{CallNum, Epoch, FunctionName, Version};
use proptest::prelude::*;

use super::*;

impl Fleet<&'static str> {
    fn call_ended_now(&mut self, peer: &&'static str, claim: Claim) -> Option<CallOf> {
        self.call_ended(peer, claim, Instant::now())
    }
}

fn node(worker: &str, slots: u32) -> NodeInfo {
    let engine = EngineInfo {
        engine: EngineKind::Sandbox,
        version: String::new(),
        missing_layers: Vec::new(),
        egress: faena_protocol::node::EgressWay::Proxy,
        images: Vec::new(),
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
    let assigned = fleet.assign((EngineKind::Sandbox, &[]), claim(num), of, others_wait, Instant::now());
    assigned.map(|assigned| assigned.peer)
}

#[test]
fn a_call_joins_an_instance_that_works_or_goes_to_the_less_loaded() {
    let (mut fleet, server, plain) = (fleet(&[("a", 2), ("b", 4)]), of("server", 2), of("plain", 1));
    // Half of b is as free as half of a, and calls of one function go where it has run.
    let first = assign(&mut fleet, 1, &server, false).expect("a worker");
    assert_eq!(assign(&mut fleet, 2, &server, false), Some(first), "it has an instance there");
    let other = assign(&mut fleet, 3, &plain, false).expect("a worker");
    assert_ne!(other, first, "the less loaded of two");
    assert_eq!(assign(&mut fleet, 4, &plain, false), Some(other), "its code is there");
}

#[test]
fn the_reserve_of_a_worker_is_for_another_function() {
    let (mut fleet, long, short) = (fleet(&[("a", 2)]), of("long", 1), of("short", 1));
    assert_eq!(assign(&mut fleet, 1, &long, false), Some("a"));
    assert_eq!(assign(&mut fleet, 2, &long, true), None, "all but one, while others wait");
    assert_eq!(assign(&mut fleet, 2, &long, false), Some("a"));
    assert!(fleet.capacities(false).iter().all(|capacity| capacity.calls.is_none()));
    let capacities = fleet.claimed(&node("a", 2).owner, &mut [], &[], Instant::now()).map(|_| fleet.capacities(true));
    assert!(capacities.expect("a worker")[0].calls.is_some(), "db may have a call of another function");
    fleet.claimed(&node("a", 2).owner, &mut [], &[], Instant::now());
    assert_eq!(assign(&mut fleet, 3, &short, false), Some("a"));
    assert_eq!(assign(&mut fleet, 4, &short, false), None);
    fleet.call_ended_now(&"a", claim(3));
    assert_eq!(assign(&mut fleet, 4, &short, false), Some("a"));
}

#[test]
fn free_slots_belong_to_the_claim_under_way() {
    let (mut fleet, plain) = (fleet(&[("a", 2)]), of("plain", 1));
    assert_eq!(fleet.capacities(false).len(), 1);
    assert_eq!((assign(&mut fleet, 1, &plain, false), fleet.capacities(false).len()), (None, 0));
    assert_eq!(fleet.claimed(&node("a", 2).owner, &mut [], &[], Instant::now()), Some("a"));
    assert_eq!(assign(&mut fleet, 1, &plain, false), Some("a"));
}

#[test]
fn claims_that_overlap_are_repeated_once_and_not_for_ever() {
    let mut fleet = fleet(&[("a", 2), ("b", 2)]);
    let owners = [node("a", 2).owner, node("b", 2).owner];
    assert_eq!(fleet.capacities(false).len(), 2);
    // Db gets work while both claims are under way.
    assert!(fleet.capacities(false).is_empty());
    let answered = |fleet: &mut Fleet<&'static str>, owner: &Owner| {
        let outdated = fleet.outdated(owner);
        fleet.claimed(owner, &mut [], &[], Instant::now());
        outdated.and_then(|reserve| fleet.capacity_of(owner, reserve))
    };
    for owner in &owners {
        assert_eq!(answered(&mut fleet, owner).map(|capacity| capacity.owner), Some(owner.clone()));
    }
    for owner in &owners {
        assert_eq!(answered(&mut fleet, owner), None, "nothing has come since");
    }
}

#[test]
fn a_claim_for_builds_leaves_the_slots_to_calls() {
    let (mut fleet, plain) = (fleet(&[("a", 1)]), of("plain", 1));
    assert_eq!(assign(&mut fleet, 1, &plain, false), Some("a"));
    assert!(fleet.capacities(false)[0].calls.is_none(), "builds alone");
    fleet.call_ended_now(&"a", claim(1));
    assert_eq!(assign(&mut fleet, 2, &plain, false), Some("a"));
    let owner = node("a", 1).owner;
    assert!(
        fleet.outdated(&owner).is_none() && fleet.capacities(true).is_empty() && fleet.outdated(&owner) == Some(true)
    );
    assert!(fleet.capacities(false).is_empty() && fleet.outdated(&owner) == Some(true), "the reserve is not forgotten");
    fleet.claimed(&owner, &mut [], &[], Instant::now());
    assert!(fleet.outdated(&owner).is_none() && fleet.has_left_reserve(&"a", &of("other", 1)));
}

#[test]
fn workers_where_instances_wait_are_asked_for_queued_calls_first() {
    let (mut fleet, plain, now) = (fleet(&[("a", 4), ("b", 4)]), of("plain", 1), Instant::now());
    let owner = |worker: &str| node(worker, 4).owner;
    let asked = |fleet: &mut Fleet<&'static str>| -> Vec<(String, u32)> {
        let capacities = fleet.capacities(false);
        capacities.into_iter().map(|capacity| (capacity.owner.worker, capacity.limit)).collect()
    };
    let worker = assign(&mut fleet, 1, &plain, false).expect("a worker");
    fleet.call_ended_now(&worker, claim(1));
    fleet.expect([&plain.function_id(), &of("unknown", 1).function_id()], now);
    assert_eq!(asked(&mut fleet), [(worker.to_owned(), 1)]);
    assert!(fleet.has_left_out() && !fleet.has_left_out());
    // The other worker is asked next, also when the claim found nothing.
    fleet.claimed(&owner(worker), &mut [], &[], now);
    assert_eq!(asked(&mut fleet).len(), 2);
    for name in ["a", "b"] {
        fleet.claimed(&owner(name), &mut [], &[], now);
    }
    // One that is full has no place for what its instances could take.
    for num in 2..6 {
        assert_eq!(assign(&mut fleet, num, &plain, false), Some(worker));
    }
    fleet.expect([&plain.function_id()], now);
    assert_eq!(asked(&mut fleet).iter().map(|(_, limit)| *limit).collect::<Vec<_>>(), [u32::MAX; 2]);
}

#[test]
fn a_node_whose_disk_is_nearly_full_gets_what_no_other_can_take() {
    let (mut fleet, plain) = (fleet(&[("a", 4), ("b", 1)]), of("plain", 1));
    fleet.pool(&"a", PoolView { disk_low: true, ..PoolView::default() });
    let names = |fleet: &mut Fleet<&'static str>| -> Vec<String> {
        fleet.capacities(false).into_iter().map(|capacity| capacity.owner.worker).collect()
    };
    assert_eq!(names(&mut fleet), ["b"]);
    fleet.claimed(&node("b", 1).owner, &mut [], &[], Instant::now());
    assert_eq!(assign(&mut fleet, 1, &plain, false), Some("b"));
    assert_eq!(names(&mut fleet), ["a", "b"], "b is full, and takes builds");
    for owner in [node("a", 4).owner, node("b", 1).owner] {
        fleet.claimed(&owner, &mut [], &[], Instant::now());
    }
    assert_eq!(assign(&mut fleet, 2, &of("other", 1), false), Some("a"), "b is full");
    fleet.lost(&"b", Instant::now());
    assert_eq!(names(&mut fleet), ["a"]);
}

#[test]
fn a_pool_that_others_use_gets_calls_when_no_other_has_room() {
    let (mut fleet, plain, now) = (fleet(&[("a", 2), ("b", 2)]), of("plain", 1), Instant::now());
    let asked = |fleet: &mut Fleet<&'static str>| -> Vec<(String, bool)> {
        let capacities = fleet.capacities(false);
        for capacity in &capacities {
            fleet.claimed(&capacity.owner, &mut [], &[], now);
        }
        let mut asked: Vec<(String, bool)> =
            capacities.into_iter().map(|capacity| (capacity.owner.worker, capacity.calls.is_some())).collect();
        asked.sort();
        asked
    };
    let all = |a: bool, b: bool| vec![("a".to_owned(), a), ("b".to_owned(), b)];
    assert_eq!(asked(&mut fleet), all(true, true));
    assert!(!fleet.pool(&"a", PoolView { working: 2, ..PoolView::default() }));
    assert_eq!(asked(&mut fleet), all(false, true), "a takes builds");
    // What is assigned looks at the same.
    assert_eq!(assign(&mut fleet, 1, &plain, false), Some("b"));
    assert_eq!(assign(&mut fleet, 2, &of("other", 1), false), Some("b"));
    assert_eq!(assign(&mut fleet, 3, &of("third", 1), false), Some("a"), "no other has room");
    assert_eq!(asked(&mut fleet), all(true, false), "b is full, and calls wait at a");
    let told: std::collections::BTreeMap<_, _> = fleet.changed_slots().into_iter().collect();
    assert_eq!((told["a"], told["b"]), (1, 2));
    assert!(fleet.changed_slots().is_empty());
    fleet.call_ended_now(&"b", claim(1));
    assert_eq!(asked(&mut fleet), all(false, true));
    assert!(fleet.pool(&"a", PoolView { working: 1, ..PoolView::default() }), "only ours is left");
    assert_eq!(asked(&mut fleet), all(true, true));
}

#[test]
fn who_is_away_or_drains_gets_nothing() {
    let (mut fleet, plain, now) = (fleet(&[("a", 2), ("b", 2)]), of("plain", 1), Instant::now());
    fleet.draining(&"a");
    fleet.lost(&"b", now);
    assert_eq!(assign(&mut fleet, 1, &plain, false), None);
    assert!(fleet.capacities(true).is_empty() && !fleet.offers(EngineKind::Sandbox, &[]));
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
                fleet.call_ended_now(&peer, claim(num));
            }
            for (name, slots) in [("a", 2), ("b", 3)] {
                let worker = &fleet.workers[name];
                let count = |work| at.iter().filter(|(_, peer, index)| *peer == name && *index == work).count();
                let filled = (0..4).map(|work| count(work).div_ceil(works[work].parallel as usize)).sum::<usize>();
                prop_assert_eq!(worker.ledger.slots().busy() as usize, filled);
                prop_assert!(filled <= slots + 1);
            }
        }
        at.iter().for_each(|(num, peer, _)| drop(fleet.call_ended_now(peer, claim(*num))));
        prop_assert!(fleet.workers.values().all(|worker| worker.ledger.slots().busy() == 0 && worker.calls.is_empty()));
    }
}

#[test]
fn a_call_goes_where_an_instance_of_its_function_waits() {
    let mut fleet = fleet(&[("a", 8), ("b", 8), ("c", 8), ("d", 8)]);
    let (plain, now) = (of("plain", 1), Instant::now());
    let place = |fleet: &mut Fleet<&'static str>, num: i64, now: Instant| {
        let assigned = fleet.assign((EngineKind::Sandbox, &[]), claim(num), &plain, false, now).expect("a worker");
        (assigned.peer, assigned.placement)
    };
    let (first, placement) = place(&mut fleet, 1, now);
    assert_eq!(placement, Placement::LessLoaded);
    fleet.call_ended_now(&first, claim(1));
    assert_eq!(place(&mut fleet, 2, now), (first, Placement::IdleInstance));
    fleet.call_ended_now(&first, claim(2));
    let later = now + Duration::from_secs(3600);
    assert_eq!(place(&mut fleet, 3, later), (first, Placement::Code), "no instance waits so long");
    // A worker that is nearly full has its code, and another one is better.
    for num in 10..17 {
        let filler = of(&format!("f{num}"), 1);
        let worker = fleet.workers.get_mut(first).expect("a worker");
        worker.begin(claim(num), filler);
    }
    let much_later = later + Duration::from_secs(3600);
    fleet.call_ended(&first, claim(3), later);
    let (other, placement) = place(&mut fleet, 4, much_later);
    assert!(other != first && placement == Placement::LessLoaded, "{other} {placement:?}");
}

#[test]
fn only_the_worker_that_has_a_call_is_asked_about_it() {
    let mut fleet = fleet(&[("a", 2), ("b", 2)]);
    let holder = assign(&mut fleet, 1, &of("plain", 1), false).expect("a worker");
    let log_of = |num: i64| Question::Log(LogOf::Call(CallNum(num)));
    assert_eq!(fleet.who_knows(&log_of(1)), [holder]);
    assert_eq!(fleet.who_knows(&log_of(2)), ["a", "b"], "a direct call may be anywhere");
    fleet.lost(&holder, Instant::now());
    assert!(fleet.who_knows(&log_of(1)).is_empty(), "and nobody else knows it");
}

#[test]
fn functions_that_nobody_calls_are_forgotten() {
    let mut warm = Warm::default();
    let worker: Arc<str> = "a".into();
    let (now, version) = (Instant::now(), Version(1));
    for number in 0..5 * warm::FUNCTIONS {
        let function = FunctionId::new(&Namespace::default(), &format!("f{number}").parse().expect("a name"));
        warm.ran((&function, version), &worker, Step::Works, now);
    }
    assert!(warm.len() <= 2 * warm::FUNCTIONS);
}

/// Heavy-tailed durations, skewed functions, and nodes that vanish: calls stay spread, and most find an instance that waits.
#[test]
fn a_thousand_nodes_and_a_million_functions_are_placed_well() {
    const NODES: usize = 1000;
    const SLOTS: u32 = 8;
    const FUNCTIONS: f64 = 1_000_000.0;
    let mut fleet: Fleet<usize> = Fleet::default();
    let name = |node: usize| format!("n{node}");
    fleet.administer((0..NODES).map(|node| (name(node).parse().expect("a name"), terms())).collect());
    for node in 0..NODES {
        fleet.joined(node, self::node(&name(node), SLOTS), Vec::new(), Vec::new());
    }
    let mut random = fastrand::Rng::with_seed(7);
    let begun = Instant::now();
    let mut running: std::collections::BinaryHeap<std::cmp::Reverse<(u64, i64, usize)>> = Default::default();
    let (mut reused, mut placed, mut decided) = (0, 0, Duration::ZERO);
    for num in 0..60_000_i64 {
        let at_ms = num.unsigned_abs();
        while let Some(std::cmp::Reverse((until, ended, node))) =
            running.peek().copied().filter(|call| call.0.0 <= at_ms)
        {
            running.pop();
            fleet.call_ended(&node, claim(ended), begun + Duration::from_millis(until));
        }
        if num % 500 == 499 {
            // A node vanishes with what it has, and comes back empty.
            let gone = random.usize(0..NODES);
            running.retain(|call| call.0.2 != gone);
            fleet.joined(gone, self::node(&name(gone), SLOTS), Vec::new(), Vec::new());
        }
        // A Zipf-like choice of the function, and a Pareto-like duration with a mean of some seconds.
        let function = of(&format!("f{:.0}", FUNCTIONS.powf(random.f64())), 1);
        let lasts = Duration::from_secs_f64(0.2 / random.f64().max(1e-4).powf(0.7));
        let until = at_ms + u64::try_from(lasts.as_millis()).expect("a duration");
        let now = begun + Duration::from_millis(at_ms);
        let asked = Instant::now();
        let assigned = fleet.assign((EngineKind::Sandbox, &[]), claim(num), &function, false, now);
        decided += asked.elapsed();
        let Some(assigned) = assigned else { panic!("no node has a place, of {} calls", running.len()) };
        placed += 1;
        reused += u32::from(assigned.placement == Placement::IdleInstance);
        running.push(std::cmp::Reverse((until, num, assigned.peer)));
    }
    // Functions that are called all the time may fill a node that has instances of them, and no more than a few.
    let full = fleet.workers.values().filter(|worker| worker.ledger.slots().free() == 0).count();
    assert!(full * 50 < NODES, "{full} nodes are full, with {} calls on {NODES} nodes", running.len());
    assert!(reused * 2 > placed, "{reused} of {placed} calls found an instance");
    assert!(fleet.warm.len() <= 2 * warm::FUNCTIONS);
    // For `make bench`, which asks for it.
    println!("a decision takes {:.2} µs", decided.as_secs_f64() * 1e6 / f64::from(placed));
}
