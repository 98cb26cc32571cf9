//! What functions have done: totals for metrics, and the last hour for people. Kept in memory, from the start of this process.
//!
//! Each of [`LABELLED`] functions has totals of its own; the others share `other`, so that the number of time series is
//! bounded. A function that gives its label to a busier one, or is deleted, takes its totals with it: added to `other` they
//! would look like calls of this moment.

mod hour;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::call::StartKind;
use faena_domain::plan::CallPath;
use faena_domain::units::Millis;
use faena_domain::{Attempt, CallStatus, FunctionId};
use parking_lot::{Mutex, MutexGuard};

use hour::Hour;
pub use hour::LastHour;

/// Functions with totals of their own.
pub const LABELLED: usize = 200;
/// Functions whose last hour is known; beyond it the one that was called longest ago is forgotten.
const KNOWN: usize = 2000;
/// More than there are threads that own connections.
const SHARDS: usize = 16;
/// The upper bounds of the histogram of durations, in microseconds: 1, 2.5 and 5 for each power of ten.
pub const BUCKETS_US: [u64; 19] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
];

/// The end of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallSample {
    /// How it was executed.
    pub path: CallPath,
    /// FAILED, TIMEOUT or EXPIRED.
    pub is_error: bool,
    /// Its instance was made for it.
    pub is_cold: bool,
    /// What its last attempt took, with its wait for it.
    pub duration: Duration,
}

impl CallSample {
    /// A call that ended in a status after its last attempt, where it had one.
    pub fn new(path: CallPath, status: CallStatus, last: Option<&Attempt>) -> Self {
        let parts = last.map(|attempt| [attempt.queue_ms, attempt.start_ms, attempt.run_ms]).unwrap_or_default();
        Self {
            path,
            is_error: matches!(status, CallStatus::Failed | CallStatus::Timeout | CallStatus::Expired),
            // What never ran was not started either.
            is_cold: last.is_some_and(|attempt| attempt.start == StartKind::Cold && attempt.run_ms > Millis::default()),
            duration: parts.into_iter().map(Millis::duration).sum(),
        }
    }
}

/// The totals of a function on one call path, or of all that have none of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Calls that ended.
    pub calls: u64,
    /// Of these, those that ended in FAILED, TIMEOUT or EXPIRED.
    pub errors: u64,
    /// Of these, those whose instance was made for them.
    pub cold: u64,
    /// What all of them took, in microseconds.
    pub sum_us: u64,
    /// How many took up to each of [`BUCKETS_US`], and not up to the one before.
    pub buckets: [u64; BUCKETS_US.len()],
}

impl Totals {
    fn record(&mut self, sample: &CallSample) {
        let micros = u64::try_from(sample.duration.as_micros()).unwrap_or(u64::MAX);
        self.calls += 1;
        self.errors += u64::from(sample.is_error);
        self.cold += u64::from(sample.is_cold);
        self.sum_us = self.sum_us.saturating_add(micros);
        if let Some(count) = self.buckets.get_mut(BUCKETS_US.partition_point(|bound| *bound < micros)) {
            *count += 1;
        }
    }

    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.errors += other.errors;
        self.cold += other.cold;
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.buckets.iter_mut().zip(other.buckets).for_each(|(count, more)| *count += more);
    }
}

/// Totals by call path.
type ByPath = [Totals; 3];

fn place(path: CallPath) -> usize {
    match path {
        CallPath::Direct => 0,
        CallPath::Sync => 1,
        CallPath::Queued => 2,
    }
}

const PATHS: [CallPath; 3] = [CallPath::Direct, CallPath::Sync, CallPath::Queued];

/// What is known of one function.
#[derive(Debug, Default)]
struct Known {
    hour: Hour,
    /// Its totals, while it has its own.
    own: Option<Box<ByPath>>,
}

/// Totals under one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// The function; none for all others.
    pub function: Option<FunctionId>,
    /// How its calls were executed.
    pub path: CallPath,
    /// What they came to.
    pub totals: Totals,
}

/// All of it; clones share it.
#[derive(Clone, Debug)]
pub struct Statistics(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    begun: Instant,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    functions: HashMap<FunctionId, Known>,
    other: ByPath,
}

impl Default for Statistics {
    fn default() -> Self {
        Self(Arc::new(Shared { begun: Instant::now(), shards: Default::default() }))
    }
}

impl Statistics {
    fn minute(&self) -> u64 {
        self.0.begun.elapsed().as_secs() / 60
    }

