//! A token bucket: so many at once, and so many a second after that.

use std::time::Instant;

/// What is left of a rate.
#[derive(Debug)]
pub(crate) struct Bucket {
    burst: f64,
    rate: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(burst: u32, rate: u32, now: Instant) -> Self {
        Self { burst: f64::from(burst), rate: f64::from(rate), left: f64::from(burst), at: now }
    }

    /// Takes one; false where none is left.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        (self.left, self.at) = ((self.left + grown).min(self.burst), now);
        let is_there = self.left >= 1.0;
        if is_there {
            self.left -= 1.0;
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_and_then_a_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, 10, start);
        assert_eq!((0..5).filter(|_| bucket.take(start)).count(), 3);
        let later = start + Duration::from_millis(250);
        assert_eq!((0..5).filter(|_| bucket.take(later)).count(), 2);
        assert_eq!((0..9).filter(|_| bucket.take(later + Duration::from_secs(60))).count(), 3);
    }
}
