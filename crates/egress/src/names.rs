//! Addresses that stand for names, each within one instance.
//!
//! A look-up is answered with such an address. When it is dialled, the name is resolved again and judged then: so a rule
//! for a name holds for ordinary sockets, whatever other names share the real address, and no answer that changes between
//! look-up and connection leads anywhere else.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use faena_instance_protocol::link::NAMES;
use parking_lot::Mutex;

/// Names that one instance may know at once; the one that was used longest ago is forgotten for another.
pub(crate) const MOST: usize = 1000;

/// The names that an instance has looked up.
#[derive(Debug)]
pub(crate) struct Names(Mutex<Table>);

#[derive(Debug)]
struct Table {
    by_name: HashMap<String, Ipv4Addr>,
    by_address: HashMap<Ipv4Addr, Known>,
    next: u32,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Known {
    name: String,
    used: u64,
}

impl Default for Names {
    fn default() -> Self {
        let next = u32::from(NAMES.0);
        Self(Mutex::new(Table { by_name: HashMap::new(), by_address: HashMap::new(), next, clock: 0 }))
    }
}

impl Names {
    /// The address that stands for a name.
    pub(crate) fn address_of(&self, name: &str) -> Ipv4Addr {
        let mut table = self.0.lock();
        table.clock += 1;
        let used = table.clock;
        if let Some(address) = table.by_name.get(name).copied() {
            if let Some(known) = table.by_address.get_mut(&address) {
                known.used = used;
            }
            return address;
        }
        if table.by_name.len() >= MOST {
            table.forget_oldest();
        }
        let address = table.free_address();
        table.by_name.insert(name.to_owned(), address);
        table.by_address.insert(address, Known { name: name.to_owned(), used });
        address
    }

    /// The name that an address stands for.
    pub(crate) fn name_of(&self, address: Ipv4Addr) -> Option<String> {
        let mut table = self.0.lock();
        table.clock += 1;
        let used = table.clock;
        let known = table.by_address.get_mut(&address)?;
        known.used = used;
        Some(known.name.clone())
    }
}

impl Table {
    fn forget_oldest(&mut self) {
        let oldest = self.by_address.iter().min_by_key(|(_, known)| known.used).map(|(address, _)| *address);
        if let Some(known) = oldest.and_then(|address| self.by_address.remove(&address)) {
            self.by_name.remove(&known.name);
        }
    }

    /// The next address that stands for nothing. They are used in turn, so one that was forgotten stands for nothing for a
    /// hundred thousand names.
    fn free_address(&mut self) -> Ipv4Addr {
        loop {
            let address = Ipv4Addr::from(self.next);
            self.next = if address == NAMES.1 { u32::from(NAMES.0) } else { self.next + 1 };
            if !self.by_address.contains_key(&address) {
                return address;
            }
        }
    }
}

/// Whether an address stands for a name in some instance.
pub(crate) fn is_synthetic(address: Ipv4Addr) -> bool {
    (NAMES.0..=NAMES.1).contains(&address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_address_while_it_is_used() {
        let names = Names::default();
        let first = names.address_of("a.example");
        assert_eq!((names.address_of("a.example"), names.name_of(first).as_deref()), (first, Some("a.example")));
        for number in 0..3 * MOST {
            let other = names.address_of(&format!("{number}.example"));
            assert!(is_synthetic(other) && other != first);
            assert_eq!(names.name_of(first).as_deref(), Some("a.example"));
        }
        assert_eq!(names.0.lock().by_name.len(), MOST);
        assert_eq!(names.0.lock().by_address.len(), MOST);
    }

    #[test]
    fn an_address_that_was_forgotten_stands_for_nothing() {
        let names = Names::default();
        let first = names.address_of("a.example");
        for number in 0..MOST {
            names.address_of(&number.to_string());
        }
        assert_eq!(names.name_of(first), None);
        assert_ne!(names.address_of("a.example"), first);
    }

    #[test]
    fn addresses_come_round_and_miss_those_in_use() {
        let names = Names::default();
        let first = names.address_of("kept");
        names.0.lock().next = u32::from(NAMES.1);
        assert_eq!(names.address_of("last"), NAMES.1);
        assert_eq!(u32::from(names.address_of("next")), u32::from(first) + 1);
    }
}
