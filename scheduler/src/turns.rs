//! Waiting calls, in an order that is fair to namespaces and to functions: each function has a queue, and the queues are served in
//! turns ([`FairTurns`]). Pure.

use std::collections::{HashMap, VecDeque};

use faena_domain::{FairTurns, FunctionId, Namespace, Turn};

/// Items of type `T`, each in the queue of a function.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    queues: HashMap<FunctionId, Queue<T>>,
    /// The functions that have items.
    order: FairTurns<FunctionId>,
}

/// The items of a function, and the weight of its namespace.
#[derive(Debug)]
struct Queue<T> {
    items: VecDeque<T>,
    weight: u32,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { queues: HashMap::new(), order: FairTurns::default() }
    }
}

impl<T: Copy + PartialEq> Turns<T> {
    fn queue(&mut self, function: FunctionId, weight: u32) -> &mut VecDeque<T> {
        if !self.queues.contains_key(&function) {
            self.order.push_back(function.clone(), weight);
        }
        let queue = self.queues.entry(function).or_insert(Queue { items: VecDeque::new(), weight });
        queue.weight = weight;
        &mut queue.items
    }

    /// Adds an item at the end of its queue.
    pub(crate) fn push_back(&mut self, function: FunctionId, weight: u32, item: T) {
        self.queue(function, weight).push_back(item);
    }

    /// Adds an item at the beginning of its queue: it has waited before.
    pub(crate) fn push_front(&mut self, function: FunctionId, weight: u32, item: T) {
        self.queue(function, weight).push_front(item);
    }

    /// Takes an item out, wherever it waits.
    pub(crate) fn remove(&mut self, function: &FunctionId, item: T) {
        let Some(queue) = self.queues.get_mut(function) else { return };
        queue.items.retain(|other| *other != item);
        if queue.items.is_empty() {
            self.queues.remove(function);
            self.order.remove(function);
        }
    }

    /// Every item, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = T> {
        self.queues.values().flat_map(|queue| &queue.items).copied()
    }

    /// Offers first items of queues in turns, until none is taken. `take` is told whether other functions wait; `load` is what a
    /// namespace has for its weight.
    pub(crate) fn serve<C>(
        &mut self,
        context: &mut C,
        load: impl Fn(&C, &Namespace, u32) -> u64,
        mut take: impl FnMut(&mut C, T, bool) -> bool,
    ) {
        self.order.weigh(|namespace, weight| load(context, namespace, weight));
        let queues = &mut self.queues;
        self.order.serve(|function, others_wait| {
            let Some(queue) = queues.get_mut(function) else { return Turn::Served { load: 0, waits: false } };
            let weight = queue.weight;
            let is_taken = queue.items.front().is_some_and(|item| take(context, *item, others_wait));
            if !is_taken {
                return Turn::Refused;
            }
            queue.items.pop_front();
            let waits = !queue.items.is_empty();
            if !waits {
                queues.remove(function);
            }
            Turn::Served { load: load(context, &function.namespace, weight), waits }
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn function(name: &str) -> FunctionId {
        FunctionId { namespace: Namespace::default(), name: name.parse().unwrap() }
    }

    fn serve<T: Copy + PartialEq>(turns: &mut Turns<T>, mut take: impl FnMut(T, bool) -> bool) {
        turns.serve(&mut (), |(), _, _| 0, |(), item, others_wait| take(item, others_wait));
    }

    #[test]
    fn queues_are_served_in_turns() {
        let mut turns = Turns::default();
        for (name, item) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5)] {
            turns.push_back(function(name), 1, item);
        }
        turns.push_front(function("b"), 1, 6);
        let mut served = Vec::new();
        serve(&mut turns, |item, others_wait| {
            served.push((item, others_wait));
            true
        });
        assert_eq!(served, [(1, true), (6, true), (5, true), (2, true), (4, true), (3, false)]);
        assert!(turns.queues.is_empty() && turns.order.is_empty());
    }

    #[test]
    fn what_is_refused_holds_up_its_own_queue_alone() {
        let mut turns = Turns::default();
        for (name, item) in [("a", 1), ("a", 2), ("b", 3)] {
            turns.push_back(function(name), 1, item);
        }
        let mut served = Vec::new();
        serve(&mut turns, |item, _| {
            served.push(item);
            item != 1
        });
        assert_eq!(served, [1, 3, 1]);
        turns.remove(&function("a"), 1);
        serve(&mut turns, |item, _| item == 2);
        assert_eq!(turns.iter().count(), 0);
    }

    proptest! {
        /// Every item is served once, those of a function in their order, and no function waits longer than a round.
        #[test]
        fn nothing_is_lost_or_overtaken(items in prop::collection::vec(0..5_u8, 0..60)) {
            let mut turns = Turns::default();
            items.iter().enumerate().for_each(|(index, name)| turns.push_back(function(&name.to_string()), 1, index));
            let mut served = Vec::new();
            serve(&mut turns, |index, _| {
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
