//! What a pool knows, and what it decides; nothing here is done, and nothing waits.

mod upkeep;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::keep_alive::{GreedyDual, Window};
use faena_domain::{CallNum, Contract, FunctionName, Namespace, Reuse, Slots, Version};
use faena_protocol::node::PoolView;
use faena_protocol::records::Code;
use tokio::sync::oneshot;

use super::call::{PoolCall, PoolEnd};
use super::metrics::Metrics;
use super::parked::{Parked, Taken};
use super::served::Served;
use super::{PoolConfig, StartError};

/// Calls that may wait for an instance.
const WAITING: usize = 10_000;
/// What an instance counts for until its memory was measured, in bytes.
pub(super) const UNMEASURED: u64 = 32 << 20;
/// How much longer after each failed start no instance is made beforehand.
const AGAIN: Duration = Duration::from_secs(5);

/// One version of one function; one that was deleted and came again is another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    function: FunctionId,
    version: Version,
    since: i64,
}

/// A function of a namespace.
type FunctionId = (Namespace, FunctionName);

impl Key {
    /// Whether it is an earlier version of the same function.
    fn is_older_than(&self, other: &Self) -> bool {
        self.function == other.function && (self.since, self.version) < (other.since, other.version)
    }

    fn of(code: &Code) -> Self {
        let function = (code.namespace.clone(), code.function.clone());
        Self { function, version: code.version, since: code.since }
    }
}

/// Who wants an instance for itself.
#[derive(Debug)]
pub(super) struct Taker {
    pub(super) until: Instant,
    pub(super) give: oneshot::Sender<Result<Taken, StartError>>,
}

/// What waits for an instance.
#[derive(Debug)]
pub(super) enum Work {
    Call(Box<PoolCall>),
    Take(Taker),
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) work: Work,
}

impl Waiting {
    fn until(&self) -> Instant {
        match &self.work {
            Work::Call(call) => call.deadline,
            Work::Take(taker) => taker.until,
        }
    }

    fn cold(&mut self) {
        if let Work::Call(call) = &mut self.work {
            call.cold = true;
        }
    }

    /// Tells the waiting call that there will be no instance.
    pub(super) fn fail(self, error: StartError) {
        match self.work {
            Work::Call(call) => {
                let end = PoolEnd::not_started(&call, error);
                (call.done)(end);
            }
            // The attempt may have gone.
            Work::Take(taker) => drop(taker.give.send(Err(error))),
        }
    }
}

/// What was made.
#[derive(Debug)]
pub(super) enum Made {
    /// It answers many calls.
    Served(Arc<Served>),
    /// A process can be started in it.
    Parked(Box<Parked>),
}

/// What has to be done.
#[derive(Debug)]
pub(super) enum Action {
    Begin {
        key: Arc<Key>,
        id: u64,
        instance: Arc<Served>,
        call: Box<PoolCall>,
    },
    Hand {
        parked: Box<Parked>,
        taker: Taker,
    },
    Start {
        key: Arc<Key>,
        code: Arc<Code>,
        asked: bool,
    },
    Fail {
        waiting: Waiting,
        error: StartError,
    },
    Destroy(Leaving),
    /// Something waits and has to be watched.
    Watch,
}

/// An instance on its way out.
#[derive(Debug)]
pub(super) enum Leaving {
    Served(Arc<Served>),
    Parked(Box<Parked>),
}

impl Leaving {
    /// Returns when nothing of it is left; what works may finish until then.
    pub(super) async fn destroyed(self, end: tokio::time::Instant) {
        match self {
            Self::Served(served) => {
                served.retire();
                if tokio::time::timeout_at(end, served.gone()).await.is_err() {
                    served.cut();
                    served.gone().await;
                }
            }
            Self::Parked(parked) => parked.destroy().await,
        }
    }
}

/// An instance that answers many calls.
#[derive(Debug)]
struct Member {
    id: u64,
    served: Arc<Served>,
    in_flight: u32,
    idle_since: Instant,
    frozen: bool,
    memory: u64,
    /// Calls that it has answered.
    calls: u64,
    worth: f64,
}

/// An instance that waits for a process.
#[derive(Debug)]
struct Waiter {
    parked: Box<Parked>,
    idle_since: Instant,
    frozen: bool,
    memory: u64,
    worth: f64,
}