    fn shard(&self, function: &FunctionId) -> MutexGuard<'_, Shard> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        function.hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or(0);
        self.0.shards[index].lock()
    }

    /// Counts a call that has ended.
    pub fn record(&self, function: &FunctionId, sample: &CallSample) {
        let minute = self.minute();
        self.shard(function).record(function, sample, minute);
    }

    /// A function's last hour, or what of it this process has seen.
    pub fn last_hour(&self, function: &FunctionId) -> LastHour {
        let minute = self.minute();
        self.shard(function).functions.get(function).map(|known| known.hour.sum(minute)).unwrap_or_default()
    }

    /// Forgets a function that was deleted.
    pub fn forget(&self, function: &FunctionId) {
        self.shard(function).functions.remove(function);
    }

    /// The totals of every label, once the busiest functions have theirs.
    pub fn series(&self) -> Vec<Series> {
        let minute = self.minute();
        let mut series = Vec::new();
        let mut other = ByPath::default();
        for shard in &self.0.shards {
            let mut shard = shard.lock();
            shard.label_busiest(minute);
            for (function, known) in &shard.functions {
                let own = known.own.iter().flat_map(|own| PATHS.into_iter().zip(own.iter().cloned()));
                let used = own.filter(|(_, totals)| totals.calls > 0);
                series.extend(used.map(|(path, totals)| Series { function: Some(function.clone()), path, totals }));
            }
            other.iter_mut().zip(&shard.other).for_each(|(sum, part)| sum.add(part));
        }
        let rest = PATHS.into_iter().zip(other).filter(|(_, totals)| totals.calls > 0);
        series.extend(rest.map(|(path, totals)| Series { function: None, path, totals }));
        series
    }
}

impl Shard {
    fn record(&mut self, function: &FunctionId, sample: &CallSample, minute: u64) {
        if !self.functions.contains_key(function) {
            self.make_room();
            let own = (self.labelled() < LABELLED / SHARDS).then(Box::default);
            self.functions.insert(function.clone(), Known { hour: Hour::default(), own });
        }
        let Some(known) = self.functions.get_mut(function) else { return };
        known.hour.record(minute, sample);
        known.own.as_deref_mut().unwrap_or(&mut self.other)[place(sample.path)].record(sample);
    }

    fn labelled(&self) -> usize {
        self.functions.values().filter(|known| known.own.is_some()).count()
    }

    fn make_room(&mut self) {
        if self.functions.len() < KNOWN / SHARDS {
            return;
        }
        let oldest = self.functions.iter().min_by_key(|(_, known)| known.hour.last());
        if let Some(function) = oldest.map(|(function, _)| function.clone()) {
            self.functions.remove(&function);
        }
    }

    fn label(&mut self, function: &FunctionId, is_labelled: bool) {
        if let Some(known) = self.functions.get_mut(function) {
            known.own = is_labelled.then(Box::default);
        }
    }

    /// Gives free labels to the busiest functions without one, and those of functions that were called least in the last hour
    /// to functions that were called twice as often.
    fn label_busiest(&mut self, minute: u64) {
        let calls = |(function, known): (&FunctionId, &Known)| (known.hour.calls(minute), function.clone());
        let (with, without): (Vec<_>, Vec<_>) = self.functions.iter().partition(|(_, known)| known.own.is_some());
        let mut least: Vec<_> = with.into_iter().map(calls).collect();
        let mut most: Vec<_> = without.into_iter().map(calls).collect();
        least.sort_unstable_by_key(|(calls, _)| *calls);
        most.sort_unstable_by_key(|(calls, _)| std::cmp::Reverse(*calls));
        let mut winners = most.into_iter();
        let free = (LABELLED / SHARDS).saturating_sub(least.len());
        winners.by_ref().take(free).for_each(|(_, function)| self.label(&function, true));
        for ((least, loser), (most, winner)) in least.iter().zip(winners) {
            if most <= 2 * least {
                return;
            }
            self.label(loser, false);
            self.label(&winner, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str) -> FunctionId {
        FunctionId { namespace: faena_domain::Namespace::default(), name: name.parse().expect("a name") }
    }

    fn sample(millis: u64) -> CallSample {
        CallSample {
            path: CallPath::Direct,
            is_error: millis > 1000,
            is_cold: false,
            duration: Duration::from_millis(millis),
        }
    }

    #[test]
    fn a_function_has_its_own_totals_by_path() {
        let statistics = Statistics::default();
        let dice = function("dice");
        statistics.record(&dice, &sample(3));
        statistics.record(&dice, &CallSample { path: CallPath::Queued, is_cold: true, ..sample(2000) });
        let series = statistics.series();
        let of =
            |path| series.iter().find(|one| one.path == path).map(|one| (one.function.clone(), one.totals.clone()));
        let (label, direct) = of(CallPath::Direct).expect("direct calls");
        assert_eq!((label, direct.calls, direct.errors, direct.sum_us), (Some(dice.clone()), 1, 0, 3000));
        assert_eq!(direct.buckets[5], 1, "up to 5 ms");
        let (_, queued) = of(CallPath::Queued).expect("queued calls");
        assert_eq!((queued.calls, queued.errors, queued.cold), (1, 1, 1));
        let hour = statistics.last_hour(&dice);
        assert_eq!((hour.calls, hour.errors, hour.cold), (2, 1, 1));
        statistics.forget(&dice);
        assert!(statistics.series().is_empty());
        assert_eq!(statistics.last_hour(&dice).calls, 0);
    }

    #[test]
    fn the_busiest_have_labels() {
        let statistics = Statistics::default();
        for index in 0..5 * KNOWN {
            statistics.record(&function(&format!("f{index}")), &sample(1));
        }
        assert!(statistics.series().len() <= LABELLED + 1);
        let busy = function("busy");
        (0..10).for_each(|_| statistics.record(&busy, &sample(1)));
        statistics.series();
        statistics.record(&busy, &sample(1));
        let own = statistics.series().into_iter().find(|one| one.function.as_ref() == Some(&busy));
        assert!(own.is_some_and(|own| own.totals.calls >= 1), "it has a label now");
    }
}
