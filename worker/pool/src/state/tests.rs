//! The pool's decisions: one by one, and in random histories against their bounds.

use std::collections::HashMap;

use faena_domain::units::Span;
use faena_domain::{Contract, NamespaceShare, Reuse, Serving};
use proptest::prelude::*;

use super::*;

/// Work is a number, an instance its own reference, an error a text.
#[derive(Debug)]
struct Fake;

impl Resources for Fake {
    type Work = u64;
    type Instance = u64;
    type Error = &'static str;
}

fn policy() -> PoolPolicy {
    PoolPolicy {
        slots: 4,
        creations: 2,
        instances: 6,
        memory: ByteSize(1 << 30),
        idle: Duration::from_secs(60),
        freeze_after: Duration::from_secs(10),
        preload: PreloadSetting::new(Some(Preload::None)),
    }
}

fn code(function: &str, version: i64, serving: Serving) -> Arc<Code> {
    Arc::new(Code { version: Version(version), ..faena_test_support::code(function, serving) })
}

fn server(parallel: u32) -> Serving {
    Serving { contract: Contract::Http, parallel: Some(parallel), ..Serving::default() }
}

/// A pool whose effects are carried out by hand.
struct Bench {
    state: State<Fake>,
    now: Instant,
    /// Starts that were asked for and have not ended.
    starts: Vec<(InstanceRef, bool)>,
    /// What works where.
    running: HashMap<u64, (InstanceRef, Vec<u64>)>,
    refused: Vec<(u64, Refusal<&'static str>)>,
    destroyed: Vec<u64>,
    measures: Vec<(InstanceRef, Instant, bool)>,
    cold: Vec<u64>,
    next: u64,
}

impl Bench {
    fn new(policy: &PoolPolicy) -> Self {
        let now = Instant::now();
        Self {
            state: State::new(policy, now),
            now,
            starts: Vec::new(),
            running: HashMap::new(),
            refused: Vec::new(),
            destroyed: Vec::new(),
            measures: Vec::new(),
            cold: Vec::new(),
            next: 0,
        }
    }

    fn perform(&mut self, effects: Vec<Effect<Fake>>) {
        for effect in effects {
            match effect {
                Effect::Begin { at, instance, waiting } => {
                    assert_eq!(at.id.0, instance, "the handle is the instance's own");
                    assert!(!self.destroyed.contains(&instance), "work begins in a destroyed instance");
                    if waiting.is_cold {
                        self.cold.push(waiting.work);
                    }
                    self.running.entry(instance).or_insert_with(|| (at, Vec::new())).1.push(waiting.work);
                }
                Effect::Start { at, is_asked, .. } => self.starts.push((at, is_asked)),
                Effect::Refuse { work, why } => self.refused.push((work, why)),
                Effect::Destroy(instance) => {
                    assert!(self.running_in(instance).is_empty(), "an instance that works is destroyed");
                    self.destroyed.push(instance);
                }
                Effect::Measure { at, idle_since, freeze, .. } => self.measures.push((at, idle_since, freeze)),
                Effect::Watch => {}
            }
        }
    }

    fn running_in(&self, instance: u64) -> &[u64] {
        self.running.get(&instance).map_or(&[], |(_, work)| work)
    }

    fn submit(&mut self, code: &Arc<Code>) -> u64 {
        self.next += 1;
        let waiting = Waiting {
            work: self.next,
            until: self.now + Duration::from_secs(5),
            num: Some(CallNum(i64::try_from(self.next).unwrap())),
            is_cold: false,
        };
        let effects = self.state.submit(code, waiting, self.now).unwrap();
        self.perform(effects);
        self.next
    }

    /// The oldest start ends well.
    fn made(&mut self) -> u64 {
        let (at, is_asked) = self.starts.remove(0);
        let effects = self.state.started(&at, is_asked, Start::Made(at.id.0), self.now);
        self.perform(effects);
        at.id.0
    }

