//! What a pool does about instances that nobody uses: which are made beforehand, which rest, which go.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::keep_alive::mix;
use faena_domain::{FunctionName, Namespace, Preload, Reuse};
use faena_protocol::records::Code;

use super::{Action, Key, Leaving, Pooled, State};
use crate::pool::metrics::Metrics;

/// How long an instance of a version waits that is not a function's newest any more.
const SUPERSEDED: Duration = Duration::from_secs(10);

impl State {
    /// What waits without a use: measures, freezes, lets go, and makes what should wait before it is asked for.
    pub(in crate::pool) fn keep(&mut self, now: Instant, metrics: &Metrics) -> Vec<Action> {
        let mut actions = Vec::new();
        let targets = self.targets(now);
        let (default_idle, freeze_after) = (self.config.idle, self.config.freeze_after);
        for (key, pooled) in &mut self.versions {
            let target = targets.iter().find(|(found, _)| found == key).map_or(0, |(_, target)| *target);
            let keep = target.max(pooled.minimum(now)) as usize;
            let idle = pooled.code.serving.idle.map_or(default_idle, faena_domain::units::Span::duration);
            // Hardly anybody calls what is deleted, or has a successor.
            let idle = if pooled.is_superseded { idle.min(SUPERSEDED) } else { idle };
            pooled.let_go(now, idle, keep, &mut actions);
            pooled.rest(now, freeze_after);
        }
        for (key, target) in targets {
            self.refill(&key, target, &mut actions);
        }
        let unused = |pooled: &Pooled| pooled.instances() == 0 && pooled.taken == 0 && pooled.waiting.is_empty();
        let at = self.ms(now);
        let by_code = &mut self.by_code;
        self.versions.retain(|_, pooled| {
            let keeps = !unused(pooled)
                || (pooled.code.serving.minimum > 0 && !pooled.is_superseded)
                || pooled.window.calls(at) > 0;
            if !keeps {
                by_code.remove(&(Arc::as_ptr(&pooled.code) as usize));
            }
            keeps
        });
        self.measure(metrics);
        actions
    }

    /// How many instances of each version should wait or work.
    fn targets(&mut self, now: Instant) -> Vec<(Arc<Key>, u32)> {
        let at = self.ms(now);
        let mut loads = Vec::new();
        for (key, pooled) in &mut self.versions {
            let serving = &pooled.code.serving;
            let preloads = serving.preload.unwrap_or(self.config.preload) == Preload::Function;
            if preloads && !pooled.is_superseded && now >= pooled.again_at {
                let parallel = serving.parallel();
                loads.push((Arc::clone(key), (pooled.window.calls(at), pooled.window.peak(at).div_ceil(parallel))));
            }
        }
        let shares: Vec<(u64, u32)> = loads.iter().map(|(_, load)| *load).collect();
        let shared = mix(&shares, self.config.slots);
        let mut targets: Vec<(Arc<Key>, u32)> = loads.into_iter().map(|(key, _)| key).zip(shared).collect();
        for (key, pooled) in &self.versions {
            let minimum = pooled.minimum(now);
            match targets.iter_mut().find(|(found, _)| found == key) {
                Some((_, target)) => *target = (*target).max(minimum),
                None if minimum > 0 => targets.push((Arc::clone(key), minimum)),
                None => {}
            }
        }
        targets
    }

    /// Begins what is missing, one creation at a time beside those that calls wait for.
    fn refill(&mut self, key: &Arc<Key>, target: u32, actions: &mut Vec<Action>) {
        loop {
            let Some(pooled) = self.versions.get(key) else { return };
            let there = pooled.instances() + pooled.taken as usize;
            // What serves once is made anew beside the one that works.
            let spent = if pooled.code.serving.reuse == Reuse::Never { pooled.taken as usize } else { 0 };
            let is_enough = there - spent >= target as usize;
            if self.closed || is_enough || self.creating >= self.config.creations || !self.make_room(actions) {
                return;
            }
            let Some(pooled) = self.versions.get_mut(key) else { return };
            pooled.starting += 1;
            self.creating += 1;
            actions.push(Action::Start { key: Arc::clone(key), code: Arc::clone(&pooled.code), asked: false });
        }
    }

