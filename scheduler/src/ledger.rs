//! What the calls of one worker take of its slots. Pure.

use std::collections::HashMap;

use faena_domain::{FunctionId, Slots, Version};
use faena_protocol::db::{HeldSlots, SlotsView, SparePlaces};
use faena_protocol::node::CallOf;

/// The slots of a worker, and its calls by version: calls of a version share an instance, up to its `parallel`, and an
/// instance that works has a slot.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    slots: Slots,
    calls: HashMap<(FunctionId, Version), Calls>,
}

#[derive(Clone, Debug)]
struct Calls {
    count: u32,
    parallel: u32,
}

impl Calls {
    /// The places that are free in instances which work.
    fn spare(&self) -> u32 {
        self.count.next_multiple_of(self.parallel) - self.count
    }
}

impl Ledger {
    pub(crate) fn new(slots: u32) -> Self {
        Self { slots: Slots::new(slots), calls: HashMap::new() }
    }

    pub(crate) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Whether a call has a place in an instance that works already.
    pub(crate) fn joins(&self, of: &CallOf) -> bool {
        self.calls.get(&(of.function_id(), of.version)).is_some_and(|calls| calls.spare() > 0)
    }

    /// Whether a call may begin.
    pub(crate) fn may_begin(&self, of: &CallOf, others_wait: bool) -> bool {
        self.joins(of) || self.slots.may_take(&of.function_id(), others_wait)
    }

    /// A call begins.
    pub(crate) fn begin(&mut self, of: &CallOf) {
        if !self.joins(of) {
            self.slots.take(&of.function_id());
        }
        let parallel = of.parallel.max(1);
        self.calls.entry((of.function_id(), of.version)).or_insert(Calls { count: 0, parallel }).count += 1;
    }

    /// A call has ended.
    pub(crate) fn end(&mut self, of: &CallOf) {
        let key = (of.function_id(), of.version);
        let Some(calls) = self.calls.get_mut(&key) else { return };
        calls.count -= 1;
        // As many instances as the calls fill: which of them a call was in is the worker's to know.
        if calls.count % calls.parallel == 0 {
            self.slots.give_back(&key.0);
        }
        if calls.count == 0 {
            self.calls.remove(&key);
        }
    }

    /// What db has to know of it to claim calls.
    pub(crate) fn view(&self) -> (SlotsView, Vec<SparePlaces>) {
        let spare = self.calls.iter().filter(|(_, calls)| calls.spare() > 0);
        let spare = spare.map(|((function, version), calls)| SparePlaces {
            function: function.clone(),
            version: *version,
            calls: calls.spare(),
        });
        (slots_view(&self.slots), spare.collect())
    }
}

/// What db has to know of slots.
pub(crate) fn slots_view(slots: &Slots) -> SlotsView {
    let held = slots.held().map(|(function, slots)| HeldSlots { function: function.clone(), slots });
    SlotsView { total: slots.total(), held: held.collect() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(function: &str, parallel: u32) -> CallOf {
        let function = function.parse().expect("a name");
        CallOf { namespace: faena_domain::Namespace::default(), function, version: Version(1), parallel, weight: 1 }
    }

    #[test]
    fn calls_of_a_version_share_an_instance() {
        let (mut ledger, server) = (Ledger::new(4), of("server", 16));
        for _ in 0..16 {
            assert!(ledger.may_begin(&server, true));
            ledger.begin(&server);
        }
        assert_eq!(ledger.slots().busy(), 1);
        assert!(!ledger.joins(&server) && ledger.may_begin(&server, true));
        ledger.begin(&server);
        assert_eq!((ledger.slots().busy(), ledger.view().1[0].calls), (2, 15));
        (0..17).for_each(|_| ledger.end(&server));
        assert_eq!((ledger.slots().busy(), ledger.calls.len()), (0, 0));
    }

    proptest! {
        /// Slots are as many as the calls of each version fill.
        #[test]
        fn slots_follow_the_calls(steps in prop::collection::vec((0..3_usize, any::<bool>()), 0..200)) {
            let works = [of("a", 1), of("b", 3), of("c", 16)];
            let (mut ledger, mut counts) = (Ledger::new(1000), [0_u32; 3]);
            for (index, begins) in steps {
                if begins {
                    ledger.begin(&works[index]);
                    counts[index] += 1;
                } else if counts[index] > 0 {
                    ledger.end(&works[index]);
                    counts[index] -= 1;
                }
                let filled = |(count, work): (&u32, &CallOf)| count.div_ceil(work.parallel);
                prop_assert_eq!(ledger.slots().busy(), counts.iter().zip(&works).map(filled).sum::<u32>());
                for (count, work) in counts.iter().zip(&works) {
                    prop_assert_eq!(ledger.joins(work), count % work.parallel != 0);
                }
            }
        }
    }
}
