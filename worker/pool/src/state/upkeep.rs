//! What a pool does about idle instances: which are made in advance, which are frozen, which go.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::keep_alive::mix;
use faena_domain::{FunctionId, Preload};
use faena_protocol::records::Code;

use super::{Effect, Resources, State, VersionKey};

/// How long an instance stays idle whose version is not its function's newest any more.
const SUPERSEDED_IDLE: Duration = Duration::from_secs(10);

impl<R: Resources> State<R> {
    /// Looks after idle instances: has them measured and frozen, lets them go, and makes what should be there in advance.
    pub(crate) fn keep(&mut self, now: Instant) -> Vec<Effect<R>> {
        let mut effects = Vec::new();
        let targets = self.targets(now);
        let (default_idle, freeze_after) = (self.policy.idle, self.policy.freeze_after);
        for (key, entry) in &mut self.versions {
            let target = targets.iter().find(|(found, _)| found == key).map_or(0, |(_, target)| *target);
            let keep = target.max(entry.minimum(now)) as usize;
            let idle = entry.code.serving.idle.map_or(default_idle, faena_domain::units::Span::duration);
            // What is deleted, or has a successor, is hardly called.
            let idle = if entry.is_superseded { idle.min(SUPERSEDED_IDLE) } else { idle };
            entry.let_go(now, idle, keep, &mut effects);
            entry.rest(key, now, freeze_after, &mut effects);
        }
        for (key, target) in targets {
            self.refill(&key, target, &mut effects);
        }
        let at_ms = self.ms(now);
        self.versions.retain(|_, entry| {
            let is_used = entry.count() > 0 || !entry.waiting.is_empty();
            is_used || (entry.code.serving.minimum > 0 && !entry.is_superseded) || entry.window.calls(at_ms) > 0
        });
        effects
    }

    /// How many instances each version should have.
    fn targets(&mut self, now: Instant) -> Vec<(Arc<VersionKey>, u32)> {
        let at_ms = self.ms(now);
        let mut loads = Vec::new();
        for (key, entry) in &mut self.versions {
            let serving = &entry.code.serving;
            let preloads = serving.preload.unwrap_or_else(|| self.policy.preload.get()) == Preload::Function;
            if preloads && !entry.is_superseded && now >= entry.again_at {
                let parallel = serving.parallel();
                loads.push((Arc::clone(key), (entry.window.calls(at_ms), entry.window.peak(at_ms).div_ceil(parallel))));
            }
        }
        let weights: Vec<(u64, u32)> = loads.iter().map(|(_, load)| *load).collect();
        let shares = mix(&weights, self.policy.slots);
        let mut targets: Vec<(Arc<VersionKey>, u32)> = loads.into_iter().map(|(key, _)| key).zip(shares).collect();
        for (key, entry) in &self.versions {
            let minimum = entry.minimum(now);
            match targets.iter_mut().find(|(found, _)| found == key) {
                Some((_, target)) => *target = (*target).max(minimum),
                None if minimum > 0 => targets.push((Arc::clone(key), minimum)),
                None => {}
            }
        }
        targets
    }

    /// Begins to make what is missing, as far as creations beside those that calls wait for are permitted.
    fn refill(&mut self, key: &Arc<VersionKey>, target: u32, effects: &mut Vec<Effect<R>>) {
        loop {
            let Some(entry) = self.versions.get(key) else { return };
            let is_enough = entry.coming() >= target as usize;
            if self.is_closed || is_enough || self.creating >= self.policy.creations {
                return;
            }
            if !self.make_room_in_namespace(key, effects) || !self.make_room(effects) {
                return;
            }
            let at = self.next_ref(key);
            let Some(entry) = self.versions.get_mut(key) else { return };
            entry.starting += 1;
            self.creating += 1;
            effects.push(Effect::Start { at, code: Arc::clone(&entry.code), is_asked: false });
        }
    }

    /// A version may be called soon: what should be there whether or not calls come is made.
    pub(crate) fn expect(&mut self, code: &Arc<Code>, now: Instant) -> Vec<Effect<R>> {
        let key = self.entry_of(code, now);
        for (other, entry) in &mut self.versions {
            if other.is_older_than(&key) {
                entry.is_superseded = true;
            }
        }
        self.replenish(&key, now)
    }

    /// These are all versions with a minimum of instances, as they were when db was asked: no minimum is kept any longer of
    /// those that are not among them. Returns those that were not expected yet.
    pub(crate) fn reconcile(&mut self, codes: Vec<Code>, asked: Instant) -> Vec<Code> {
        if asked < self.reconciled {
            return Vec::new();
        }
        self.reconciled = asked;
        let current: HashSet<VersionKey> = codes.iter().map(VersionKey::of).collect();
        for (key, entry) in &mut self.versions {
            // One that came meanwhile was not known then.
            if entry.code.serving.minimum > 0 && entry.known < asked {
                entry.is_superseded = !current.contains(&**key);
            }
        }
        codes.into_iter().filter(|code| !self.versions.contains_key(&VersionKey::of(code))).collect()
    }

    /// A function is deleted.
    pub(crate) fn forget(&mut self, function: &FunctionId) {
        for (key, entry) in &mut self.versions {
            entry.is_superseded |= key.function == *function;
        }
    }

    /// Something was used up or given back: what should be there is made at once.
    pub(crate) fn replenish(&mut self, key: &VersionKey, now: Instant) -> Vec<Effect<R>> {
        let mut effects = Vec::new();
        if let Some((key, target)) = self.targets(now).into_iter().find(|(found, _)| **found == *key) {
            self.refill(&key, target, &mut effects);
        }
        effects
    }
}
