//! Whose turn it is: fair to namespaces by their weights, and to the functions of one namespace. Pure.
//!
//! The next turn is that of the namespace that has least for its weight: slots that it holds, as [`crate::Slots::load`] tells
//! (weighted max-min fairness). Within a namespace functions have turns one after the other.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::name::{FunctionId, Namespace};

/// What waits for a turn.
pub trait Waits {
    /// The function that waits.
    fn function(&self) -> &FunctionId;
}

impl Waits for FunctionId {
    fn function(&self) -> &FunctionId {
        self
    }
}

impl<W: Waits> Waits for Arc<W> {
    fn function(&self) -> &FunctionId {
        (**self).function()
    }
}

/// Namespaces of which nothing waits that are remembered, to save making them again.
const REMEMBERED: usize = 64;

/// What came of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It got nothing, and goes on waiting.
    Refused,
    /// It got something; its namespace has this load from now on.
    Served {
        /// See [`crate::Slots::load`].
        load: u64,
        /// Whether it waits for more.
        waits: bool,
    },
}

#[derive(Debug)]
struct Group<K> {
    namespace: Namespace,
    weight: u32,
    keys: VecDeque<K>,
    /// How many of them have not been refused since something was served.
    left: usize,
    load: u64,
}

/// Keys of functions, in the order of their turns.
#[derive(Debug)]
pub struct FairTurns<K>(Vec<Group<K>>);

impl<K> Default for FairTurns<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Waits + PartialEq> FairTurns<K> {
    fn group(&mut self, namespace: &Namespace) -> Option<&mut Group<K>> {
        self.0.iter_mut().find(|group| group.namespace == *namespace)
    }

    /// A key waits; it is the last of its namespace, whose weight is this from now on.
    pub fn push_back(&mut self, key: K, weight: u32) {
        let namespace = &key.function().namespace;
        match self.group(namespace) {
            Some(group) => {
                group.weight = weight;
                group.keys.push_back(key);
            }
            None => {
                let namespace = namespace.clone();
                self.0.push(Group { namespace, weight, keys: VecDeque::from([key]), left: 0, load: 0 });
            }
        }
    }

    /// A key waits no longer; true where it did.
    pub fn remove(&mut self, key: &K) -> bool {
        let Some(group) = self.group(&key.function().namespace) else { return false };
        let index = group.keys.iter().position(|other| other == key);
        index.and_then(|index| group.keys.remove(index)).is_some()
    }

    /// Keeps the keys that still wait.
    pub fn retain(&mut self, mut waits: impl FnMut(&K) -> bool) {
        self.0.iter_mut().for_each(|group| group.keys.retain(&mut waits));
    }

    /// Whether another function than this waits.
    pub fn others_wait(&self, function: &FunctionId) -> bool {
        let mut keys = self.0.iter().flat_map(|group| &group.keys);
        keys.any(|key| key.function() != function)
    }

