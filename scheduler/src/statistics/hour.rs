//! The calls of one function in the last hour. Pure: minutes are given.

use std::collections::VecDeque;
use std::time::Duration;

use super::CallSample;

/// Minutes of an hour.
const MINUTES: u64 = 60;
/// Buckets of durations for each doubling: a quantile is off by a tenth at most.
const STEPS: f64 = 4.0;

/// What a function did in the last hour.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LastHour {
    /// Calls that ended.
    pub calls: u64,
    /// Of these, those that ended in FAILED, TIMEOUT or EXPIRED.
    pub errors: u64,
    /// Of these, those whose instance was made for them.
    pub cold: u64,
    /// What half of them took at most; none without calls.
    pub p50: Option<Duration>,
    /// What 99 of 100 took at most.
    pub p99: Option<Duration>,
}

/// The minutes of the last hour in which there were calls, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Hour(VecDeque<Minute>);

#[derive(Debug, Default)]
struct Minute {
    minute: u64,
    calls: u64,
    errors: u64,
    cold: u64,
    /// How many calls there are in each bucket that has some, sorted.
    durations: Vec<(u8, u32)>,
}

/// The bucket of a duration: its binary logarithm in quarters, from a microsecond on.
fn bucket(duration: Duration) -> u8 {
    let micros = duration.as_secs_f64() * 1e6;
    let steps = (micros.max(1.0).log2() * STEPS).round();
    // Within its range: it is at most 255, and not negative.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it was just bounded")]
    let bucket = steps.min(255.0) as u8;
    bucket
}

fn duration(bucket: u8) -> Duration {
    Duration::from_secs_f64((f64::from(bucket) / STEPS).exp2() / 1e6)
}

impl Hour {
    /// Counts a call that ended in a minute.
    pub(super) fn record(&mut self, minute: u64, sample: &CallSample) {
        while self.0.front().is_some_and(|oldest| oldest.minute + MINUTES <= minute) {
            self.0.pop_front();
        }
        if self.0.back().is_none_or(|newest| newest.minute < minute) {
            self.0.push_back(Minute { minute, ..Minute::default() });
        }
        let Some(current) = self.0.back_mut() else { return };
        current.calls += 1;
        current.errors += u64::from(sample.is_error);
        current.cold += u64::from(sample.is_cold);
        let bucket = bucket(sample.duration);
        match current.durations.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) => current.durations[at].1 = current.durations[at].1.saturating_add(1),
            Err(at) => current.durations.insert(at, (bucket, 1)),
        }
    }

    /// The last minute in which there was a call.
    pub(super) fn last(&self) -> u64 {
        self.0.back().map_or(0, |minute| minute.minute)
    }

    fn within(&self, minute: u64) -> impl Iterator<Item = &Minute> {
        self.0.iter().filter(move |part| part.minute + MINUTES > minute)
    }

    /// How many calls there were in the hour that ends with a minute.
    pub(super) fn calls(&self, minute: u64) -> u64 {
        self.within(minute).map(|part| part.calls).sum()
    }

    /// What there was in the hour that ends with a minute.
    pub(super) fn sum(&self, minute: u64) -> LastHour {
        let mut sum = LastHour::default();
        let mut durations = [0_u64; 256];
        for part in self.within(minute) {
            sum.calls += part.calls;
            sum.errors += part.errors;
            sum.cold += part.cold;
            part.durations.iter().for_each(|(bucket, count)| durations[usize::from(*bucket)] += u64::from(*count));
        }
        (sum.p50, sum.p99) = (quantile(&durations, 50), quantile(&durations, 99));
        sum
    }
}

/// What so many of a hundred took at most.
fn quantile(durations: &[u64; 256], percent: u64) -> Option<Duration> {
    let all: u64 = durations.iter().sum();
    let mut left = (all * percent).div_ceil(100);
    for (bucket, count) in (0..=u8::MAX).zip(durations) {
        left = left.saturating_sub(*count);
        if left == 0 && all > 0 {
            return Some(duration(bucket));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use faena_domain::plan::CallPath;

    use super::*;

    fn sample(micros: u64) -> CallSample {
        let duration = Duration::from_micros(micros);
        CallSample { path: CallPath::Direct, is_error: false, is_cold: false, duration }
    }

    #[test]
    fn quantiles_are_near_the_durations() {
        let mut hour = Hour::default();
        (1..=1000).for_each(|millis| hour.record(0, &sample(millis * 1000)));
        let sum = hour.sum(0);
        for (found, expected) in [(sum.p50, 0.5), (sum.p99, 0.99)] {
            let ratio = found.expect("calls").as_secs_f64() / expected;
            assert!((0.9..1.1).contains(&ratio), "{found:?} for {expected} s");
        }
        assert_eq!(Hour::default().sum(0), LastHour::default());
        assert_eq!(duration(bucket(Duration::ZERO)), Duration::from_micros(1));
    }

    #[test]
    fn what_is_older_than_an_hour_is_forgotten() {
        let mut hour = Hour::default();
        [0, 1, 59, 60].into_iter().for_each(|minute| hour.record(minute, &sample(1)));
        assert_eq!((hour.sum(60).calls, hour.0.len()), (3, 3));
        assert_eq!((hour.sum(118).calls, hour.sum(200).calls), (2, 0));
    }
}
