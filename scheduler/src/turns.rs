//! Waiting calls, in an order that is fair to functions: each function has a queue, and the queues are served in turns. Pure.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Items of type `T`, each in the queue of an `F`.
#[derive(Debug)]
pub(crate) struct Turns<F, T> {
    queues: HashMap<F, VecDeque<T>>,
    /// The functions that have items; the next to be served comes first.
    order: VecDeque<F>,
}

impl<F, T> Default for Turns<F, T> {
    fn default() -> Self {
        Self { queues: HashMap::new(), order: VecDeque::new() }
    }
}

impl<F: Clone + Eq + Hash, T: Copy + PartialEq> Turns<F, T> {
    fn queue(&mut self, function: F) -> &mut VecDeque<T> {
        if !self.queues.contains_key(&function) {
            self.order.push_back(function.clone());
        }
        self.queues.entry(function).or_default()
    }

    /// Adds an item at the end of its queue.
    pub(crate) fn push_back(&mut self, function: F, item: T) {
        self.queue(function).push_back(item);
    }

    /// Adds an item at the beginning of its queue: it has waited before.
    pub(crate) fn push_front(&mut self, function: F, item: T) {
        self.queue(function).push_front(item);
    }

    /// Takes an item out, wherever it waits.
    pub(crate) fn remove(&mut self, function: &F, item: T) {
        let Some(queue) = self.queues.get_mut(function) else { return };
        queue.retain(|other| *other != item);
        if queue.is_empty() {
            self.queues.remove(function);
            self.order.retain(|other| other != function);
        }
    }

    /// Every item, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = T> {
        self.queues.values().flatten().copied()
    }

    /// Offers the first item of each queue, one queue after the other, until no queue's first item is taken. `take` is told
    /// whether other functions wait.
    pub(crate) fn serve(&mut self, mut take: impl FnMut(T, bool) -> bool) {
        let mut refused = 0;
        while refused < self.order.len() {
            let others_wait = self.order.len() > 1;
            let Some(function) = self.order.pop_front() else { return };
            let Some(queue) = self.queues.get_mut(&function) else { continue };
            let is_taken = queue.front().is_some_and(|item| take(*item, others_wait));
            if is_taken {
                queue.pop_front();
                refused = 0;
            } else {
                refused += 1;
            }
            if queue.is_empty() {
                self.queues.remove(&function);
            } else {
                self.order.push_back(function);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn queues_are_served_in_turns() {
        let mut turns = Turns::default();
        for (function, item) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5)] {
            turns.push_back(function, item);
        }
        turns.push_front("b", 6);
        let mut served = Vec::new();
        turns.serve(|item, others_wait| {
            served.push((item, others_wait));
            true
        });
        assert_eq!(served, [(1, true), (6, true), (5, true), (2, true), (4, true), (3, false)]);
        assert!(turns.queues.is_empty() && turns.order.is_empty());
    }

    #[test]
    fn what_is_refused_holds_up_its_own_queue_alone() {
        let mut turns = Turns::default();
        [("a", 1), ("a", 2), ("b", 3)].into_iter().for_each(|(function, item)| turns.push_back(function, item));
        let mut served = Vec::new();
        turns.serve(|item, _| {
            served.push(item);
            item != 1
        });
        assert_eq!(served, [1, 3, 1]);
        turns.remove(&"a", 1);
        turns.serve(|item, _| item == 2);
        assert_eq!(turns.iter().count(), 0);
    }

    proptest! {
        /// Every item is served once, those of a function in their order, and no function waits longer than a round.
        #[test]
        fn nothing_is_lost_or_overtaken(items in prop::collection::vec(0..5_u8, 0..60)) {
            let mut turns = Turns::default();
            items.iter().enumerate().for_each(|(index, function)| turns.push_back(*function, index));
            let mut served = Vec::new();
            turns.serve(|index, _| {
                served.push(index);
                true
            });
            let mut sorted = served.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..items.len()).collect::<Vec<_>>());
            for function in 0..5 {
                let own: Vec<usize> = served.iter().copied().filter(|index| items[*index] == function).collect();
                prop_assert!(own.is_sorted());
            }
        }
    }
}
