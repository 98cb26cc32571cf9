//! Rate limits of sign-ins: they slow down those who guess secrets, and nobody else.
//!
//! Each attempt counts until it has succeeded, so that many at once count too.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use faena_domain::Namespace;
use parking_lot::Mutex;

/// Failures with one account from one network.
const OF_PAIR: (u32, Duration) = (10, Duration::from_secs(60));
/// Failures from one network.
const OF_NETWORK: (u32, Duration) = (100, Duration::from_secs(60));
/// Failures with one account from networks that it has not been used from.
const OF_ACCOUNT: (u32, Duration) = (100, Duration::from_secs(3600));
/// Subjects that are counted; beyond it those whose time is over are forgotten, and where none is, all are.
const MOST: usize = 50_000;
/// Networks of an account that are remembered.
const NETWORKS: usize = 100;

/// Where attempts come from: an IPv4 address, or 64 bits of an IPv6 address, which one subscriber has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Network(IpAddr);

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// The account that was named: its namespace, and its name or id in lower case.
type Name = (Namespace, String);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Pair(Name, Network),
    Network(Network),
    /// Sign-ins with a provider: they are no guesses of secrets, and do not count as such.
    Provider(Network),
    Account(Name),
}

impl Subject {
    const fn bound(&self) -> (u32, Duration) {
        match self {
            Self::Pair(..) => OF_PAIR,
            Self::Network(_) | Self::Provider(_) => OF_NETWORK,
            Self::Account(_) => OF_ACCOUNT,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Count {
    failures: u32,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    counts: HashMap<Subject, Count>,
    /// From where accounts have been used.
    known: HashMap<Name, HashSet<Network>>,
}

/// Counts attempts that failed.
#[derive(Debug, Default)]
pub(crate) struct SignInLimits(Mutex<State>);

/// An attempt; it has failed, unless it is said to have succeeded.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    limits: &'a SignInLimits,
    subjects: Vec<Subject>,
    /// The account that it names.
    of: Option<(Name, Network)>,
}

/// Forgets the older half.
fn forget_oldest(counts: &mut HashMap<Subject, Count>) {
    let mut begun: Vec<Instant> = counts.values().map(|count| count.since).collect();
    let middle = begun.len() / 2;
    let (_, middle, _) = begun.select_nth_unstable(middle);
    let middle = *middle;
    counts.retain(|_, count| count.since > middle);
}

impl SignInLimits {
    /// Counts an attempt.
    ///
    /// # Errors
    /// After how long another is permitted, where too many have failed.
    pub(crate) fn attempt(
        &self,
        namespace: &Namespace,
        account: &str,
        network: Network,
        now: Instant,
    ) -> Result<Attempt<'_>, Duration> {
        let name: Name = (namespace.clone(), account.to_ascii_lowercase());
        let is_new = !self.0.lock().known.get(&name).is_some_and(|networks| networks.contains(&network));
        let mut subjects = vec![Subject::Pair(name.clone(), network), Subject::Network(network)];
        subjects.extend(is_new.then(|| Subject::Account(name.clone())));
        self.count(subjects, Some((name, network)), now)
    }

    /// Counts an attempt that names no account.
    ///
    /// # Errors
    /// As [`Self::attempt`].
    pub(crate) fn attempt_from(&self, network: Network, now: Instant) -> Result<Attempt<'_>, Duration> {
        self.count(vec![Subject::Provider(network)], None, now)
    }

    fn count(
        &self,
        subjects: Vec<Subject>,
        of: Option<(Name, Network)>,
        now: Instant,
    ) -> Result<Attempt<'_>, Duration> {
        let mut state = self.0.lock();
        if state.counts.len() >= MOST {
            state.counts.retain(|subject, count| now.duration_since(count.since) < subject.bound().1);
            if state.counts.len() >= MOST {
                forget_oldest(&mut state.counts);
            }
        }
        for subject in &subjects {
            let (most, period) = subject.bound();
            if let Some(count) = state.counts.get_mut(subject) {
                let age = now.duration_since(count.since);
                if age >= period {
                    *count = Count { failures: 0, since: now };
                } else if count.failures >= most {
                    return Err(period - age);
                }
            }
        }
        for subject in &subjects {
            state.counts.entry(subject.clone()).or_insert(Count { failures: 0, since: now }).failures += 1;
        }
        drop(state);
        Ok(Attempt { limits: self, subjects, of })
    }
}

impl Attempt<'_> {
    /// Nothing was tried: it does not count.
    pub(crate) fn withdraw(self) {
        let mut state = self.limits.0.lock();
        for subject in self.subjects {
            if let Some(count) = state.counts.get_mut(&subject) {
                count.failures = count.failures.saturating_sub(1);
            }
        }
    }

    /// The secret was right.
    pub(crate) fn succeeded(self) {
        let (limits, of) = (self.limits, self.of.clone());
        self.withdraw();
        let Some((name, network)) = of else { return };
        let mut state = limits.0.lock();
        if state.known.len() >= MOST {
            state.known.clear();
        }
        let networks = state.known.entry(name).or_default();
        if networks.len() >= NETWORKS {
            networks.clear();
        }
        networks.insert(network);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn fails(limits: &SignInLimits, account: &str, from: &str, now: Instant) -> bool {
        limits.attempt(&Namespace::default(), account, network(from), now).is_ok()
    }

    #[test]
    fn who_guesses_is_slowed_and_nobody_else() {
        let (limits, now) = (SignInLimits::default(), Instant::now());
        assert_eq!((0..60).filter(|_| fails(&limits, "ann", "192.0.2.1", now)).count(), 10);
        assert!(!fails(&limits, "ANN", "192.0.2.1", now), "case does not matter");
        assert!(fails(&limits, "bob", "192.0.2.1", now), "another account");
        assert!(fails(&limits, "ann", "192.0.2.2", now), "another address");
        assert!(fails(&limits, "ann", "192.0.2.1", now + Duration::from_secs(60)), "a minute later");
    }

    #[test]
    fn a_network_has_a_bound_over_all_accounts() {
        let (limits, now) = (SignInLimits::default(), Instant::now());
        let tried = (0..200).filter(|number| fails(&limits, &number.to_string(), "2001:db8::1", now));
        assert_eq!(tried.count(), 100);
        assert!(!fails(&limits, "ann", "2001:db8::ffff", now), "one subscriber has 64 bits");
        assert!(fails(&limits, "ann", "2001:db8:0:1::1", now));
    }

    #[test]
    fn an_account_that_many_guess_is_open_to_who_used_it_before() {
        let (limits, now) = (SignInLimits::default(), Instant::now());
        limits.attempt(&Namespace::default(), "ann", network("192.0.2.1"), now).unwrap().succeeded();
        let tried = (0..150).filter(|number| fails(&limits, "ann", &format!("198.51.100.{number}"), now));
        assert_eq!(tried.count(), 100);
        assert!(fails(&limits, "ann", "192.0.2.1", now));
    }

    #[test]
    fn what_succeeds_does_not_count() {
        let (limits, now) = (SignInLimits::default(), Instant::now());
        for _ in 0..50 {
            limits.attempt(&Namespace::default(), "ann", network("192.0.2.1"), now).unwrap().succeeded();
        }
        assert!(fails(&limits, "ann", "192.0.2.1", now));
    }
}