#[derive(Debug)]
struct Pooled {
    code: Arc<Code>,
    members: Vec<Member>,
    /// Instances that take no more calls and work at some: each has its slot until they have ended.
    retired: Vec<Member>,
    waiters: Vec<Waiter>,
    /// Instances that are being made, and how many of them because a call waits.
    starting: u32,
    asked: u32,
    /// Takers that have their instance.
    taken: u32,
    /// Instances that were given back and are being made as new.
    renewing: u32,
    waiting: VecDeque<Waiting>,
    window: Window,
    start_ms: f64,
    /// Starts that failed since the last one that did not, and when instances are made beforehand again.
    failures: u32,
    again_at: Instant,
    /// A newer version has come; this one is kept only while it is called.
    is_superseded: bool,
    /// When it was first heard of.
    known: Instant,
}

impl Pooled {
    fn instances(&self) -> usize {
        self.members.len() + self.retired.len() + self.waiters.len() + (self.starting + self.renewing) as usize
    }

    /// Instances that should wait whether or not calls come.
    fn minimum(&self, now: Instant) -> u32 {
        if self.is_superseded || now < self.again_at { 0 } else { self.code.serving.minimum }
    }

    fn under_way(&self) -> u32 {
        self.members.iter().chain(&self.retired).map(|member| member.in_flight).sum::<u32>() + self.taken
    }
}

/// All of it.
#[derive(Debug)]
pub(super) struct State {
    versions: HashMap<Arc<Key>, Pooled>,
    /// The same by the place of their `code`, which they hold.
    by_code: HashMap<usize, Arc<Key>>,
    /// Versions for which something waits, in turns.
    turns: VecDeque<Arc<Key>>,
    waiting: usize,
    /// The slots: those of instances that work, and of instances that are being made for a call.
    slots: Slots<FunctionId>,
    creating: u32,
    next: u64,
    dual: GreedyDual,
    born: Instant,
    /// When db was asked last what waits whether or not calls come.
    reconciled: Instant,
    closed: bool,
    config: PoolConfig,
}

impl State {
    pub(super) fn new(config: &PoolConfig) -> Self {
        Self {
            versions: HashMap::new(),
            by_code: HashMap::new(),
            turns: VecDeque::new(),
            waiting: 0,
            slots: Slots::new(config.slots),
            creating: 0,
            next: 1,
            dual: GreedyDual::default(),
            born: Instant::now(),
            reconciled: Instant::now(),
            closed: false,
            config: config.clone(),
        }
    }

