//! How many calls a namespace makes in a minute, and at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::{Namespace, Quota};
use parking_lot::Mutex;

const MINUTE: Duration = Duration::from_secs(60);

/// The calls of one minute.
#[derive(Clone, Copy, Debug)]
struct Minute {
    since: Instant,
    calls: u32,
    anonymous: u32,
}

/// Counts calls of namespaces that have a quota.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<HashMap<Namespace, Minute>>);

impl Rates {
    /// Counts a call, of at most so many; callers without a credential make half of them at most.
    ///
    /// # Errors
    /// How long the minute still is.
    pub(super) fn count(
        &self,
        namespace: &Namespace,
        (is_anonymous, most): (bool, u32),
        now: Instant,
    ) -> Result<(), Duration> {
        let mut rates = self.0.lock();
        let minute = match rates.get_mut(namespace) {
            Some(minute) => minute,
            None => rates.entry(namespace.clone()).or_insert(Minute { since: now, calls: 0, anonymous: 0 }),
        };
        let age = now.duration_since(minute.since);
        if age >= MINUTE {
            *minute = Minute { since: now, calls: 0, anonymous: 0 };
        }
        if minute.calls >= most || (is_anonymous && minute.anonymous >= Quota::anonymous(most)) {
            return Err(MINUTE.saturating_sub(age));
        }
        minute.calls += 1;
        minute.anonymous += u32::from(is_anonymous);
        Ok(())
    }

    /// The calls of this minute.
    pub(super) fn counted(&self, namespace: &Namespace, now: Instant) -> u32 {
        let rates = self.0.lock();
        rates.get(namespace).filter(|minute| now.duration_since(minute.since) < MINUTE).map_or(0, |minute| minute.calls)
    }
}

/// Calls under way.
#[derive(Clone, Copy, Debug, Default)]
struct UnderWay {
    calls: u32,
    anonymous: u32,
}

type UnderWayOf = Arc<Mutex<HashMap<Namespace, UnderWay>>>;

/// Counts calls under way of namespaces that have a quota.
#[derive(Debug, Default)]
pub(super) struct Concurrency(UnderWayOf);

/// A place among the calls of a namespace, until it is dropped.
#[derive(Debug)]
pub(crate) struct CallPlace {
    namespace: Namespace,
    is_anonymous: bool,
    under_way: UnderWayOf,
}

impl Concurrency {
    /// A place among so many, of which callers without a credential have half at most. None where all are taken.
    pub(super) fn take(&self, namespace: &Namespace, is_anonymous: bool, most: u32) -> Option<CallPlace> {
        let mut under_way = self.0.lock();
        let of = under_way.entry(namespace.clone()).or_default();
        if of.calls >= most || (is_anonymous && of.anonymous >= Quota::anonymous(most)) {
            return None;
        }
        of.calls += 1;
        of.anonymous += u32::from(is_anonymous);
        Some(CallPlace { namespace: namespace.clone(), is_anonymous, under_way: Arc::clone(&self.0) })
    }

    /// The calls under way.
    pub(super) fn counted(&self, namespace: &Namespace) -> u32 {
        self.0.lock().get(namespace).map_or(0, |of| of.calls)
    }
}

impl Drop for CallPlace {
    fn drop(&mut self) {
        let mut under_way = self.under_way.lock();
        let Some(of) = under_way.get_mut(&self.namespace) else { return };
        of.calls -= 1;
        of.anonymous -= u32::from(self.is_anonymous);
        if of.calls == 0 {
            under_way.remove(&self.namespace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_so_many_calls_and_strangers_half_of_them() {
        let (rates, namespace, now) = (Rates::default(), Namespace::default(), Instant::now());
        let count = |is_anonymous, now| rates.count(&namespace, (is_anonymous, 10), now);
        assert_eq!((0..20).filter(|_| count(true, now).is_ok()).count(), 5);
        assert_eq!((0..20).filter(|_| count(false, now).is_ok()).count(), 5, "what strangers have made counts");
        assert_eq!((count(false, now), rates.counted(&namespace, now)), (Err(MINUTE), 10));
        let other = "other".parse().unwrap();
        assert!((0..10).all(|_| rates.count(&other, (false, 10), now).is_ok()));
        assert!(rates.count(&other, (true, 10), now).is_err(), "nothing is left");
        let later = now + MINUTE;
        assert_eq!(rates.counted(&namespace, later), 0);
        assert!(count(false, later).is_ok());
        assert!(rates.count(&"third".parse().unwrap(), (false, 1), now).is_ok());
    }

    #[test]
    fn a_place_is_free_again_when_its_call_has_ended() {
        let (concurrency, namespace) = (Concurrency::default(), Namespace::default());
        let stranger = concurrency.take(&namespace, true, 2).unwrap();
        assert!(concurrency.take(&namespace, true, 2).is_none());
        let known = concurrency.take(&namespace, false, 2).unwrap();
        assert!(concurrency.take(&namespace, false, 2).is_none() && concurrency.counted(&namespace) == 2);
        assert!(concurrency.take(&"other".parse().unwrap(), false, 1).is_some());
        drop((stranger, known));
        assert!(concurrency.counted(&namespace) == 0 && concurrency.0.lock().is_empty());
    }
}
