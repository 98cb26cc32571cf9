//! What a pool knows, and what it decides. It is told what happened and when, and replies with what is to be done; it holds
//! calls and instances without looking into them, and has no clock, task or lock.

mod entry;
mod events;
mod serve;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
mod tests;
mod upkeep;

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::keep_alive::GreedyDual;
use faena_domain::units::ByteSize;
use faena_domain::{CallNum, FairTurns, FunctionId, Preload, Slots, Version, Waits};
use faena_miniworker::InstanceId;
use faena_protocol::records::Code;
use parking_lot::Mutex;

use entry::VersionEntry;

/// Calls that may wait for an instance.
const MAX_WAITING: usize = 10_000;
/// What an instance counts for until its memory was measured, in bytes.
pub(crate) const UNMEASURED: u64 = 32 << 20;

/// What a pool is allowed, and how long it keeps what is idle.
#[derive(Clone, Debug)]
pub struct PoolPolicy {
    /// Instances that work at once.
    pub slots: u32,
    /// Instances that are made at once.
    pub creations: u32,
    /// The most instances, idle ones included.
    pub instances: usize,
    /// The memory of all of them; above it the one with the lowest eviction score goes.
    pub memory: ByteSize,
    /// How long an instance stays idle, where its function names no time.
    pub idle: Duration,
    /// How long an instance is idle before it is frozen.
    pub freeze_after: Duration,
    /// What waits for calls, where neither a function nor its runtime says so.
    pub preload: PreloadSetting,
}

/// What waits for calls on a node, as the node's setting says; else as its platform's does.
#[derive(Clone, Debug)]
pub struct PreloadSetting {
    of_node: Option<Preload>,
    of_platform: Arc<Mutex<Preload>>,
}

impl PreloadSetting {
    /// A node's setting, which may be absent. Until the platform has told its own, that is the default.
    pub fn new(of_node: Option<Preload>) -> Self {
        Self { of_node, of_platform: Arc::default() }
    }

    pub(crate) fn of_platform(&self, preload: Preload) {
        *self.of_platform.lock() = preload;
    }

    pub(crate) fn get(&self) -> Preload {
        self.of_node.unwrap_or_else(|| *self.of_platform.lock())
    }
}

/// One version of one function; one that was deleted and uploaded again is another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct VersionKey {
    pub(crate) function: FunctionId,
    version: Version,
    since: i64,
    /// The revision of the configuration that its instances have; 0 where they have nothing of it.
    config: i64,
}

impl Waits for VersionKey {
    fn function(&self) -> &FunctionId {
        &self.function
    }
}

impl VersionKey {
    pub(crate) fn of(code: &Code) -> Self {
        let config = code.config.as_ref().map_or(0, |config| config.revision);
        Self { function: code.function_id(), version: code.version, since: code.since, config }
    }

    /// Whether it is the same version with an earlier configuration.
    fn has_earlier_config_than(&self, other: &Self) -> bool {
        self.config < other.config && Self { config: other.config, ..self.clone() } == *other
    }

    /// Whether it is an earlier version of the same function, or the same with an earlier configuration.
    fn is_older_than(&self, other: &Self) -> bool {
        let age = |key: &Self| (key.since, key.version, key.config);
        self.function == other.function && age(self) < age(other)
    }
}

/// An instance, by its version and number.
#[derive(Clone, Debug)]
pub(crate) struct InstanceRef {
    pub(crate) version: Arc<VersionKey>,
    pub(crate) id: InstanceId,
}

/// What the state holds for its shell, without looking into it.
pub(crate) trait Resources {
    /// A call, or a request for an instance of one's own.
    type Work: Debug;
    /// A handle to an instance.
    type Instance: Clone + Debug;
    /// Why an instance could not be made.
    type Error: Debug;
}