    fn ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }

    /// The version's entry, made where there is none.
    fn key(&mut self, code: &Arc<Code>) -> Arc<Key> {
        let place = Arc::as_ptr(code) as usize;
        if let Some(key) = self.by_code.get(&place) {
            return Arc::clone(key);
        }
        let key = Arc::new(Key::of(code));
        let known = self.versions.get_key_value(&key).map(|(key, _)| Arc::clone(key));
        let key = known.unwrap_or(key);
        let pooled = self.versions.entry(Arc::clone(&key)).or_insert_with(|| Pooled {
            code: Arc::clone(code),
            members: Vec::new(),
            retired: Vec::new(),
            waiters: Vec::new(),
            starting: 0,
            asked: 0,
            taken: 0,
            renewing: 0,
            waiting: VecDeque::new(),
            window: Window::default(),
            start_ms: 100.0,
            failures: 0,
            again_at: self.born,
            is_superseded: false,
            known: Instant::now(),
        });
        // The newest allocation of the same version is what the next calls come with.
        self.by_code.remove(&(Arc::as_ptr(&pooled.code) as usize));
        pooled.code = Arc::clone(code);
        self.by_code.insert(place, Arc::clone(&key));
        key
    }

    /// Takes work in.
    pub(super) fn submit(&mut self, code: &Arc<Code>, work: Waiting, now: Instant) -> Result<Vec<Action>, Work> {
        if self.waiting >= WAITING || self.closed {
            return Err(work.work);
        }
        let key = self.key(code);
        let at = self.ms(now);
        let Some(pooled) = self.versions.get_mut(&key) else { return Err(work.work) };
        let under_way = pooled.under_way() + u32::try_from(pooled.waiting.len()).unwrap_or(u32::MAX) + 1;
        pooled.window.began(at, under_way);
        if pooled.waiting.is_empty() {
            self.turns.push_back(key);
        }
        pooled.waiting.push_back(work);
        self.waiting += 1;
        let mut actions = self.pump();
        if self.waiting > 0 {
            actions.push(Action::Watch);
        }
        Ok(actions)
    }

    /// Serves versions in turns, one call each, until nobody gets further.
    fn pump(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut left = self.turns.len();
        while left > 0 {
            let Some(key) = self.turns.pop_front() else { break };
            let moved = self.serve_one(&key, &mut actions);
            let waits = self.versions.get(&key).is_some_and(|pooled| !pooled.waiting.is_empty());
            if waits {
                self.turns.push_back(key);
            }
            left = if moved { self.turns.len() } else { left - 1 };
        }
        actions
    }

    /// Gives the version's first call what there is; false where it can only wait.
    fn serve_one(&mut self, key: &Arc<Key>, actions: &mut Vec<Action>) -> bool {
        let others_wait = self.turns.iter().any(|other| other.function != key.function);
        let has_slot = self.slots.may_take(&key.function, others_wait);
        let Some(pooled) = self.versions.get_mut(key) else { return false };
        if pooled.waiting.is_empty() {
            return false;
        }
        let parallel = pooled.code.serving.parallel();
        // The one used last is the warmest, and one that was never used the coldest; one that works takes no further slot.
        let fits = |member: &&mut Member| {
            member.in_flight < parallel && (member.in_flight > 0 || has_slot) && member.served.is_open()
        };
        if let Some(member) =
            pooled.members.iter_mut().filter(fits).max_by_key(|member| (member.calls > 0, member.idle_since))
            && let Some(Waiting { work: Work::Call(call) }) = pooled.waiting.pop_front_if(Waiting::is_call)
        {
            if member.in_flight == 0 {
                self.slots.take(&key.function);
            }
            member.in_flight += 1;
            member.frozen = false;
            self.waiting -= 1;
            let (id, instance) = (member.id, Arc::clone(&member.served));
            actions.push(Action::Begin { key: Arc::clone(key), id, instance, call });
            return true;
        }
        if has_slot && let Some(waiter) = pooled.waiters.pop() {
            if let Some(Waiting { work: Work::Take(taker) }) = pooled.waiting.pop_front_if(|work| !work.is_call()) {
                self.slots.take(&key.function);
                self.waiting -= 1;
                pooled.taken += 1;
                actions.push(Action::Hand { parked: waiter.parked, taker });
                return true;
            }
            pooled.waiters.push(waiter);
        }
        // A call that waits for an instance under way needs no other.
        let coming = (pooled.asked + pooled.renewing) as usize;
        // More than may work at once would only wait.
        let there = pooled.instances() + pooled.taken as usize;
        let wanted = pooled.waiting.len() > coming * parallel as usize && there < self.config.slots as usize;
        // What hinders the one that holds all slots does not hinder who takes the reserve.
        let is_reserve = has_slot && self.slots.only_holder().is_some_and(|only| *only != key.function);
        if !(wanted && has_slot && (self.creating < self.config.creations || is_reserve)) {
            return false;
        }
        if !self.make_room(actions) && !is_reserve {
            return false;
        }
        let Some(pooled) = self.versions.get_mut(key) else { return false };
        let first = pooled.asked as usize * parallel as usize;
        pooled.waiting.iter_mut().skip(first).take(parallel as usize).for_each(Waiting::cold);
        pooled.starting += 1;
        pooled.asked += 1;
        self.slots.take(&key.function);
        self.creating += 1;
        let code = Arc::clone(&pooled.code);
        actions.push(Action::Start { key: Arc::clone(key), code, asked: true });
        true
    }

    fn held(&self) -> (usize, u64) {
        let memory = |pooled: &Pooled| {
            pooled.members.iter().chain(&pooled.retired).map(|member| member.memory).sum::<u64>()
                + pooled.waiters.iter().map(|waiter| waiter.memory).sum::<u64>()
                + u64::from(pooled.starting + pooled.taken + pooled.renewing) * UNMEASURED
        };
        let count = self.versions.values().map(|pooled| pooled.instances() + pooled.taken as usize).sum();
        (count, self.versions.values().map(memory).sum())
    }

    /// Makes room for one more instance: who is cheapest to lose goes. False where nobody can.
    fn make_room(&mut self, actions: &mut Vec<Action>) -> bool {
        let (mut count, mut memory) = self.held();
        while count > 0 && (count >= self.config.instances || memory + UNMEASURED > self.config.memory.0) {
            let Some((leaving, bytes)) = self.evict() else { return false };
            count -= 1;
            memory = memory.saturating_sub(bytes);
            actions.push(Action::Destroy(leaving));
        }
        true
    }

    /// Takes out the waiting instance that is cheapest to lose.
    fn evict(&mut self) -> Option<(Leaving, u64)> {
        let idle = |pooled: &Pooled| {
            let members = pooled.members.iter().filter(|member| member.in_flight == 0).map(|member| member.worth);
            members.chain(pooled.waiters.iter().map(|waiter| waiter.worth)).fold(f64::INFINITY, f64::min)
        };
        let (key, worth) = self
            .versions
            .iter()
            .map(|(key, pooled)| (Arc::clone(key), idle(pooled)))
            .min_by(|(_, a), (_, b)| a.total_cmp(b))
            .filter(|(_, worth)| worth.is_finite())?;
        self.dual.evicted(worth);
        let pooled = self.versions.get_mut(&key)?;
        let is_it = |found: f64| found.total_cmp(&worth).is_eq();
        if let Some(index) = pooled.members.iter().position(|member| member.in_flight == 0 && is_it(member.worth)) {
            let member = pooled.members.swap_remove(index);
            return Some((Leaving::Served(member.served), member.memory));
        }
        let index = pooled.waiters.iter().position(|waiter| is_it(waiter.worth))?;
        // The last one stays the one that was used last.
        let waiter = pooled.waiters.remove(index);
        Some((Leaving::Parked(waiter.parked), waiter.memory))
    }

    /// Takes in what was made, or fails the calls that waited for it.
    pub(super) fn started(
        &mut self,
        key: &Key,
        asked: bool,
        made: Result<Made, StartError>,
        now: Instant,
    ) -> Vec<Action> {
        self.creating -= 1;
        if asked {
            self.slots.give_back(&key.function);
        }
        let (at, id, dual) = (self.ms(now), self.next, self.dual);
        self.next += 1;
        let Some(pooled) = self.versions.get_mut(key) else {
            // The pool was closed meanwhile.
            return made.ok().map(|made| Action::Destroy(made.into())).into_iter().collect();
        };
        pooled.starting -= 1;
        pooled.asked -= u32::from(asked);
        let mut actions = Vec::new();
        match made {
            // A process that has ended before it was taken in.
            Ok(Made::Served(served)) if !served.is_open() => actions.push(Action::Destroy(Leaving::Served(served))),
            Ok(made) => {
                pooled.failures = 0;
                pooled.take_in(made, id, &dual, (now, at));
                // The call that it was made for is next: its slot must not go to another start before.
                if let Some(index) = self.turns.iter().position(|turn| **turn == *key) {
                    let turn = self.turns.remove(index);
                    turn.into_iter().for_each(|turn| self.turns.push_front(turn));
                }
            }
            Err(error) => {
                pooled.failures += 1;
                pooled.again_at = now + AGAIN * pooled.failures.min(60);
                if asked && let Some(waiting) = pooled.waiting.pop_front() {
                    self.waiting -= 1;
                    actions.push(Action::Fail { waiting, error });
                }
            }
        }
        actions.extend(self.pump());
        actions
    }

    /// A start took this long.
    pub(super) fn learn(&mut self, key: &Key, start_ms: f64) {
        if let Some(pooled) = self.versions.get_mut(key) {
            // A moving average: one slow start says little.
            pooled.start_ms = 0.7 * pooled.start_ms + 0.3 * start_ms;
        }
    }

    /// A call has ended in an instance.
    pub(super) fn finished(&mut self, key: &Key, id: u64, now: Instant) -> Vec<Action> {
        let dual = self.dual;
        let Some(pooled) = self.versions.get_mut(key) else { return Vec::new() };
        if let Some(member) = pooled.members.iter_mut().find(|member| member.id == id && member.in_flight > 0) {
            member.in_flight -= 1;
            member.idle_since = now;
            member.calls += 1;
            member.worth = dual.worth(member.calls, pooled.start_ms, member.memory);
            if member.in_flight == 0 {
                self.slots.give_back(&key.function);
            }
        } else if let Some(index) = pooled.retired.iter().position(|member| member.id == id) {
            pooled.retired[index].in_flight -= 1;
            if pooled.retired[index].in_flight == 0 {
                pooled.retired.swap_remove(index);
                self.slots.give_back(&key.function);
            }
        }
        self.pump()
    }

    /// A call came back from an instance that had died: it is the next one again.
    pub(super) fn came_back(&mut self, key: &Arc<Key>, id: u64, call: Box<PoolCall>) -> Vec<Action> {
        let mut actions = self.retire(key, id);
        if let Some(pooled) = self.versions.get_mut(key) {
            if pooled.waiting.is_empty() {
                self.turns.push_back(Arc::clone(key));
            }
            pooled.waiting.push_front(Waiting { work: Work::Call(call) });
            self.waiting += 1;
        }
        actions.extend(self.pump());
        actions
    }

    /// A call has left an instance, which takes no more; it keeps its slot while it works at others.
    pub(super) fn retire(&mut self, key: &Key, id: u64) -> Vec<Action> {
        let Some(pooled) = self.versions.get_mut(key) else { return Vec::new() };
        let Some(index) = pooled.members.iter().position(|member| member.id == id) else {
            return self.finished(key, id, Instant::now());
        };
        let mut member = pooled.members.swap_remove(index);
        match member.in_flight {
            0 => {}
            1 => self.slots.give_back(&key.function),
            _ => {
                member.in_flight -= 1;
                pooled.retired.push(member);
            }
        }
        self.pump()
    }

    /// An instance has ended with whatever it worked at.
    pub(super) fn gone(&mut self, key: &Key, id: u64) -> Vec<Action> {
        let Some(pooled) = self.versions.get_mut(key) else { return Vec::new() };
        let all = [&mut pooled.members, &mut pooled.retired];
        let found = all.into_iter().find_map(|members| {
            let index = members.iter().position(|member| member.id == id)?;
            Some(members.swap_remove(index))
        });
        if found.is_some_and(|member| member.in_flight > 0) {
            self.slots.give_back(&key.function);
        }
        self.pump()
    }

    /// A taker is done; its slot is free. Its instance comes back as new, or it is gone.
    pub(super) fn given_back(&mut self, key: &Key, comes_back: bool) -> Vec<Action> {
        if let Some(pooled) = self.versions.get_mut(key) {
            pooled.taken -= 1;
            pooled.renewing += u32::from(comes_back);
            self.slots.give_back(&key.function);
        }
        self.pump()
    }

    /// An instance could not be made as new.
    pub(super) fn not_renewed(&mut self, key: &Key) -> Vec<Action> {
        if let Some(pooled) = self.versions.get_mut(key) {
            pooled.renewing -= 1;
        }
        self.pump()
    }

    /// An instance is as new again.
    pub(super) fn renewed(&mut self, key: &Key, parked: Box<Parked>, now: Instant) -> Vec<Action> {
        let (at, dual, closed) = (self.ms(now), self.dual, self.closed);
        let Some(pooled) = self.versions.get_mut(key).filter(|_| !closed) else {
            return vec![Action::Destroy(Leaving::Parked(parked))];
        };
        pooled.renewing -= 1;
        pooled.take_in(Made::Parked(parked), 0, &dual, (now, at));
        self.pump()
    }

    /// Takes a call out that waits, or names the instances that may have it.
    pub(super) fn cancel(&mut self, num: CallNum) -> (Option<Box<PoolCall>>, Vec<Arc<Served>>) {
        let is_it = |waiting: &Waiting| matches!(&waiting.work, Work::Call(call) if call.num == num);
        for pooled in self.versions.values_mut() {
            if let Some(Waiting { work: Work::Call(call) }) =
                pooled.waiting.iter().position(is_it).and_then(|index| pooled.waiting.remove(index))
            {
                self.waiting -= 1;
                return (Some(call), Vec::new());
            }
        }
        (None, self.busy())
    }

    /// The instances that answer many calls and have some.
    pub(super) fn busy(&self) -> Vec<Arc<Served>> {
        let members = self.versions.values().flat_map(|pooled| pooled.members.iter().chain(&pooled.retired));
        members.filter(|member| member.in_flight > 0).map(|member| Arc::clone(&member.served)).collect()
    }

    /// Fails what has waited for too long; returns whether something still waits.
    pub(super) fn judge(&mut self, now: Instant) -> (Vec<Action>, bool) {
        let mut actions = Vec::new();
        for pooled in self.versions.values_mut() {
            if pooled.waiting.iter().all(|waiting| waiting.until() > now) {
                continue;
            }
            let (late, waiting): (VecDeque<_>, _) = pooled.waiting.drain(..).partition(|work| work.until() <= now);
            pooled.waiting = waiting;
            actions.extend(late.into_iter().map(|waiting| Action::Fail { waiting, error: StartError::Late }));
        }
        self.waiting -= actions.len();
        self.turns.retain(|key| self.versions.get(key).is_some_and(|pooled| !pooled.waiting.is_empty()));
        actions.extend(self.pump());
        (actions, self.waiting > 0)
    }

    fn measure(&self, metrics: &Metrics) {
        let (count, memory) = self.held();
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        metrics.instances.set(signed(count as u64));
        metrics.memory.set(signed(memory));
        metrics.frozen.set(signed(self.frozen()));
    }

    fn frozen(&self) -> u64 {
        let of = |pooled: &Pooled| {
            pooled.members.iter().filter(|member| member.frozen).count()
                + pooled.waiters.iter().filter(|waiter| waiter.frozen).count()
        };
        self.versions.values().map(|pooled| of(pooled) as u64).sum()
    }

    pub(super) fn view(&self, metrics: &Metrics) -> PoolView {
        let (instances, memory_bytes) = self.held();
        PoolView {
            instances: instances as u64,
            working: u64::from(self.slots.busy()),
            waiting_calls: self.waiting as u64,
            frozen: self.frozen(),
            memory_bytes,
            hits: metrics.hits.get(),
            misses: metrics.misses.get(),
            refills: metrics.refills.get(),
            evictions: metrics.evictions.get(),
            blank: 0,
            interpreters: 0,
        }
    }

    /// Whether calls wait for instances, or for one that is being made.
    pub(super) fn is_pressed(&self) -> bool {
        !self.closed && (self.waiting > 0 || self.creating > 0)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Takes nothing more in, and hands out all that waits.
    pub(super) fn close(&mut self) -> Vec<Leaving> {
        self.closed = true;
        let mut leaving = Vec::new();
        self.waiting = 0;
        self.turns.clear();
        for (_, pooled) in self.versions.drain() {
            // The attempt learns by the end of its channel that there is no answer.
            leaving
                .extend(pooled.members.into_iter().chain(pooled.retired).map(|member| Leaving::Served(member.served)));
            leaving.extend(pooled.waiters.into_iter().map(|waiter| Leaving::Parked(waiter.parked)));
        }
        self.by_code.clear();
        leaving
    }
}

