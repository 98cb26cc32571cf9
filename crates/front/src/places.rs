//! How many connections there may be: of strangers, by address, and of each node.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Connections whose client is not known yet: of all, and of one address.
const STRANGERS: u32 = 512;
const STRANGERS_OF_ADDRESS: u32 = 64;
/// The same of addresses that nodes have: silent connections from elsewhere keep none of them out.
const ARRIVING: u32 = 2048;
const ARRIVING_OF_ADDRESS: u32 = 256;
/// Addresses of nodes that are remembered before all of them are forgotten.
const ADDRESSES: usize = 10_000;
/// Connections of one node: its threads, what it downloads, and its functions that call others.
const OF_NODE: u32 = 512;

type Counts<K> = Arc<Mutex<HashMap<K, u32>>>;

/// Counts connections.
#[derive(Debug, Default)]
pub(crate) struct Places {
    strangers: Counts<IpAddr>,
    arriving: Counts<IpAddr>,
    addresses: Mutex<HashSet<IpAddr>>,
    nodes: Counts<String>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place<K: std::hash::Hash + Eq>(Counts<K>, K);

impl<K: std::hash::Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut counts = self.0.lock();
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

fn take<K: std::hash::Hash + Eq + Clone>(counts: &Counts<K>, key: K, most: u32, of_all: u32) -> Option<Place<K>> {
    let mut held = counts.lock();
    if of_all < u32::MAX && held.values().sum::<u32>() >= of_all {
        return None;
    }
    let count = held.entry(key.clone()).or_default();
    if *count >= most {
        return None;
    }
    *count += 1;
    drop(held);
    Some(Place(Arc::clone(counts), key))
}

/// What one client is taken to be: an address, or the network that one host usually has all of.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address @ IpAddr::V4(_) => address,
    }
}

impl Places {
    /// A place for a client that is not known yet.
    pub(crate) fn stranger(&self, address: IpAddr) -> Option<Place<IpAddr>> {
        let client = client(address);
        if self.addresses.lock().contains(&client) {
            return take(&self.arriving, client, ARRIVING_OF_ADDRESS, ARRIVING);
        }
        take(&self.strangers, client, STRANGERS_OF_ADDRESS, STRANGERS)
    }

    /// A node was admitted from this address.
    pub(crate) fn admitted(&self, address: IpAddr) {
        let mut addresses = self.addresses.lock();
        if addresses.len() >= ADDRESSES {
            addresses.clear();
        }
        addresses.insert(client(address));
    }

    /// A place for a connection of a node.
    pub(crate) fn node(&self, key: &str) -> Option<Place<String>> {
        take(&self.nodes, key.to_owned(), OF_NODE, u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_part_and_strangers_have_theirs() {
        let places = Places::default();
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let held: Vec<_> = (0..STRANGERS_OF_ADDRESS).map(|_| places.stranger(address(1)).expect("a place")).collect();
        assert!(places.stranger(address(1)).is_none() && places.stranger(address(2)).is_some());
        drop(held);
        assert!(places.stranger(address(1)).is_some());
        let all: Vec<_> = (0..=255)
            .flat_map(|last| std::iter::repeat_n(last, 4))
            .filter_map(|last| places.stranger(address(last)))
            .collect();
        assert_eq!(all.len(), STRANGERS as usize);
        assert!(places.node("a").is_some(), "a node has places of its own");
        let neighbour = IpAddr::from([10, 0, 1, 1]);
        assert!(places.stranger(neighbour).is_none());
        places.admitted(neighbour);
        assert!(places.stranger(neighbour).is_some(), "a node comes from there");
    }

    #[test]
    fn neighbours_in_one_network_are_one_client() {
        let address = |text: &str| client(text.parse().expect("an address"));
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
    }
}