/// Work that waits for an instance.
#[derive(Debug)]
pub(crate) struct Waiting<W> {
    pub(crate) work: W,
    /// Until when.
    pub(crate) until: Instant,
    /// The number of the call that it is; none where it cannot be cancelled here.
    pub(crate) num: Option<CallNum>,
    /// An instance is being made because of it.
    pub(crate) is_cold: bool,
}

/// Why work gets no instance.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal<E> {
    /// None came in time.
    Late,
    /// The one that was made for it could not be made.
    NotStarted(E),
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Effect<R: Resources> {
    /// Work begins in an instance.
    Begin { at: InstanceRef, instance: R::Instance, waiting: Waiting<R::Work> },
    /// An instance is to be made; `is_asked` where work waits for it.
    Start { at: InstanceRef, code: Arc<Code>, is_asked: bool },
    /// Work ends without an instance.
    Refuse { work: R::Work, why: Refusal<R::Error> },
    /// An idle instance is to be destroyed.
    Destroy(R::Instance),
    /// An idle instance is to be measured, and frozen where it has been idle for long.
    Measure { at: InstanceRef, instance: R::Instance, idle_since: Instant, freeze: bool },
    /// Something waits, and has to be judged from time to time.
    Watch,
}

/// What became of an instance that was being made.
#[derive(Debug)]
pub(crate) enum Start<I, E> {
    /// It can take work.
    Made(I),
    /// It had ended before the pool was told.
    Ended(I),
    /// It could not be made.
    Failed(E),
}

/// What was measured of an idle instance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Since when it was idle when that was decided: if it worked meanwhile, none of this counts.
    pub(crate) idle_since: Instant,
    /// In bytes; none where it cannot be told.
    pub(crate) memory: Option<u64>,
    pub(crate) is_frozen: bool,
}

/// What a pool holds, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Instances, those that are being made included.
    pub(crate) instances: u64,
    /// Slots that are held.
    pub(crate) working: u64,
    pub(crate) waiting: u64,
    pub(crate) frozen: u64,
    /// In bytes.
    pub(crate) memory: u64,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct State<R: Resources> {
    versions: HashMap<Arc<VersionKey>, VersionEntry<R>>,
    /// Versions for which work waits.
    turns: FairTurns<Arc<VersionKey>>,
    waiting: usize,
    /// The slots: those of instances that work, and of instances that are being made for a call.
    slots: Slots,
    creating: u32,
    next_id: u64,
    scores: GreedyDual,
    born: Instant,
    /// When db was asked last which versions have a minimum of instances.
    reconciled: Instant,
    is_closed: bool,
    policy: PoolPolicy,
}

impl<R: Resources> State<R> {
    pub(crate) fn new(policy: &PoolPolicy, now: Instant) -> Self {
        Self {
            versions: HashMap::new(),
            turns: FairTurns::default(),
            waiting: 0,
            slots: Slots::new(policy.slots),
            creating: 0,
            next_id: 1,
            scores: GreedyDual::default(),
            born: now,
            reconciled: now,
            is_closed: false,
            policy: policy.clone(),
        }
    }

    /// Takes in work for a version; gives it back where too much waits already.
    pub(crate) fn submit(
        &mut self,
        code: &Arc<Code>,
        waiting: Waiting<R::Work>,
        now: Instant,
    ) -> Result<Vec<Effect<R>>, R::Work> {
        if self.waiting >= MAX_WAITING || self.is_closed {
            return Err(waiting.work);
        }
        let key = self.entry_of(code, now);
        let at_ms = self.ms(now);
        let Some(entry) = self.versions.get_mut(&key) else { return Err(waiting.work) };
        let under_way = entry.under_way() + u32::try_from(entry.waiting.len()).unwrap_or(u32::MAX) + 1;
        entry.window.began(at_ms, under_way);
        if entry.waiting.is_empty() {
            self.turns.push_back(Arc::clone(&key), code.share.weight);
        }
        entry.waiting.push_back(waiting);
        self.waiting += 1;
        let mut effects = self.serve();
        if let Some(entry) = self.versions.get_mut(&key) {
            entry.mark_cold();
        }
        if self.waiting > 0 {
            effects.push(Effect::Watch);
        }
        Ok(effects)
    }