    /// Whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|group| group.keys.is_empty())
    }

    /// Says what each namespace that waits has, out of its weight: [`FairTurns::serve`] begins with that.
    pub fn weigh(&mut self, load: impl Fn(&Namespace, u32) -> u64) {
        let waiting = self.0.iter_mut().filter(|group| !group.keys.is_empty());
        waiting.for_each(|group| group.load = load(&group.namespace, group.weight));
    }

    /// Gives turns until each key that waits was refused. `serve` is told whether another function waits.
    pub fn serve(&mut self, mut serve: impl FnMut(&K, bool) -> Turn) {
        if self.0.len() > REMEMBERED {
            self.0.retain(|group| !group.keys.is_empty());
        }
        self.0.iter_mut().for_each(|group| group.left = group.keys.len());
        let mut waiting = self.0.iter().filter(|group| !group.keys.is_empty()).count();
        while let Some(index) = self.next() {
            let others_elsewhere = waiting > 1;
            let group = &mut self.0[index];
            let Some(key) = group.keys.pop_front() else { return };
            let others_wait = others_elsewhere || group.keys.iter().any(|other| other.function() != key.function());
            match serve(&key, others_wait) {
                Turn::Refused => {
                    group.keys.push_back(key);
                    group.left -= 1;
                }
                Turn::Served { load, waits } => {
                    group.load = load;
                    if waits {
                        group.keys.push_back(key);
                    } else if group.keys.is_empty() {
                        waiting -= 1;
                    }
                    // What was refused before may get something now.
                    self.0.iter_mut().for_each(|group| group.left = group.keys.len());
                }
            }
        }
    }

    /// The namespace whose turn it is.
    fn next(&self) -> Option<usize> {
        let open = self.0.iter().enumerate().filter(|(_, group)| group.left > 0);
        open.min_by_key(|(_, group)| group.load).map(|(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::Slots;

    fn function(namespace: &str, name: &str) -> FunctionId {
        FunctionId { namespace: namespace.parse().unwrap(), name: name.parse().unwrap() }
    }

    /// Serves keys that want one slot after the other; who holds how many at the end.
    fn share(total: u32, waiting: &[(FunctionId, u32)]) -> HashMap<String, u32> {
        let mut turns = FairTurns::default();
        waiting.iter().for_each(|(key, weight)| turns.push_back(key.clone(), *weight));
        let weights: HashMap<Namespace, u32> =
            waiting.iter().map(|(key, weight)| (key.namespace.clone(), *weight)).collect();
        let mut slots = Slots::new(total);
        turns.weigh(|namespace, weight| slots.load(namespace, weight));
        turns.serve(|key, _| {
            if slots.free() == 0 {
                return Turn::Refused;
            }
            slots.take(key);
            Turn::Served { load: slots.load(&key.namespace, weights[&key.namespace]), waits: true }
        });
        slots.held().map(|(key, held)| (format!("{}/{}", key.namespace, key.name), held)).collect()
    }

    #[test]
    fn a_namespace_with_many_functions_gets_no_more_than_one_with_a_single_one() {
        let mut waiting: Vec<(FunctionId, u32)> = (0..6).map(|n| (function("loud", &format!("f{n}")), 1)).collect();
        waiting.push((function("quiet", "g"), 1));
        let held = share(12, &waiting);
        assert_eq!(held["quiet/g"], 6);
        assert!((0..6).all(|n| held[&format!("loud/f{n}")] == 1), "{held:?}");
    }

    #[test]
    fn weights_are_the_ratio_of_slots() {
        let held = share(8, &[(function("a", "f"), 3), (function("b", "f"), 1)]);
        assert_eq!((held["a/f"], held["b/f"]), (6, 2));
    }

    #[test]
    fn what_is_refused_holds_nobody_up_and_is_asked_again_after_a_turn() {
        let mut turns = FairTurns::default();
        [function("a", "stuck"), function("a", "f"), function("b", "f")]
            .into_iter()
            .for_each(|key| turns.push_back(key, 1));
        let mut asked = Vec::new();
        turns.serve(|key, others_wait| {
            asked.push((key.to_string(), others_wait));
            if key.name.as_str() == "stuck" { Turn::Refused } else { Turn::Served { load: 0, waits: false } }
        });
        let expected = [("a/stuck", true), ("a/f", true), ("a/stuck", true), ("b/f", true), ("a/stuck", false)];
        assert_eq!(asked, expected.map(|(key, others)| (key.to_owned(), others)));
        assert!(turns.remove(&function("a", "stuck")) && turns.is_empty());
    }

    proptest! {
        /// Nothing is lost, and of functions that always get something each of a namespace gets as much as the others.
        #[test]
        fn every_function_has_its_turn(keys in prop::collection::btree_set((0..3_u8, 0..4_u8), 1..10), turns_each in 1..4_u32) {
            let mut turns = FairTurns::default();
            let named = |(namespace, name): &(u8, u8)| function(&format!("n{namespace}"), &format!("f{name}"));
            keys.iter().for_each(|key| turns.push_back(named(key), 1));
            let mut served: HashMap<FunctionId, u32> = HashMap::new();
            turns.serve(|key, _| {
                let count = served.entry(key.clone()).or_default();
                *count += 1;
                Turn::Served { load: 0, waits: *count < turns_each }
            });
            prop_assert_eq!(served.len(), keys.len());
            prop_assert!(served.values().all(|count| *count == turns_each) && turns.is_empty());
        }
    }
}
