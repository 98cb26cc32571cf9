//! Who gets which instance, and which one goes to make room.

use std::sync::Arc;

use faena_domain::Turn;

use super::{Effect, Resources, State, UNMEASURED, VersionEntry, VersionKey};

/// An instance that goes to make room.
struct Evicted<I> {
    instance: I,
    /// What it uses, and what it may use, in bytes.
    memory: u64,
    limit: u64,
}

impl<R: Resources> State<R> {
    /// Serves versions in turns, one call each, until none gets further.
    pub(super) fn serve(&mut self) -> Vec<Effect<R>> {
        let mut effects = Vec::new();
        // Nothing below touches the turns.
        let mut turns = std::mem::take(&mut self.turns);
        turns.weigh(|namespace, weight| self.slots.load(namespace, weight));
        turns.serve(|key, others_wait| {
            let has_moved = self.serve_one(key, others_wait, &mut effects);
            let entry = self.versions.get(key);
            let weight = entry.map_or(1, |entry| entry.code.share.weight);
            let waits = entry.is_some_and(|entry| !entry.waiting.is_empty());
            if waits && !has_moved {
                return Turn::Refused;
            }
            Turn::Served { load: self.slots.load(&key.function.namespace, weight), waits }
        });
        self.turns = turns;
        effects
    }

    /// Serves a version before all others.
    pub(super) fn serve_now(&mut self, key: &Arc<VersionKey>, effects: &mut Vec<Effect<R>>) {
        if !self.turns.remove(key) {
            return;
        }
        let others_wait = self.turns.others_wait(&key.function);
        self.serve_one(key, others_wait, effects);
        if let Some(entry) = self.versions.get(key).filter(|entry| !entry.waiting.is_empty()) {
            self.turns.push_back(Arc::clone(key), entry.code.share.weight);
        }
    }

    /// Gives the version's first call what there is; false where it can only wait.
    fn serve_one(&mut self, key: &Arc<VersionKey>, others_wait: bool, effects: &mut Vec<Effect<R>>) -> bool {
        let has_slot = self.slots.may_take(&key.function, others_wait);
        self.begin_in_instance(key, has_slot, effects) || (has_slot && self.begin_start(key, effects))
    }

    /// Begins the first call in an instance; one that works already takes no further slot.
    fn begin_in_instance(&mut self, key: &Arc<VersionKey>, has_slot: bool, effects: &mut Vec<Effect<R>>) -> bool {
        let Some(version) = self.versions.get_mut(key) else { return false };
        let parallel = version.code.serving.parallel();
        // The one used last is the warmest, and one that was never used the coldest.
        let best = version
            .instances
            .iter_mut()
            .filter(|entry| entry.has_place(parallel) && (entry.in_flight > 0 || has_slot))
            .max_by_key(|entry| (entry.calls > 0, entry.idle_since));
        let Some(entry) = best else { return false };
        let Some(waiting) = version.waiting.pop_front() else { return false };
        if entry.in_flight == 0 {
            self.slots.take(&key.function);
        }
        entry.in_flight += 1;
        entry.is_frozen = false;
        self.waiting -= 1;
        let at = super::InstanceRef { version: Arc::clone(key), id: entry.id };
        effects.push(Effect::Begin { at, instance: entry.instance.clone(), waiting });
        true
    }