impl From<Made> for Leaving {
    fn from(made: Made) -> Self {
        match made {
            Made::Served(served) => Self::Served(served),
            Made::Parked(parked) => Self::Parked(parked),
        }
    }
}

impl Waiting {
    fn is_call(&mut self) -> bool {
        matches!(self.work, Work::Call(_))
    }
}

impl Pooled {
    fn take_in(&mut self, made: Made, id: u64, dual: &GreedyDual, (now, at): (Instant, u64)) {
        // One that answers a single call is worth what its version is.
        let answers_once = self.code.serving.reuse == Reuse::Never;
        let calls_of_all = if answers_once { self.window.calls(at) } else { 0 };
        let worth = |calls| dual.worth(calls_of_all.max(calls), self.start_ms, UNMEASURED);
        match made {
            Made::Served(served) => {
                let worth = worth(0);
                served.named(id);
                self.members.push(Member {
                    id,
                    served,
                    in_flight: 0,
                    idle_since: now,
                    frozen: false,
                    memory: UNMEASURED,
                    calls: 0,
                    worth,
                });
            }
            Made::Parked(parked) => {
                let worth = worth(parked.calls);
                self.waiters.push(Waiter { parked, idle_since: now, frozen: false, memory: UNMEASURED, worth });
            }
        }
    }
}

/// Whether a version's instances answer many calls each.
pub(super) fn is_served(code: &Code) -> bool {
    code.serving.contract != Contract::Command
}
