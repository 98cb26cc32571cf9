//! Where functions have run lately: their code lies there, and for a while an instance of them waits. It is bounded: functions
//! that nobody calls are forgotten.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::{FunctionId, Version};

/// Functions that are remembered before the older half is forgotten.
pub(super) const FUNCTIONS: usize = 20_000;
/// Workers that are remembered of one function, the latest ones.
const WORKERS: usize = 8;
/// How long an instance is taken to wait after a call: half of what it does unless settings say otherwise, for memory may be short.
const WAITS: Duration = Duration::from_secs(300);

/// A worker that has run a function.
#[derive(Clone, Debug)]
struct Place {
    worker: Arc<str>,
    version: Version,
    /// Instances that have ended their calls there and have got no other since.
    idle: u32,
    last: Instant,
}

/// What a worker's slots of a function have become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// An instance more works.
    Works,
    /// An instance waits that worked.
    Waits,
    /// As many work as before: calls share an instance.
    Same,
}

/// Where functions have run lately.
#[derive(Debug, Default)]
pub(super) struct Warm {
    recent: HashMap<FunctionId, Vec<Place>>,
    older: HashMap<FunctionId, Vec<Place>>,
}

impl Warm {
    /// A call of a version has begun, or has ended, on a worker.
    pub(super) fn ran(
        &mut self,
        (function, version): (&FunctionId, Version),
        worker: &Arc<str>,
        step: Step,
        now: Instant,
    ) {
        if !self.recent.contains_key(function) {
            if self.recent.len() >= FUNCTIONS {
                self.older = std::mem::take(&mut self.recent);
            }
            let before = self.older.remove(function).unwrap_or_default();
            self.recent.insert(function.clone(), before);
        }
        let Some(places) = self.recent.get_mut(function) else { return };
        let idle_after = |before: u32| match step {
            Step::Works => before.saturating_sub(1),
            Step::Waits => before + 1,
            Step::Same => before,
        };
        if let Some(place) = places.iter_mut().find(|place| place.worker == *worker) {
            let waits = place.version == version && now.saturating_duration_since(place.last) <= WAITS;
            let before = if waits { place.idle } else { 0 };
            (place.version, place.idle, place.last) = (version, idle_after(before), now);
            return;
        }
        if places.len() >= WORKERS
            && let Some(oldest) = places.iter().enumerate().min_by_key(|(_, place)| place.last).map(|(index, _)| index)
        {
            places.swap_remove(oldest);
        }
        places.push(Place { worker: Arc::clone(worker), version, idle: idle_after(0), last: now });
    }

    /// The workers that have run a version lately, and whether an instance of it is likely to wait there.
    pub(super) fn places(
        &self,
        function: &FunctionId,
        version: Version,
        now: Instant,
    ) -> impl Iterator<Item = (&Arc<str>, bool)> {
        let places = self.recent.get(function).or_else(|| self.older.get(function));
        let of_version = places.into_iter().flatten().filter(move |place| place.version == version);
        of_version.map(move |place| {
            let waits = place.idle > 0 && now.saturating_duration_since(place.last) <= WAITS;
            (&place.worker, waits)
        })
    }

    /// The workers where instances of a function are likely to wait, and how many; of its latest version there.
    pub(super) fn idle(&self, function: &FunctionId, now: Instant) -> impl Iterator<Item = (&Arc<str>, u32)> {
        let places = self.recent.get(function).or_else(|| self.older.get(function));
        let waits = move |place: &&Place| place.idle > 0 && now.saturating_duration_since(place.last) <= WAITS;
        places.into_iter().flatten().filter(waits).map(|place| (&place.worker, place.idle))
    }

    /// Functions that are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.recent.len() + self.older.len()
    }
}