    /// Begins to make an instance for the first call that none is being made for.
    fn begin_start(&mut self, key: &Arc<VersionKey>, effects: &mut Vec<Effect<R>>) -> bool {
        let Some(version) = self.versions.get(key) else { return false };
        let parallel = version.code.serving.parallel() as usize;
        // A call that waits for an instance under way needs no other.
        let cleaning = version.instances.iter().filter(|entry| entry.is_cleaning).count();
        let coming = version.asked as usize + cleaning;
        // More than may work at once would only wait.
        let is_wanted = version.waiting.len() > coming * parallel && version.count() < self.slots.total() as usize;
        // What hinders the one that holds all slots does not hinder who takes the reserve.
        let is_reserve = self.slots.reserve_is_for(&key.function);
        if !is_wanted || (self.creating >= self.policy.creations && !is_reserve) {
            return false;
        }
        if !self.make_room_in_namespace(key, effects) || (!self.make_room(effects) && !is_reserve) {
            return false;
        }
        let at = self.next_ref(key);
        let Some(version) = self.versions.get_mut(key) else { return false };
        version.starting += 1;
        version.asked += 1;
        version.mark_cold();
        self.slots.take(&key.function);
        self.creating += 1;
        effects.push(Effect::Start { at, code: Arc::clone(&version.code), is_asked: true });
        true
    }

    /// How many instances there are, and what they hold of memory.
    pub(super) fn held(&self) -> (usize, u64) {
        let entries = self.versions.values();
        entries.fold((0, 0), |(count, memory), entry| {
            let measured = entry.instances.iter().map(|entry| entry.memory).sum::<u64>();
            (count + entry.count(), memory + measured + u64::from(entry.starting) * UNMEASURED)
        })
    }

    /// Makes room for one more instance: those with the lowest score go. False where none can.
    pub(super) fn make_room(&mut self, effects: &mut Vec<Effect<R>>) -> bool {
        let (mut count, mut memory) = self.held();
        while count > 0 && (count >= self.policy.instances || memory + UNMEASURED > self.policy.memory.0) {
            let Some(evicted) = self.evict(|_| true) else { return false };
            count -= 1;
            memory = memory.saturating_sub(evicted.memory);
            effects.push(Effect::Destroy(evicted.instance));
        }
        true
    }

    /// Makes room for one more instance of a version within what its namespace may use: its idle instances with the lowest
    /// score go. False where none can.
    pub(super) fn make_room_in_namespace(&mut self, key: &Arc<VersionKey>, effects: &mut Vec<Effect<R>>) -> bool {
        let Some(version) = self.versions.get(key) else { return false };
        let Some(most) = version.code.share.memory_bytes else { return true };
        let namespace = &key.function.namespace;
        let of_namespace = self.versions.iter().filter(|(key, _)| key.function.namespace == *namespace);
        let used: u64 = of_namespace.map(|(_, entry)| entry.count() as u64 * entry.code.limits.memory.0).sum();
        let mut needed = (used + version.code.limits.memory.0).saturating_sub(most);
        let of_namespace = self.versions.iter().filter(|(key, _)| key.function.namespace == *namespace);
        let idle = |entry: &VersionEntry<R>| entry.instances.iter().filter(|entry| entry.is_idle()).count() as u64;
        let spare: u64 = of_namespace.map(|(_, entry)| idle(entry) * entry.code.limits.memory.0).sum();
        if needed > spare {
            // Nothing goes where that would not be enough.
            return false;
        }
        while needed > 0 {
            let Some(evicted) = self.evict(|key| key.function.namespace == *namespace) else { return false };
            needed = needed.saturating_sub(evicted.limit);
            effects.push(Effect::Destroy(evicted.instance));
        }
        true
    }

    /// Takes out the idle instance with the lowest score of those that may go.
    fn evict(&mut self, may_go: impl Fn(&VersionKey) -> bool) -> Option<Evicted<R::Instance>> {
        let versions = self.versions.iter().filter(|(key, _)| may_go(key));
        let candidates = versions.flat_map(|(key, version)| {
            let idle = version.instances.iter().enumerate().filter(|(_, entry)| entry.is_idle());
            idle.map(move |(index, entry)| (key, index, entry.score))
        });
        let (key, index, score) = candidates.min_by(|(_, _, a), (_, _, b)| a.total_cmp(b))?;
        let key = Arc::clone(key);
        self.scores.evicted(score);
        let version = self.versions.get_mut(&key)?;
        let entry = version.instances.swap_remove(index);
        Some(Evicted { instance: entry.instance, memory: entry.memory, limit: version.code.limits.memory.0 })
    }
}