    /// A version may be called soon: what waits for it whether or not calls come is made.
    pub(in crate::pool) fn expect(&mut self, code: &Arc<Code>, now: Instant) -> Vec<Action> {
        let key = self.key(code);
        for (other, pooled) in &mut self.versions {
            if other.is_older_than(&key) {
                pooled.is_superseded = true;
            }
        }
        self.replenish(&key, now)
    }

    /// These are all versions of which instances wait whether or not calls come, as they were when db was asked: nothing
    /// waits any longer of those that are not among them. Returns those that nobody has expected yet.
    pub(in crate::pool) fn reconcile(&mut self, codes: Vec<Code>, asked: Instant) -> Vec<Code> {
        if asked < self.reconciled {
            return Vec::new();
        }
        self.reconciled = asked;
        let current: HashSet<Key> = codes.iter().map(Key::of).collect();
        for (key, pooled) in &mut self.versions {
            // One that came meanwhile was not known then.
            if pooled.code.serving.minimum > 0 && pooled.known < asked {
                pooled.is_superseded = !current.contains(&**key);
            }
        }
        codes.into_iter().filter(|code| !self.versions.contains_key(&Key::of(code))).collect()
    }

    /// A function is deleted.
    pub(in crate::pool) fn forget(&mut self, namespace: &Namespace, function: &FunctionName) {
        for (key, pooled) in &mut self.versions {
            pooled.is_superseded |= key.function.0 == *namespace && key.function.1 == *function;
        }
    }

    /// Something was used up or given back: what should wait is made at once.
    pub(in crate::pool) fn replenish(&mut self, key: &Arc<Key>, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some((_, target)) = self.targets(now).into_iter().find(|(found, _)| found == key) {
            self.refill(key, target, &mut actions);
        }
        actions
    }
}

impl Pooled {
    /// Lets go of what nobody has called for too long, but for as many as should wait.
    fn let_go(&mut self, now: Instant, idle: Duration, keep: usize, actions: &mut Vec<Action>) {
        let is_old = |since: Instant| now.saturating_duration_since(since) > idle;
        let mut spare = (self.members.len() + self.waiters.len()).saturating_sub(keep);
        let old = self.members.extract_if(.., |member| {
            let goes = spare > 0 && member.in_flight == 0 && is_old(member.idle_since);
            spare -= usize::from(goes);
            goes
        });
        actions.extend(old.map(|member| Action::Destroy(Leaving::Served(member.served))));
        let mut spare = (self.members.len() + self.waiters.len()).saturating_sub(keep);
        let old = self.waiters.extract_if(.., |waiter| {
            let goes = spare > 0 && is_old(waiter.idle_since);
            spare -= usize::from(goes);
            goes
        });
        actions.extend(old.map(|waiter| Action::Destroy(Leaving::Parked(waiter.parked))));
    }

    /// Measures what waits, and freezes what has waited for a while.
    fn rest(&mut self, now: Instant, freeze_after: Duration) {
        let is_calm = |since: Instant| now.saturating_duration_since(since) > freeze_after;
        for member in self.members.iter_mut().filter(|member| member.in_flight == 0 && !member.frozen) {
            member.memory = member.served.memory().unwrap_or(member.memory);
            member.frozen = is_calm(member.idle_since) && member.served.freeze();
        }
        for waiter in self.waiters.iter_mut().filter(|waiter| !waiter.frozen) {
            waiter.memory = waiter.parked.memory().unwrap_or(waiter.memory);
            waiter.frozen = is_calm(waiter.idle_since) && waiter.parked.freeze();
        }
    }
}
