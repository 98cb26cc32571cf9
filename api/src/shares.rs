//! A bound that many share, of which no function may hold more than a part.

use std::collections::HashMap;
use std::sync::Arc;

use faena_domain::{FunctionId, FunctionName, Namespace};
use parking_lot::Mutex;

/// The part of a shared bound that one function may hold: a quarter.
const PART: u64 = 4;

/// Functions without a share that are remembered, to save inserting them again.
const REMEMBERED: usize = 1024;

/// A bound, and who holds how much of it.
#[derive(Clone, Debug)]
pub(crate) struct Shares {
    total: u64,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    all: u64,
    by_function: HashMap<FunctionId, u64>,
}

/// So much of a bound; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    held: Arc<Mutex<Held>>,
    of: Option<FunctionId>,
    amount: u64,
}

impl Shares {
    pub(crate) fn new(total: u64) -> Self {
        Self { total, held: Arc::default() }
    }

    /// A share; it counts against a function's part where one is named.
    pub(crate) fn take(&self, of: Option<(&Namespace, &FunctionName)>, amount: u64) -> Option<Share> {
        let of = of.filter(|_| amount > 0).map(|(namespace, function)| FunctionId::new(namespace, function));
        let mut held = self.held.lock();
        let all = held.all.checked_add(amount).filter(|all| *all <= self.total)?;
        if let Some(holder) = &of
            && !held.add(holder, amount, self.part())
        {
            return None;
        }
        held.all = all;
        drop(held);
        Some(Share { held: Arc::clone(&self.held), of, amount })
    }

    /// What one function may hold.
    fn part(&self) -> u64 {
        (self.total / PART).max(1)
    }
}

impl Held {
    /// Counts an amount as a function's; false where it would hold more than this.
    fn add(&mut self, holder: &FunctionId, amount: u64, most: u64) -> bool {
        match self.by_function.get_mut(holder) {
            Some(holds) if holds.saturating_add(amount) > most => return false,
            Some(holds) => *holds += amount,
            None if amount > most => return false,
            None => drop(self.by_function.insert(holder.clone(), amount)),
        }
        true
    }
}

impl Share {
    /// Counts a share as a function's from now on; false where the function would hold more than its part.
    pub(crate) fn assign(&mut self, shares: &Shares, namespace: &Namespace, function: &FunctionName) -> bool {
        if self.amount == 0 || self.of.is_some() {
            return true;
        }
        let holder = FunctionId::new(namespace, function);
        let is_counted = self.held.lock().add(&holder, self.amount, shares.part());
        self.of = is_counted.then_some(holder);
        is_counted
    }

    /// Adds another share of the same holder.
    pub(crate) fn merge(&mut self, mut other: Self) {
        self.amount += std::mem::take(&mut other.amount);
        self.of = self.of.take().or_else(|| other.of.take());
        other.of = None;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        held.all = held.all.saturating_sub(self.amount);
        if let Some(holder) = &self.of
            && let Some(holds) = held.by_function.get_mut(holder)
        {
            *holds = holds.saturating_sub(self.amount);
            if *holds == 0 && held.by_function.len() > REMEMBERED {
                held.by_function.remove(holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_function_holds_more_than_a_quarter() {
        let (shares, namespace) = (Shares::new(8), Namespace::default());
        let take = |name: &str, amount| shares.take(Some((&namespace, &name.parse().expect("a name"))), amount);
        let first = take("a", 2).expect("a quarter");
        assert!(take("A", 1).is_none(), "it is the same function");
        let others: Vec<_> = ["b", "c", "d"].into_iter().map(|name| take(name, 2).expect("a quarter")).collect();
        assert!(take("e", 1).is_none() && shares.take(None, 1).is_none(), "all of it is held");
        drop(first);
        assert!(take("e", 2).is_some());
        drop(others);
        let held = shares.held.lock();
        assert_eq!((held.all, held.by_function.values().sum::<u64>()), (0, 0));
    }

    #[test]
    fn functions_without_a_share_are_forgotten_beyond_a_bound() {
        let (shares, namespace) = (Shares::new(8), Namespace::default());
        for number in 0..2 * REMEMBERED {
            let function = format!("f{number}").parse().expect("a name");
            assert!(shares.take(Some((&namespace, &function)), 2).is_some());
        }
        assert!(shares.held.lock().by_function.len() <= REMEMBERED);
    }
}
