//! A worker's slots: how many instances may work at once, and how many of them one function may hold.
//!
//! A function may hold all slots but one while another function waits. Where one function holds all of them, because no
//! other one waited when it took them, a function that holds none may take one more slot, the *reserve*: a call that takes hours must
//! not keep every other function waiting until it ends. The same holds where all holders belong to one namespace, for the functions of
//! others. So a worker works at its slots and one more at most.

use std::collections::HashMap;
use std::hash::Hash;

use crate::identity::MAX_DEPTH;
use crate::name::{FunctionId, Namespace};

/// Slots that may be lent, however few there are: one chain of calls needs as many as it is deep.
const MOST_LENT: u32 = MAX_DEPTH;
/// Functions, and namespaces, without a slot that are remembered, to save inserting them again.
const REMEMBERED: usize = 1024;
/// The load of one slot at weight one.
const LOAD: u64 = 1 << 20;

/// How many each of several holds.
#[derive(Clone, Debug)]
struct Counts<K> {
    held: HashMap<K, u32>,
    /// How many hold any.
    holders: u32,
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self { held: HashMap::new(), holders: 0 }
    }
}

impl<K: Clone + Eq + Hash> Counts<K> {
    fn of(&self, key: &K) -> u32 {
        self.held.get(key).copied().unwrap_or(0)
    }

    fn add(&mut self, key: &K) {
        match self.held.get_mut(key) {
            Some(held) => {
                self.holders += u32::from(*held == 0);
                *held += 1;
            }
            None => {
                self.holders += 1;
                self.held.insert(key.clone(), 1);
            }
        }
    }

    /// False where it holds none.
    fn subtract(&mut self, key: &K) -> bool {
        let Some(held) = self.held.get_mut(key).filter(|held| **held > 0) else { return false };
        *held -= 1;
        if *held == 0 {
            self.holders -= 1;
            if self.held.len() > REMEMBERED {
                self.held.retain(|_, held| *held > 0);
            }
        }
        true
    }
}

/// What a namespace that holds so many slots would have with one more, for its weight.
pub fn load(held: u32, weight: u32) -> u64 {
    (u64::from(held) + 1) * LOAD / u64::from(weight.max(1))
}

/// How many slots there are, and which function holds how many.
#[derive(Clone, Debug)]
pub struct Slots {
    /// All, without those that are lent.
    own: u32,
    lent: u32,
    busy: u32,
    functions: Counts<FunctionId>,
    namespaces: Counts<Namespace>,
}

