//! What passes between an instance and the world, counted for the calls that run.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use faena_domain::EgressUse;
use faena_domain::limits::MAX_CALL_LOG;
use faena_domain::log::{LogBuffer, LogStream};
use faena_domain::units::ByteSize;
use faena_gateway::Counters;
use parking_lot::Mutex;

use crate::capture;

/// Hosts that a call's record names.
const MAX_HOSTS: usize = 100;
/// Refusals that a call's log tells one by one.
const MAX_REFUSALS: usize = 20;

/// The account of one instance.
#[derive(Debug)]
pub(crate) struct Account {
    /// What the gateway counts.
    counters: OwnedFd,
    /// What the proxy has passed on.
    sent: AtomicU64,
    received: AtomicU64,
    connections: AtomicU64,
    /// What may pass until [`Account::renew`].
    budget: u64,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    hosts: BTreeSet<String>,
    refusals: LogBuffer,
    /// What is in there already.
    told: BTreeSet<String>,
    more_refusals: u64,
    /// What had passed when the budget was renewed.
    base: Counters,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            hosts: BTreeSet::new(),
            refusals: no_refusals(),
            told: BTreeSet::new(),
            more_refusals: 0,
            base: Counters::default(),
        }
    }
}

fn no_refusals() -> LogBuffer {
    LogBuffer::new(LogStream::Platform, MAX_CALL_LOG)
}

/// What a call has done, and what its log tells.
#[derive(Debug)]
pub(crate) struct EgressReport {
    /// None where nothing was reached.
    pub(crate) used: Option<EgressUse>,
    /// A line for each refusal.
    pub(crate) refusals: LogBuffer,
}

/// What a call's log says where its budget was spent.
fn spent(budget: u64) -> String {
    let most = ByteSize(budget);
    format!("egress refused: the {most} that may pass in one call have passed (setting egress_bytes)\n")
}

/// What a call's log says where a program without egress has tried to reach something.
const NO_ROUTE: &str = "a connection or a look-up found no route: this function has no network; faena.toml asks for one with \
                        [network] egress; see https://github.com/faena-dev/faena/blob/main/docs/how-to/egress.md\n";

impl EgressReport {
    /// Adds that remark.
    pub(crate) fn remark_no_route(&mut self) {
        self.refusals.push(capture::now(), NO_ROUTE.as_bytes());
    }
}

impl Default for EgressReport {
    fn default() -> Self {
        Self { used: None, refusals: no_refusals() }
    }
}

impl Account {
    pub(crate) fn new(budget: u64) -> io::Result<Self> {
        let none = AtomicU64::default;
        Ok(Self {
            counters: Counters::memory()?,
            sent: none(),
            received: none(),
            connections: none(),
            budget,
            seen: Mutex::default(),
        })
    }

    /// The memory that the gateway writes to.
    pub(super) fn counters(&self) -> &OwnedFd {
        &self.counters
    }

    /// Bytes that may pass in one call.
    pub(super) fn budget(&self) -> u64 {
        self.budget
    }

    /// All that has passed so far, whichever way it took.
    pub(crate) fn total(&self) -> Counters {
        let Counters { sent, received, connections } = Counters::read(&self.counters);
        Counters {
            sent: sent + self.sent.load(Ordering::Relaxed),
            received: received + self.received.load(Ordering::Relaxed),
            connections: connections + self.connections.load(Ordering::Relaxed),
        }
    }

    /// Bytes that may still pass.
    pub(super) fn left(&self) -> u64 {
        let base = self.seen.lock().base;
        self.budget.saturating_sub(self.total().since(base).bytes())
    }

    /// The proxy has passed something on: from the instance where `is_sent`.
    pub(super) fn proxied(&self, bytes: u64, is_sent: bool) {
        let counter = if is_sent { &self.sent } else { &self.received };
        counter.fetch_add(bytes, Ordering::Relaxed);
        let total = self.sent.load(Ordering::Relaxed) + self.received.load(Ordering::Relaxed);
        Counters::write_proxied(&self.counters, total);
    }

    /// The proxy has opened a connection.
    pub(super) fn proxied_connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A host was reached.
    pub(super) fn reached(&self, host: String) {
        let hosts = &mut self.seen.lock().hosts;
        if hosts.len() < MAX_HOSTS {
            hosts.insert(host);
        }
    }

    /// Something was refused for want of a rule.
    pub(super) fn refused(&self, why: impl Display) {
        let mut seen = self.seen.lock();
        let line = why.to_string();
        if seen.told.contains(&line) {
            return;
        }
        if seen.told.len() < MAX_REFUSALS {
            seen.refusals.push(capture::now(), format!("{line}\n").as_bytes());
            seen.told.insert(line);
        } else {
            seen.more_refusals += 1;
        }
    }

    /// What has passed since a reading; where no other call runs, what follows begins a new account.
    pub(crate) fn report(&self, since: Counters, is_alone: bool) -> EgressReport {
        let total = self.total();
        let mut seen = self.seen.lock();
        let Counters { sent, received, connections } = total.since(since);
        let hosts: Vec<String> = seen.hosts.iter().cloned().collect();
        let is_used = connections > 0 || sent > 0 || received > 0;
        let used = is_used.then_some(EgressUse { hosts, connections, sent_bytes: sent, received_bytes: received });
        let mut refusals = seen.refusals.take();
        seen.told.clear();
        let more = std::mem::take(&mut seen.more_refusals);
        if more > 0 {
            refusals.push(capture::now(), format!("egress: {more} refusals more\n").as_bytes());
        }
        if total.since(seen.base).bytes() >= self.budget {
            refusals.push(capture::now(), spent(self.budget).as_bytes());
        }
        if is_alone {
            seen.hosts.clear();
        }
        EgressReport { used, refusals }
    }

    /// What may pass is as at the beginning.
    pub(super) fn renew(&self) {
        let total = self.total();
        let mut seen = self.seen.lock();
        seen.base = total;
        if seen.hosts.len() == MAX_HOSTS {
            seen.hosts.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_passed_is_told_once_and_bounded() {
        let account = Account::new(1000).unwrap();
        let start = account.total();
        account.proxied_connection();
        account.proxied(300, true);
        account.proxied(500, false);
        (0..2 * MAX_HOSTS).for_each(|number| account.reached(format!("{number}.example")));
        (0..2 * MAX_REFUSALS).for_each(|number| account.refused(format!("refusal {number}")));
        account.refused("refusal 0");
        assert_eq!(account.left(), 200);
        let report = account.report(start, true);
        let used = report.used.unwrap();
        assert_eq!((used.sent_bytes, used.received_bytes, used.connections), (300, 500, 1));
        assert_eq!(used.hosts.len(), MAX_HOSTS);
        let refusals = String::from_utf8(report.refusals.into_bytes()).unwrap();
        assert_eq!(refusals.lines().count(), MAX_REFUSALS + 1);
        assert!(refusals.ends_with("\negress: 20 refusals more\n"), "{refusals}");
        account.proxied(200, true);
        let refusals = String::from_utf8(account.report(start, true).refusals.into_bytes()).unwrap();
        assert!(refusals.contains("may pass in one call have passed"), "{refusals}");
        account.renew();
        assert_eq!(account.left(), 1000);
        let next = account.report(account.total(), true);
        assert!(next.used.is_none() && next.refusals.is_empty());
    }
}