    fn failed(&mut self) {
        let (at, is_asked) = self.starts.remove(0);
        let effects = self.state.started(&at, is_asked, Start::Failed("no"), self.now);
        self.perform(effects);
    }

    /// The first work of an instance ends, in the way that is given.
    fn end(
        &mut self,
        instance: u64,
        how: impl FnOnce(&mut State<Fake>, &InstanceRef, Instant) -> Vec<Effect<Fake>>,
    ) -> u64 {
        let (at, work) = self.running.get_mut(&instance).unwrap();
        let (at, work) = (at.clone(), work.remove(0));
        let effects = how(&mut self.state, &at, self.now);
        self.perform(effects);
        work
    }

    fn finished(&mut self, instance: u64) -> u64 {
        self.end(instance, State::finished)
    }

    fn later(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn keep(&mut self) {
        let effects = self.state.keep(self.now);
        self.perform(effects);
    }
}

#[test]
fn calls_of_a_version_wait_for_one_instance_where_it_takes_them_all() {
    let mut bench = Bench::new(&policy());
    let code = code("f", 1, server(3));
    let calls = [bench.submit(&code), bench.submit(&code), bench.submit(&code)];
    assert_eq!(bench.starts.len(), 1, "identical cold starts are coalesced");
    let instance = bench.made();
    assert_eq!(bench.running_in(instance), calls);
    assert_eq!((bench.cold.as_slice(), bench.state.counts().working), (&calls[..], 1));
    bench.submit(&code);
    assert_eq!(bench.starts.len(), 1, "a fourth needs another instance");
}

#[test]
fn an_instance_serves_again_and_the_one_used_last_is_first() {
    let mut bench = Bench::new(&policy());
    let code = code("f", 1, server(1));
    bench.submit(&code);
    bench.submit(&code);
    let (first, second) = (bench.made(), bench.made());
    bench.finished(second);
    bench.later(1);
    bench.finished(first);
    let call = bench.submit(&code);
    assert_eq!(bench.running_in(first), [call]);
    assert!(!bench.cold.contains(&call) && bench.starts.is_empty());
}

#[test]
fn a_function_leaves_one_slot_to_the_others() {
    let mut bench = Bench::new(&PoolPolicy { creations: 8, ..policy() });
    let (greedy, other) = (code("greedy", 1, server(1)), code("other", 1, server(1)));
    (0..8).for_each(|_| {
        bench.submit(&greedy);
    });
    assert_eq!(bench.starts.len(), 4, "it may have all slots while nobody else waits");
    (0..4).for_each(|_| {
        bench.made();
    });
    let call = bench.submit(&other);
    assert_eq!(bench.starts.len(), 1, "the reserve is for another function");
    let reserve = bench.made();
    assert_eq!(bench.running_in(reserve), [call]);
    assert_eq!(bench.state.counts().working, 5);
}

/// A version in another namespace, of which it has this share.
fn code_in(namespace: &str, function: &str, share: NamespaceShare) -> Arc<Code> {
    let namespace = namespace.parse().unwrap();
    Arc::new(Code { namespace, share, ..(*code(function, 1, server(1))).clone() })
}

#[test]
fn namespaces_share_slots_whatever_they_have_of_functions() {
    let mut bench = Bench::new(&PoolPolicy { creations: 8, instances: 20, ..policy() });
    let loud: Vec<Arc<Code>> =
        (0..4).map(|number| code_in("loud", &format!("f{number}"), NamespaceShare::default())).collect();
    let quiet = code_in("quiet", "f", NamespaceShare::default());
    for _ in 0..3 {
        for code in &loud {
            bench.submit(code);
        }
    }
    (0..4).for_each(|_| {
        bench.made();
    });
    let first = bench.submit(&quiet);
    let reserve = bench.made();
    assert_eq!(bench.running_in(reserve), [first], "another namespace holds all slots");
    (0..3).for_each(|_| {
        bench.submit(&quiet);
    });
    // Each slot that becomes free is for who has less.
    let mut working: Vec<u64> = bench.running.keys().copied().filter(|id| *id != reserve).collect();
    working.sort_unstable();
    for (instance, held) in working.into_iter().zip([1, 2, 2, 2]) {
        bench.finished(instance);
        while !bench.starts.is_empty() {
            bench.made();
        }
        assert_eq!(bench.state.slots.held_by_namespace(&quiet.namespace), held);
    }
}

#[test]
fn a_namespace_uses_no_more_memory_than_its_quota_and_gives_up_its_own_idle_instances() {
    let mut bench = Bench::new(&PoolPolicy { creations: 8, instances: 20, ..policy() });
    let one = faena_domain::Limits::DEFAULT.memory.0;
    let share = NamespaceShare { memory_bytes: Some(2 * one), ..NamespaceShare::default() };
    let (first, second) = (code_in("small", "a", share), code_in("small", "b", share));
    let other = code_in("other", "f", NamespaceShare::default());
    bench.submit(&other);
    let foreign = bench.made();
    bench.finished(foreign);
    let calls: Vec<u64> = (0..3).map(|_| bench.submit(&first)).collect();
    assert_eq!(bench.starts.len(), 2, "a third instance would use too much");
    let instances = [bench.made(), bench.made()];
    assert_eq!(bench.finished(instances[0]), calls[0]);
    assert_eq!(bench.running_in(instances[0]), [calls[2]]);
    bench.finished(instances[0]);
    let call = bench.submit(&second);
    assert_eq!(
        (bench.destroyed.as_slice(), bench.starts.len()),
        (&instances[..1], 1),
        "not the one of the other namespace"
    );
    let instance = bench.made();
    assert_eq!(bench.running_in(instance), [call]);
    bench.finished(instance);
    // One that needs more than there is destroys nothing in vain.
    let limits = faena_domain::Limits { memory: ByteSize(3 * one), ..faena_domain::Limits::DEFAULT };
    let large = Arc::new(Code { limits, ..(*code_in("small", "large", share)).clone() });
    bench.submit(&large);
    assert_eq!((bench.destroyed.len(), bench.starts.len()), (1, 0));
}

#[test]
fn a_failed_start_fails_one_call_and_the_next_is_tried() {
    let mut bench = Bench::new(&policy());
    let code = code("f", 1, server(1));
    let first = bench.submit(&code);
    let second = bench.submit(&code);
    bench.failed();
    assert_eq!(bench.refused, [(first, Refusal::NotStarted("no"))]);
    let instance = bench.made();
    assert_eq!(bench.running_in(instance), [second]);
}

#[test]
fn what_waits_too_long_is_refused_and_no_later_start_is_its_own() {
    let mut bench = Bench::new(&policy());
    let code = code("f", 1, server(1));
    let call = bench.submit(&code);
    bench.later(6);
    let (effects, something_waits) = bench.state.judge(bench.now);
    bench.perform(effects);
    assert_eq!(bench.refused, [(call, Refusal::Late)]);
    assert!(!something_waits);
    let instance = bench.made();
    assert!(bench.running_in(instance).is_empty());
    assert_eq!(bench.state.counts().working, 0);
}

#[test]
fn a_waiting_call_is_cancelled_at_once() {
    let mut bench = Bench::new(&policy());
    let call = bench.submit(&code("f", 1, server(1)));
    let num = CallNum(i64::try_from(call).unwrap());
    assert_eq!(bench.state.cancel(num).unwrap(), call);
    let instance = bench.made();
    assert!(bench.running_in(instance).is_empty());
    bench.submit(&code("f", 1, server(1)));
    assert_eq!(bench.state.cancel(num).unwrap_err(), [instance], "it may be in an instance that works");
}

#[test]
fn an_instance_that_takes_no_more_keeps_its_slot_until_its_calls_have_ended() {
    let mut bench = Bench::new(&policy());
    let code = code("f", 1, server(2));
    bench.submit(&code);
    bench.submit(&code);
    let instance = bench.made();
    bench.end(instance, State::retired);
    assert_eq!((bench.state.counts().working, bench.state.counts().instances), (1, 1));
    let call = bench.submit(&code);
    assert!(!bench.running_in(instance).contains(&call), "it takes no more");
    bench.end(instance, State::finished);
    assert_eq!(bench.state.counts().instances, 1, "the one that is being made for the last call");
}

#[test]
fn a_call_that_an_instance_gives_back_is_the_next() {
    let mut bench = Bench::new(&policy());
    let code = code("f", 1, server(1));
    bench.submit(&code);
    let instance = bench.made();
    let (now, until) = (bench.now, bench.now + Duration::from_secs(5));
    bench.end(instance, |state, at, _| state.returned(at, Waiting { work: 1, until, num: None, is_cold: false }, now));
    assert_eq!(bench.starts.len(), 1);
    let other = bench.made();
    assert_eq!(bench.running_in(other), [1]);
}

#[test]
fn an_instance_that_is_cleaned_takes_work_only_afterwards() {
    let mut bench = Bench::new(&policy());
    let code = code("f", 1, Serving::default());
    bench.submit(&code);
    let instance = bench.made();
    let at = bench.running[&instance].0.clone();
    bench.end(instance, |state, at, _| state.cleaning(at));
    assert_eq!(bench.state.counts().working, 0, "its slot is free at once");
    let call = bench.submit(&code);
    assert!(bench.starts.is_empty(), "it waits for the one that is being cleaned");
    let effects = bench.state.cleaned(&at, true, bench.now);
    bench.perform(effects);
    assert_eq!(bench.running_in(instance), [call]);
}

#[test]
fn an_instance_that_cannot_be_cleaned_is_replaced() {
    let mut bench = Bench::new(&policy());
    let code = code("f", 1, Serving::default());
    bench.submit(&code);
    let instance = bench.made();
    let at = bench.running[&instance].0.clone();
    bench.end(instance, |state, at, _| state.cleaning(at));
    bench.submit(&code);
    let effects = bench.state.gone(&at);
    bench.perform(effects);
    assert_eq!(bench.starts.len(), 1);
}

#[test]
fn idle_instances_are_measured_frozen_and_let_go() {
    let mut bench = Bench::new(&policy());
    let code = code("f", 1, Serving { idle: Some(Span(30_000)), ..server(1) });
    bench.submit(&code);
    let instance = bench.made();
    bench.keep();
    assert!(bench.measures.is_empty(), "it works");
    bench.finished(instance);
    bench.keep();
    let (at, idle_since, freeze) = bench.measures.pop().unwrap();
    assert!(!freeze);
    bench.state.measured(&at, Measured { idle_since, memory: Some(5), is_frozen: false });
    assert_eq!(bench.state.counts().memory, 5);
    bench.later(11);
    bench.keep();
    let (at, idle_since, freeze) = bench.measures.pop().unwrap();
    assert!(freeze);
    bench.state.measured(&at, Measured { idle_since, memory: None, is_frozen: true });
    assert_eq!((bench.state.counts().frozen, bench.state.counts().memory), (1, 5));
    bench.later(20);
    bench.keep();
    assert_eq!(bench.destroyed, [instance]);
}

#[test]
fn a_measure_that_comes_after_the_next_call_does_not_count() {
    let mut bench = Bench::new(&policy());
    let code = code("f", 1, server(1));
    bench.submit(&code);
    let instance = bench.made();
    bench.finished(instance);
    bench.later(11);
    bench.keep();
    let (at, idle_since, _) = bench.measures.pop().unwrap();
    bench.submit(&code);
    bench.later(1);
    bench.finished(instance);
    bench.state.measured(&at, Measured { idle_since, memory: Some(5), is_frozen: true });
    assert_eq!(bench.state.counts().frozen, 0, "it was thawed by the call");
}

#[test]
fn the_instance_with_the_lowest_score_makes_room() {
    let mut bench = Bench::new(&policy());
    let often = code("often", 1, server(1));
    bench.submit(&often);
    let often_called = bench.made();
    bench.finished(often_called);
    for _ in 0..20 {
        bench.submit(&often);
        bench.finished(often_called);
    }
    for other in 0..6 {
        bench.submit(&code(&format!("f{other}"), 1, server(1)));
        let instance = bench.made();
        bench.finished(instance);
    }
    assert_eq!(bench.destroyed.len(), 1);
    assert!(!bench.destroyed.contains(&often_called));
}

#[test]
fn a_minimum_is_kept_without_calls_until_a_newer_version_comes() {
    let mut bench = Bench::new(&policy());
    let minimum = |version| code("f", version, Serving { minimum: 1, ..server(1) });
    let effects = bench.state.expect(&minimum(1), bench.now);
    bench.perform(effects);
    let old = bench.made();
    bench.later(3600);
    bench.keep();
    assert!(bench.destroyed.is_empty());
    let effects = bench.state.expect(&minimum(2), bench.now);
    bench.perform(effects);
    let new = bench.made();
    bench.later(11);
    bench.keep();
    assert_eq!(bench.destroyed, [old]);
    assert_ne!(new, old);
}

#[test]
fn a_call_that_an_idle_instance_takes_is_warm_although_another_is_being_made() {
    let mut bench = Bench::new(&policy());
    let code = code("f", 1, server(1));
    bench.submit(&code);
    let instance = bench.made();
    let second = bench.submit(&code);
    assert_eq!(bench.starts.len(), 1);
    bench.finished(instance);
    assert_eq!(bench.running_in(instance), [second], "the instance that was free first takes it");
    bench.finished(instance);
    let third = bench.submit(&code);
    assert!(bench.running_in(instance).contains(&third) && !bench.cold.contains(&third));
}

#[test]
fn an_instance_that_serves_once_is_not_counted_among_those_that_should_be_there() {
    let mut bench = Bench::new(&policy());
    let serving = Serving { reuse: Reuse::Never, minimum: 1, idle: Some(Span(1000)), ..Serving::default() };
    let code = code("f", 1, serving);
    bench.submit(&code);
    let instance = bench.made();
    bench.keep();
    let ready = bench.made();
    bench.later(5);
    bench.keep();
    assert!(bench.destroyed.is_empty() && bench.starts.is_empty(), "{instance} works, {ready} waits");
}

#[test]
fn what_is_made_next_is_of_the_code_that_came_last() {
    let mut bench = Bench::new(&policy());
    bench.submit(&code("f", 1, server(1)));
    bench.failed();
    let rebuilt = Arc::new(Code { image_id: Some("another".to_owned()), ..(*code("f", 1, server(1))).clone() });
    let waiting = Waiting { work: 9, until: bench.now, num: None, is_cold: false };
    let effects = bench.state.submit(&rebuilt, waiting, bench.now).unwrap();
    let made = effects.iter().find_map(|effect| match effect {
        Effect::Start { code, .. } => Some(code),
        _ => None,
    });
    assert!(made.is_some_and(|code| Arc::ptr_eq(code, &rebuilt)));
}

#[test]
fn a_start_that_ends_after_the_pool_was_closed_is_destroyed() {
    let mut bench = Bench::new(&policy());
    bench.submit(&code("f", 1, server(1)));
    assert!(bench.state.close().is_empty());
    let instance = bench.made();
    assert_eq!(bench.destroyed, [instance]);
    let waiting = Waiting { work: 9, until: bench.now, num: None, is_cold: false };
    assert!(bench.state.submit(&code("f", 1, server(1)), waiting, bench.now).is_err());
}

/// What happens next, in a random history.
#[derive(Clone, Debug)]
enum Step {
    Submit(usize),
    Made,
    Failed,
    Finished(usize),
    Retired(usize),
    Gone(usize),
    Later(u64),
    Keep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..4_usize).prop_map(Step::Submit),
        5 => Just(Step::Made),
        1 => Just(Step::Failed),
        6 => any::<usize>().prop_map(Step::Finished),
        1 => any::<usize>().prop_map(Step::Retired),
        1 => any::<usize>().prop_map(Step::Gone),
        1 => (0..8_u64).prop_map(Step::Later),
        1 => Just(Step::Keep),
    ];
    proptest::collection::vec(step, 0..300)
}

