//! A worker's slots: how many instances may work at once, and how many of them one function may hold.
//!
//! A function may hold all slots but one while another function waits. Where one function holds all of them, because no
//! other one waited when it took them, a function that holds none may take one more slot, the *reserve*: a call that takes hours must
//! not keep every other function waiting until it ends. So a worker works at its slots and one more at most.

use std::collections::HashMap;
use std::hash::Hash;

use crate::identity::MAX_DEPTH;

/// Slots that may be lent, however few there are: one chain of calls needs as many as it is deep.
const MOST_LENT: u32 = MAX_DEPTH;
/// Functions without a slot that are remembered, to save inserting them again.
const REMEMBERED: usize = 1024;

/// How many slots there are, and which function holds how many.
#[derive(Clone, Debug)]
pub struct Slots<F> {
    /// All, without those that are lent.
    own: u32,
    lent: u32,
    busy: u32,
    held: HashMap<F, u32>,
    /// Functions that hold some.
    holders: u32,
}

impl<F: Clone + Eq + Hash> Slots<F> {
    /// So many slots, all free.
    pub fn new(total: u32) -> Self {
        Self { own: total, lent: 0, busy: 0, held: HashMap::new(), holders: 0 }
    }

    /// All slots, with those that are lent and without the reserve.
    pub fn total(&self) -> u32 {
        self.own + self.lent.min(self.own.max(MOST_LENT))
    }

    /// Those that are held; one more than all where the reserve is.
    pub fn busy(&self) -> u32 {
        self.busy
    }

    /// Those that are not held, without the reserve.
    pub fn free(&self) -> u32 {
        self.total().saturating_sub(self.busy)
    }

    /// Those that a function holds.
    pub fn held_by(&self, function: &F) -> u32 {
        self.held.get(function).copied().unwrap_or(0)
    }

    /// The functions that hold slots, and how many.
    pub fn held(&self) -> impl Iterator<Item = (&F, u32)> {
        self.held.iter().map(|(function, held)| (function, *held)).filter(|(_, held)| *held > 0)
    }

    /// The only function that holds slots, where it holds all of them: the reserve is free for every other one.
    pub fn only_holder(&self) -> Option<&F> {
        let is_full_by_one = self.holders == 1 && self.busy == self.total();
        self.held.iter().find(|(_, held)| is_full_by_one && **held > 0).map(|(function, _)| function)
    }

    /// Whether a function may take one more, while others wait for one or not.
    pub fn may_take(&self, function: &F, others_wait: bool) -> bool {
        if self.busy < self.total() {
            return !others_wait || self.held_by(function) < self.most_while_others_wait();
        }
        self.busy == self.total() && self.holders == 1 && self.held_by(function) == 0
    }

    /// The most that one function may hold while another waits.
    pub fn most_while_others_wait(&self) -> u32 {
        self.total().saturating_sub(1).max(1)
    }

    /// A function holds one more. Whether it may is the caller's to ask.
    pub fn take(&mut self, function: &F) {
        self.busy += 1;
        match self.held.get_mut(function) {
            Some(held) => {
                self.holders += u32::from(*held == 0);
                *held += 1;
            }
            None => {
                self.holders += 1;
                self.held.insert(function.clone(), 1);
            }
        }
    }

    /// What holds a slot waits for another call, and lends the slot: there is one more until [`Slots::take_back`]. Without that,
    /// functions that call each other would wait for slots that they hold themselves. As many again may be lent as there are,
    /// or what one chain of calls needs: what is waited for may end at once, and all who lent go on then.
    pub fn lend(&mut self) {
        self.lent += 1;
    }

    /// A slot that was lent is its holder's again. More may be held than there are, until one is given back.
    pub fn take_back(&mut self) {
        self.lent = self.lent.saturating_sub(1);
    }

