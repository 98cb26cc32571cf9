//! Which instances wait, and which goes first when there is no room: pure arithmetic, for workers and the simulator.

use std::collections::VecDeque;

/// How far back calls are counted, in milliseconds.
pub const WINDOW_MS: u64 = 300_000;
/// How finely.
const BUCKET_MS: u64 = 5_000;

/// What counts of one version, in the last [`WINDOW_MS`].
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// The number of each bucket that has calls, with what it counted.
    buckets: VecDeque<(u64, Bucket)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    calls: u64,
    peak: u32,
}

impl Window {
    fn bucket(&mut self, now_ms: u64) -> &mut Bucket {
        let number = now_ms / BUCKET_MS;
        self.forget(now_ms);
        if self.buckets.back().is_none_or(|(last, _)| *last < number) {
            self.buckets.push_back((number, Bucket::default()));
        }
        // What was pushed, or was there.
        let last = self.buckets.len() - 1;
        &mut self.buckets[last].1
    }

    fn forget(&mut self, now_ms: u64) {
        let first = (now_ms / BUCKET_MS).saturating_sub(WINDOW_MS / BUCKET_MS);
        while self.buckets.front().is_some_and(|(number, _)| *number < first) {
            self.buckets.pop_front();
        }
    }

    /// Counts a call that began while this many, itself included, were under way.
    pub fn began(&mut self, now_ms: u64, under_way: u32) {
        let bucket = self.bucket(now_ms);
        bucket.calls += 1;
        bucket.peak = bucket.peak.max(under_way);
    }

    /// Calls in the window.
    pub fn calls(&mut self, now_ms: u64) -> u64 {
        self.forget(now_ms);
        self.buckets.iter().map(|(_, bucket)| bucket.calls).sum()
    }

    /// The most that were under way at once.
    pub fn peak(&mut self, now_ms: u64) -> u32 {
        self.forget(now_ms);
        self.buckets.iter().map(|(_, bucket)| bucket.peak).max().unwrap_or(0)
    }
}

/// Shares out places between versions by how often each was called, and none more than it had under way at its peak:
/// the most used hold the most. What division leaves over goes to the largest remainders (Hamilton's method), so the
/// sum never passes `places`.
pub fn mix(loads: &[(u64, u32)], places: u32) -> Vec<u32> {
    let calls: u64 = loads.iter().map(|(calls, _)| calls).sum();
    if calls == 0 {
        return vec![0; loads.len()];
    }
    let share = |(calls_of, _): &(u64, u32)| u128::from(*calls_of) * u128::from(places);
    let whole = |load: &(u64, u32)| u32::try_from(share(load) / u128::from(calls)).unwrap_or(u32::MAX);
    let mut places_of: Vec<u32> = loads.iter().map(whole).collect();
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(share(&loads[*index]) % u128::from(calls)), *index));
    let left = places - places_of.iter().sum::<u32>();
    for index in order.into_iter().take(left as usize) {
        places_of[index] += 1;
    }
    places_of.iter().zip(loads).map(|(places, (_, peak))| (*places).min(*peak)).collect()
}

/// Greedy-dual with frequency and size (Cherkasova, HPL-98-69R1; for keep-alive: Fuerst and Sharma, `FaasCache`,
/// ASPLOS 2021): what costs much to start, was called often and holds little is worth most, and worth is relative to a
/// clock that rises with every eviction, so that what was worth much once does not stay for ever.
#[derive(Clone, Copy, Debug, Default)]
pub struct GreedyDual {
    clock: f64,
}

impl GreedyDual {
    /// What an instance is worth when it was used just now and has answered so many calls; one that was made in advance
    /// counts as if it had answered one. Among a version's instances the one that was used last is used next, so the calls
    /// of an instance tell how often as many are wanted at once, which the version's calls do not. Their logarithm is
    /// taken: with the count itself, what was called much once stays for too long (`make keepalive`).
    #[expect(clippy::cast_precision_loss, reason = "counts and bytes of one node")]
    pub fn worth(&self, calls: u64, start_ms: f64, bytes: u64) -> f64 {
        const MB: f64 = 1024.0 * 1024.0;
        let frequency = (calls.max(1) as f64).ln_1p();
        self.clock + frequency * start_ms / (bytes as f64 / MB).max(1.0)
    }

    /// Something of this worth was evicted.
    pub fn evicted(&mut self, worth: f64) {
        self.clock = self.clock.max(worth);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let mut window = Window::default();
        window.began(0, 3);
        window.began(WINDOW_MS / 2, 1);
        assert_eq!((window.calls(WINDOW_MS / 2), window.peak(WINDOW_MS / 2)), (2, 3));
        let later = WINDOW_MS + BUCKET_MS;
        assert_eq!((window.calls(later), window.peak(later)), (1, 1));
    }

    #[test]
    fn the_most_used_hold_the_most() {
        assert_eq!(mix(&[(10, 9), (20, 9), (10, 9)], 4), [1, 2, 1]);
        assert_eq!(mix(&[(1, 1), (1, 1), (1, 1)], 4), [1, 1, 1]);
        assert_eq!(mix(&[(0, 0)], 4), [0]);
    }

    #[test]
    fn the_cheapest_to_lose_goes_first_and_the_clock_rises() {
        let mut dual = GreedyDual::default();
        let (rare, often) = (dual.worth(1, 10.0, 64 << 20), dual.worth(100, 10.0, 64 << 20));
        let (large, slow) = (dual.worth(100, 10.0, 640 << 20), dual.worth(100, 100.0, 64 << 20));
        assert!(large < rare && rare < often && often < slow);
        assert!(dual.worth(0, 10.0, 64 << 20).total_cmp(&rare).is_eq());
        dual.evicted(often);
        assert!(dual.worth(1, 10.0, 64 << 20) > often);
    }

    proptest! {
        #[test]
        fn no_mix_passes_what_there_is(loads in proptest::collection::vec((0u64..1000, 0u32..10), 0..20), places in 0u32..50) {
            let shared = mix(&loads, places);
            prop_assert!(shared.iter().sum::<u32>() <= places);
            prop_assert!(shared.iter().zip(&loads).all(|(places, (_, peak))| places <= peak));
        }
    }
}