impl Bench {
    fn step(&mut self, step: Step, codes: &[Arc<Code>]) {
        let mut active: Vec<u64> =
            self.running.iter().filter(|(_, (_, work))| !work.is_empty()).map(|(instance, _)| *instance).collect();
        active.sort_unstable();
        let pick = |index: usize| active.get(index % active.len().max(1)).copied();
        match step {
            Step::Submit(which) => {
                self.submit(&codes[which]);
            }
            Step::Made if !self.starts.is_empty() => {
                self.made();
            }
            Step::Failed if !self.starts.is_empty() => self.failed(),
            Step::Finished(index) => {
                if let Some(instance) = pick(index) {
                    self.finished(instance);
                }
            }
            Step::Retired(index) => {
                if let Some(instance) = pick(index) {
                    self.end(instance, State::retired);
                }
            }
            Step::Gone(index) => {
                if let Some(instance) = pick(index) {
                    let (at, _) = self.running.remove(&instance).unwrap();
                    let effects = self.state.gone(&at);
                    self.perform(effects);
                }
            }
            Step::Later(seconds) => {
                self.later(seconds);
                let (effects, _) = self.state.judge(self.now);
                self.perform(effects);
            }
            Step::Keep => self.keep(),
            Step::Made | Step::Failed => {}
        }
    }