impl Slots {
    /// So many slots, all free.
    pub fn new(total: u32) -> Self {
        Self { own: total, lent: 0, busy: 0, functions: Counts::default(), namespaces: Counts::default() }
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
    pub fn held_by(&self, function: &FunctionId) -> u32 {
        self.functions.of(function)
    }

    /// The functions that hold slots, and how many.
    pub fn held(&self) -> impl Iterator<Item = (&FunctionId, u32)> {
        self.functions.held.iter().map(|(function, held)| (function, *held)).filter(|(_, held)| *held > 0)
    }

    /// Those that the functions of a namespace hold.
    pub fn held_by_namespace(&self, namespace: &Namespace) -> u32 {
        self.namespaces.of(namespace)
    }

    /// What a namespace would have with one more slot, for its weight. Of those that wait the one with the least is next.
    pub fn load(&self, namespace: &Namespace, weight: u32) -> u64 {
        load(self.held_by_namespace(namespace), weight)
    }

    /// Whether the reserve can be taken: one function, or one namespace, holds all slots.
    pub fn has_reserve(&self) -> bool {
        self.busy == self.total() && (self.functions.holders == 1 || self.namespaces.holders == 1)
    }

    /// Whether a function may take the reserve.
    pub fn reserve_is_for(&self, function: &FunctionId) -> bool {
        let is_only_other = self.functions.holders == 1 && self.held_by(function) == 0;
        let is_elsewhere = || self.namespaces.holders == 1 && self.namespaces.of(&function.namespace) == 0;
        self.busy == self.total() && (is_only_other || is_elsewhere())
    }

    /// Whether a function may take one more, while others wait for one or not.
    pub fn may_take(&self, function: &FunctionId, others_wait: bool) -> bool {
        if self.busy < self.total() {
            return !others_wait || self.held_by(function) < self.most_while_others_wait();
        }
        self.reserve_is_for(function)
    }

    /// The most that one function may hold while another waits.
    pub fn most_while_others_wait(&self) -> u32 {
        self.total().saturating_sub(1).max(1)
    }

    /// A function holds one more. Whether it may is the caller's to ask.
    pub fn take(&mut self, function: &FunctionId) {
        self.busy += 1;
        self.functions.add(function);
        self.namespaces.add(&function.namespace);
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
    pub fn give_back(&mut self, function: &FunctionId) {
        if self.functions.subtract(function) {
            self.namespaces.subtract(&function.namespace);
            self.busy -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A function of the namespace default, or of another that is named before a slash.
    fn function(text: &str) -> FunctionId {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        FunctionId { namespace: namespace.parse().unwrap(), name: name.parse().unwrap() }
    }

    fn held(total: u32, by: &[(&str, u32)]) -> Slots {
        let mut slots = Slots::new(total);
        for (name, count) in by {
            (0..*count).for_each(|_| slots.take(&function(name)));
        }
        slots
    }

    #[test]
    fn a_slot_that_is_lent_is_one_more() {
        let mut slots = held(2, &[("a", 1), ("b", 1)]);
        assert!(!slots.may_take(&function("a"), false));
        slots.lend();
        assert!(slots.may_take(&function("a"), false));
        slots.take(&function("a"));
        slots.take_back();
        assert!(!slots.may_take(&function("a"), false) && slots.free() == 0);
        slots.give_back(&function("a"));
        assert!(!slots.may_take(&function("b"), false));
        slots.give_back(&function("a"));
        assert!(slots.may_take(&function("b"), false));
        (0..100).for_each(|_| slots.lend());
        assert_eq!(slots.total(), 2 + MAX_DEPTH);
        (0..100).for_each(|_| slots.take_back());
        assert_eq!(slots.total(), 2);
    }

    #[test]
    fn the_last_slot_is_not_for_the_function_that_has_all_others() {
        let slots = held(4, &[("a", 3)]);
        assert!(slots.may_take(&function("a"), false) && !slots.may_take(&function("a"), true));
        assert!(slots.may_take(&function("b"), true) && slots.may_take(&function("b"), false));
        let slots = held(4, &[("a", 2)]);
        assert!(slots.may_take(&function("a"), true), "all but one");
    }

    #[test]
    fn the_reserve_is_for_a_function_without_slots_where_one_has_all() {
        let slots = held(4, &[("a", 4)]);
        assert!(slots.may_take(&function("b"), false) && !slots.may_take(&function("a"), false));
        assert!(slots.has_reserve() && slots.reserve_is_for(&function("b")) && !slots.reserve_is_for(&function("a")));
        let slots = held(4, &[("a", 4), ("b", 1)]);
        assert!(!slots.may_take(&function("c"), false) && !slots.may_take(&function("b"), false), "it is taken");
        let slots = held(4, &[("a", 3), ("b", 1)]);
        assert!(!slots.may_take(&function("c"), false), "nobody has all");
        assert!(
            !slots.reserve_is_for(&function("c")) && slots.reserve_is_for(&function("other/c")),
            "their namespace has all"
        );
        let slots = held(1, &[("a", 1)]);
        assert!(slots.may_take(&function("b"), true) && !slots.may_take(&function("a"), true));
    }

    #[test]
    fn functions_without_slots_are_forgotten_at_last() {
        let mut slots = Slots::new(2);
        for number in 0..10 * REMEMBERED {
            let function = function(&format!("n{number}/f"));
            slots.take(&function);
            slots.give_back(&function);
        }
        let (functions, namespaces) = (slots.functions.held.len(), slots.namespaces.held.len());
        assert!(functions.max(namespaces) <= REMEMBERED + 1 && slots.free() == 2);
    }

    #[test]
    fn the_reserve_is_for_a_namespace_without_slots_where_another_has_all() {
        let slots = held(3, &[("a", 2), ("b", 1)]);
        assert!(!slots.may_take(&function("c"), false) && slots.may_take(&function("other/c"), true));
        let slots = held(3, &[("a", 2), ("b", 1), ("other/c", 1)]);
        assert!(!slots.may_take(&function("other/d"), false) && !slots.has_reserve(), "it is taken");
        let slots = held(3, &[("a", 2), ("other/b", 1)]);
        assert!(!slots.may_take(&function("third/c"), false));
        assert!(slots.load(&"third".parse().unwrap(), 1) < slots.load(&"other".parse().unwrap(), 1));
        assert_eq!(slots.load(&"default".parse().unwrap(), 3), slots.load(&"third".parse().unwrap(), 1));
    }

    proptest! {
        /// At most all slots and one are held, the sums agree, and a function without slots may take one as soon as one
        /// other function holds all.
        #[test]
        fn bounds_hold(total in 1..6_u32, steps in prop::collection::vec((0..4_usize, any::<bool>(), any::<bool>()), 0..200)) {
            let mut slots = Slots::new(total);
            let functions = ["a", "b", "c", "d"].map(function);
            let mut model = [0_u32; 4];
            for (function, takes, others_wait) in steps {
                if !takes {
                    slots.give_back(&functions[function]);
                    model[function] = model[function].saturating_sub(1);
                } else if slots.may_take(&functions[function], others_wait) {
                    prop_assert!(!others_wait || model[function] < slots.most_while_others_wait());
                    slots.take(&functions[function]);
                    model[function] += 1;
                }
                prop_assert!(slots.busy() <= total + 1);
                prop_assert_eq!(slots.busy(), model.iter().sum::<u32>());
                let has_all = model.iter().position(|held| *held == total).filter(|_| slots.busy() == total);
                for other in (0..4).filter(|other| has_all.is_some_and(|holder| holder != *other)) {
                    prop_assert!(slots.may_take(&functions[other], true));
                }
            }
        }
    }
}