    /// A function holds one less.
    pub fn give_back(&mut self, function: &F) {
        let Some(held) = self.held.get_mut(function).filter(|held| **held > 0) else { return };
        *held -= 1;
        self.busy -= 1;
        if *held == 0 {
            self.holders -= 1;
            if self.held.len() > REMEMBERED {
                self.held.retain(|_, held| *held > 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(total: u32, by: &[(&'static str, u32)]) -> Slots<&'static str> {
        let mut slots = Slots::new(total);
        for (function, count) in by {
            (0..*count).for_each(|_| slots.take(function));
        }
        slots
    }

    #[test]
    fn a_slot_that_is_lent_is_one_more() {
        let mut slots = held(2, &[("a", 1), ("b", 1)]);
        assert!(!slots.may_take(&"a", false));
        slots.lend();
        assert!(slots.may_take(&"a", false));
        slots.take(&"a");
        slots.take_back();
        assert!(!slots.may_take(&"a", false) && slots.free() == 0);
        slots.give_back(&"a");
        assert!(!slots.may_take(&"b", false));
        slots.give_back(&"a");
        assert!(slots.may_take(&"b", false));
        (0..100).for_each(|_| slots.lend());
        assert_eq!(slots.total(), 2 + MAX_DEPTH);
        (0..100).for_each(|_| slots.take_back());
        assert_eq!(slots.total(), 2);
    }

    #[test]
    fn the_last_slot_is_not_for_the_function_that_has_all_others() {
        let slots = held(4, &[("a", 3)]);
        assert!(slots.may_take(&"a", false) && !slots.may_take(&"a", true));
        assert!(slots.may_take(&"b", true) && slots.may_take(&"b", false));
        let slots = held(4, &[("a", 2)]);
        assert!(slots.may_take(&"a", true), "all but one");
    }

    #[test]
    fn the_reserve_is_for_a_function_without_slots_where_one_has_all() {
        let slots = held(4, &[("a", 4)]);
        assert!(slots.may_take(&"b", false) && !slots.may_take(&"a", false));
        assert_eq!(slots.only_holder(), Some(&"a"));
        let slots = held(4, &[("a", 4), ("b", 1)]);
        assert!(!slots.may_take(&"c", false) && !slots.may_take(&"b", false), "it is taken");
        let slots = held(4, &[("a", 3), ("b", 1)]);
        assert!(!slots.may_take(&"c", false), "nobody has all");
        assert_eq!(slots.only_holder(), None);
        let slots = held(1, &[("a", 1)]);
        assert!(slots.may_take(&"b", true) && !slots.may_take(&"a", true));
    }

    #[test]
    fn functions_without_slots_are_forgotten_at_last() {
        let mut slots = Slots::new(2);
        for function in 0..10 * REMEMBERED {
            slots.take(&function);
            slots.give_back(&function);
        }
        assert!(slots.held.len() <= REMEMBERED + 1 && slots.free() == 2);
    }

    proptest! {
        /// At most all slots and one are held, the sums agree, and a function without slots may take one as soon as one
        /// other function holds all.
        #[test]
        fn bounds_hold(total in 1..6_u32, steps in prop::collection::vec((0..4_usize, any::<bool>(), any::<bool>()), 0..200)) {
            let mut slots = Slots::new(total);
            let mut model = [0_u32; 4];
            for (function, takes, others_wait) in steps {
                if !takes {
                    slots.give_back(&function);
                    model[function] = model[function].saturating_sub(1);
                } else if slots.may_take(&function, others_wait) {
                    prop_assert!(!others_wait || model[function] < slots.most_while_others_wait());
                    slots.take(&function);
                    model[function] += 1;
                }
                prop_assert!(slots.busy() <= total + 1);
                prop_assert_eq!(slots.busy(), model.iter().sum::<u32>());
                let has_all = model.iter().position(|held| *held == total).filter(|_| slots.busy() == total);
                for other in (0..4).filter(|other| has_all.is_some_and(|holder| holder != *other)) {
                    prop_assert!(slots.may_take(&other, true));
                }
            }
        }
    }
}
