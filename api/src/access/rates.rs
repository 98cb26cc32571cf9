//! How many calls a namespace makes in a minute.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use faena_domain::Namespace;
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
    /// Counts a call, of at most so many; callers without a credential have a bound of their own.
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
        let counted = if is_anonymous { minute.anonymous } else { minute.calls };
        if counted >= most {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_so_many_calls_and_strangers_half_of_them() {
        let (rates, namespace, now) = (Rates::default(), Namespace::default(), Instant::now());
        let count = |is_anonymous, now| {
            let most = if is_anonymous { 5 } else { 10 };
            rates.count(&namespace, (is_anonymous, most), now)
        };
        assert_eq!((0..20).filter(|_| count(true, now).is_ok()).count(), 5);
        assert_eq!((0..20).filter(|_| count(false, now).is_ok()).count(), 5, "what strangers have made counts");
        assert_eq!((count(false, now), rates.counted(&namespace, now)), (Err(MINUTE), 10));
        let later = now + MINUTE;
        assert_eq!(rates.counted(&namespace, later), 0);
        assert!(count(false, later).is_ok());
        assert!(rates.count(&"other".parse().unwrap(), (false, 1), now).is_ok());
    }
}