    fn check(&self, policy: &PoolPolicy, parallel: &[u32]) -> Result<(), TestCaseError> {
        let counts = self.state.counts();
        let active = self.running.values().filter(|(_, work)| !work.is_empty()).count();
        let asked = self.starts.iter().filter(|(_, is_asked)| *is_asked).count();
        prop_assert_eq!(
            counts.working,
            (active + asked) as u64,
            "a slot for each instance that works or is made for a call"
        );
        prop_assert!(counts.working <= u64::from(policy.slots) + 1);
        prop_assert!(counts.instances <= policy.instances as u64 + 1, "and one for the reserve");
        for (at, work) in self.running.values() {
            let function: usize = at.version.function.name.as_str()[1..].parse().unwrap();
            prop_assert!(work.len() <= parallel[function] as usize);
        }
        let has_room = counts.working < u64::from(policy.slots) && self.starts.len() < policy.creations as usize;
        let evictable = counts.instances < policy.instances as u64;
        prop_assert!(counts.waiting == 0 || !has_room || !evictable || asked > 0, "nothing waits beside what is free");
        Ok(())
    }
}

proptest! {
    /// Whatever comes in whatever order: slots are counted right, no instance has more calls than it takes, nothing waits
    /// while it could begin, and each call begins or is refused, once.
    #[test]
    fn every_history_keeps_the_bounds(history in steps()) {
        let policy = policy();
        let parallel = [1, 2, 3, 1];
        let codes: Vec<_> = (0..4).map(|index| {
            let reuse = if index == 3 { Reuse::Never } else { Reuse::Version };
            code(&format!("f{index}"), 1, Serving { reuse, ..server(parallel[index]) })
        }).collect();
        let mut bench = Bench::new(&policy);
        for step in history {
            bench.step(step, &codes);
            bench.check(&policy, &parallel)?;
        }
        // In the end everything has ended.
        bench.later(3600);
        let (effects, something_waits) = bench.state.judge(bench.now);
        bench.perform(effects);
        prop_assert!(!something_waits);
        while !bench.starts.is_empty() {
            bench.made();
        }
        let left: Vec<u64> = bench.running.keys().copied().collect();
        for instance in left {
            while !bench.running_in(instance).is_empty() {
                bench.finished(instance);
            }
        }
        let counts = bench.state.counts();
        prop_assert_eq!((counts.working, counts.waiting), (0, 0));
    }
}
