//! What happens to instances: they are made, end calls, are cleaned, and go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Effect, InstanceRef, Measured, Refusal, Resources, Start, State, VersionKey, Waiting};

/// How much longer after each failed start no instance is made in advance.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl<R: Resources> State<R> {
    /// An instance was made, or could not be made: the work that it was made for is refused then.
    pub(crate) fn started(
        &mut self,
        at: &InstanceRef,
        is_asked: bool,
        start: Start<R::Instance, R::Error>,
        now: Instant,
    ) -> Vec<Effect<R>> {
        self.creating -= 1;
        if is_asked {
            self.slots.give_back(&at.version.function);
        }
        let (at_ms, scores) = (self.ms(now), self.scores);
        let Some(entry) = self.versions.get_mut(&at.version) else {
            // The pool was closed meanwhile.
            let (Start::Made(instance) | Start::Ended(instance)) = start else { return Vec::new() };
            return vec![Effect::Destroy(instance)];
        };
        entry.starting -= 1;
        entry.asked -= u32::from(is_asked);
        let mut effects = Vec::new();
        match start {
            Start::Ended(instance) => effects.push(Effect::Destroy(instance)),
            Start::Made(instance) => {
                entry.failures = 0;
                entry.take_in(instance, at.id, &scores, (now, at_ms));
                // The call that it was made for is next: its slot must not go to another start before.
                self.serve_now(&at.version, &mut effects);
            }
            Start::Failed(error) => {
                entry.failures += 1;
                entry.again_at = now + RETRY_AFTER * entry.failures.min(60);
                if is_asked && let Some(waiting) = entry.waiting.pop_front() {
                    self.waiting -= 1;
                    effects.push(Effect::Refuse { work: waiting.work, why: Refusal::NotStarted(error) });
                }
            }
        }
        effects.extend(self.serve());
        effects
    }

    /// A start took this long.
    pub(crate) fn learn(&mut self, key: &VersionKey, start_ms: f64) {
        if let Some(entry) = self.versions.get_mut(key) {
            // A moving average: one slow start says little.
            entry.start_ms = 0.7 * entry.start_ms + 0.3 * start_ms;
        }
    }

    /// A call has ended in an instance, which may take another.
    pub(crate) fn finished(&mut self, at: &InstanceRef, now: Instant) -> Vec<Effect<R>> {
        let scores = self.scores;
        let Some(entry) = self.versions.get_mut(&at.version) else { return Vec::new() };
        let start_ms = entry.start_ms;
        let Some((index, instance)) = entry.find(at.id) else { return self.serve() };
        if instance.in_flight > 0 {
            instance.in_flight -= 1;
            instance.idle_since = now;
            instance.calls += 1;
            instance.score = scores.worth(instance.calls, start_ms, instance.memory);
            if instance.in_flight == 0 {
                self.slots.give_back(&at.version.function);
                if instance.is_closing {
                    entry.instances.swap_remove(index);
                }
            }
        }
        self.serve()
    }

    /// A call has left an instance, which takes no more; it keeps its slot while it works at others.
    pub(crate) fn retired(&mut self, at: &InstanceRef, now: Instant) -> Vec<Effect<R>> {
        let Some(entry) = self.versions.get_mut(&at.version) else { return Vec::new() };
        let Some((index, instance)) = entry.find(at.id) else { return self.serve() };
        instance.is_closing = true;
        if instance.in_flight == 0 {
            entry.instances.swap_remove(index);
            return self.serve();
        }
        self.finished(at, now)
    }

    /// An instance did not take the work that it was given: that is the next again, and the instance takes no more.
    pub(crate) fn returned(&mut self, at: &InstanceRef, waiting: Waiting<R::Work>, now: Instant) -> Vec<Effect<R>> {
        let mut effects = self.retired(at, now);
        if let Some(entry) = self.versions.get_mut(&at.version) {
            if entry.waiting.is_empty() {
                self.turns.push_back(Arc::clone(&at.version), entry.code.share.weight);
            }
            entry.waiting.push_front(waiting);
            self.waiting += 1;
        }
        effects.extend(self.serve());
        effects
    }

    /// A call of an instance waits for another function (`is_waiting`), or goes on: its slot is lent meanwhile.
    pub(crate) fn lends(&mut self, is_waiting: bool) -> Vec<Effect<R>> {
        if is_waiting {
            self.slots.lend();
            self.serve()
        } else {
            self.slots.take_back();
            Vec::new()
        }
    }

    /// An instance has ended, with whatever it worked at.
    pub(crate) fn gone(&mut self, at: &InstanceRef) -> Vec<Effect<R>> {
        let Some(entry) = self.versions.get_mut(&at.version) else { return Vec::new() };
        if let Some((index, _)) = entry.find(at.id)
            && entry.instances.swap_remove(index).in_flight > 0
        {
            self.slots.give_back(&at.version.function);
        }
        self.serve()
    }

    /// An instance that one attempt had alone is cleaned for the next: its slot is free, and it takes work when it is
    /// [`cleaned`](Self::cleaned).
    pub(crate) fn cleaning(&mut self, at: &InstanceRef) -> Vec<Effect<R>> {
        let Some(entry) = self.versions.get_mut(&at.version) else { return Vec::new() };
        if let Some((_, instance)) = entry.find(at.id)
            && std::mem::take(&mut instance.in_flight) > 0
        {
            instance.is_cleaning = true;
            self.slots.give_back(&at.version.function);
        }
        self.serve()
    }

    /// An instance is clean; `has_run` where a call had run in it.
    pub(crate) fn cleaned(&mut self, at: &InstanceRef, has_run: bool, now: Instant) -> Vec<Effect<R>> {
        let (at_ms, scores) = (self.ms(now), self.scores);
        if let Some(entry) = self.versions.get_mut(&at.version) {
            entry.cleaned(at.id, has_run, &scores, (now, at_ms));
        }
        self.serve()
    }

    /// What an idle instance holds, and whether it is frozen now.
    pub(crate) fn measured(&mut self, at: &InstanceRef, measured: Measured) {
        let Some(entry) = self.versions.get_mut(&at.version) else { return };
        if let Some((_, instance)) = entry.find(at.id)
            && instance.is_idle()
            && instance.idle_since == measured.idle_since
        {
            instance.memory = measured.memory.unwrap_or(instance.memory);
            instance.is_frozen = measured.is_frozen;
        }
    }
}