    /// Takes a call out that waits; otherwise tells the instances that may have it.
    pub(crate) fn cancel(&mut self, num: CallNum) -> Result<R::Work, Vec<R::Instance>> {
        for entry in self.versions.values_mut() {
            let index = entry.waiting.iter().position(|waiting| waiting.num == Some(num));
            if let Some(waiting) = index.and_then(|index| entry.waiting.remove(index)) {
                self.waiting -= 1;
                return Ok(waiting.work);
            }
        }
        Err(self.active())
    }

    /// The instances that work.
    pub(crate) fn active(&self) -> Vec<R::Instance> {
        let instances = self.versions.values().flat_map(|entry| &entry.instances);
        instances.filter(|entry| entry.in_flight > 0).map(|entry| entry.instance.clone()).collect()
    }

    /// Refuses what has waited for too long; tells whether something still waits.
    pub(crate) fn judge(&mut self, now: Instant) -> (Vec<Effect<R>>, bool) {
        let mut effects = Vec::new();
        for entry in self.versions.values_mut() {
            if entry.waiting.iter().all(|waiting| waiting.until > now) {
                continue;
            }
            let (late, waiting): (VecDeque<_>, _) = entry.waiting.drain(..).partition(|waiting| waiting.until <= now);
            entry.waiting = waiting;
            effects.extend(late.into_iter().map(|late| Effect::Refuse { work: late.work, why: Refusal::Late }));
        }
        self.waiting -= effects.len();
        self.turns.retain(|key| self.versions.get(key).is_some_and(|entry| !entry.waiting.is_empty()));
        effects.extend(self.serve());
        (effects, self.waiting > 0)
    }

    /// What it holds, in numbers.
    pub(crate) fn counts(&self) -> Counts {
        let (instances, memory) = self.held();
        let entries = self.versions.values().flat_map(|entry| &entry.instances);
        Counts {
            instances: instances as u64,
            working: u64::from(self.slots.busy()),
            waiting: self.waiting as u64,
            frozen: entries.filter(|entry| entry.is_frozen).count() as u64,
            memory,
        }
    }

    /// Whether work waits for instances, or for one that is being made.
    pub(crate) fn is_pressed(&self) -> bool {
        !self.is_closed && (self.waiting > 0 || self.creating > 0)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Takes nothing more in; hands out every instance, and drops what waits.
    pub(crate) fn close(&mut self) -> Vec<R::Instance> {
        self.is_closed = true;
        self.waiting = 0;
        self.turns = FairTurns::default();
        let entries = self.versions.drain().flat_map(|(_, entry)| entry.instances);
        entries.map(|entry| entry.instance).collect()
    }

    fn ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }

    /// The version's key, and an entry for it where there was none.
    fn entry_of(&mut self, code: &Arc<Code>, now: Instant) -> Arc<VersionKey> {
        let key = VersionKey::of(code);
        if let Some((known, _)) = self.versions.get_key_value(&key) {
            let known = Arc::clone(known);
            if let Some(entry) = self.versions.get_mut(&known)
                && !Arc::ptr_eq(&entry.code, code)
            {
                // A build that was tried again may have made something else of the same version.
                entry.code = Arc::clone(code);
            }
            return known;
        }
        // Nothing asks again for what has an earlier configuration.
        for (other, entry) in &mut self.versions {
            entry.is_superseded |= other.has_earlier_config_than(&key);
        }
        let key = Arc::new(key);
        self.versions.insert(Arc::clone(&key), VersionEntry::new(Arc::clone(code), now));
        key
    }

    fn next_ref(&mut self, version: &Arc<VersionKey>) -> InstanceRef {
        let id = InstanceId(self.next_id);
        self.next_id += 1;
        InstanceRef { version: Arc::clone(version), id }
    }
}
