//! Addresses: which are global, which stand for another, and which are this host's own.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The addresses of this host, as the kernel lists them now (proc_pid_net(5)).
fn own_addresses() -> HashSet<IpAddr> {
    let mut own = HashSet::new();
    let tree = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut last = None;
    for line in tree.lines() {
        if let Some((_, address)) = line.split_once("|-- ") {
            last = address.trim().parse().ok();
        } else if line.contains("/32 host LOCAL") {
            own.extend(last.map(IpAddr::V4));
        }
    }
    let list = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let v6 = list.lines().filter_map(|line| u128::from_str_radix(line.split(' ').next()?, 16).ok());
    own.extend(v6.map(|bits| IpAddr::V6(Ipv6Addr::from(bits))));
    own
}

/// Blocks that are not globally reachable unicast: address and prefix length.
///
/// Source: IANA's "IPv4 Special-Purpose Address Registry" (RFC 6890 and its successors), but for the documentation
/// blocks, which lead nowhere in the world and stand for it in laboratories; and Azure's 168.63.129.16.
const REFUSED_V4: [([u8; 4], u32); 15] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([168, 63, 129, 16], 32),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 31, 196, 0], 24),
    ([192, 52, 193, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([192, 175, 48, 0], 24),
    ([198, 18, 0, 0], 15),
    // Multicast, reserved and broadcast.
    ([224, 0, 0, 0], 3),
];

/// The only block of global unicast, and what is not meant for it within (IANA, "IPv6 Special-Purpose Address Registry").
const GLOBAL_V6: (u128, u32) = (0x2000 << 112, 3);
/// Addresses of the IPv4 world behind a translator (RFC 6052); the address within is judged too.
const NAT64: (u128, u32) = (0x0064_ff9b << 96, 96);
const REFUSED_V6: [(u128, u32); 4] = [
    // IETF protocol assignments, Teredo and ORCHID among them.
    (0x2001 << 112, 23),
    (0x2002 << 112, 16),
    (0x2620_004f_8000 << 80, 48),
    (0x5f00 << 112, 16),
];

fn within_v4(address: Ipv4Addr, (block, length): ([u8; 4], u32)) -> bool {
    (u32::from(address) ^ u32::from_be_bytes(block)).leading_zeros() >= length
}

fn within_v6(address: u128, (block, length): (u128, u32)) -> bool {
    (address ^ block).leading_zeros() >= length
}

pub(crate) fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !REFUSED_V4.iter().any(|block| within_v4(address, *block)),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            let unicast = within_v6(bits, GLOBAL_V6) || within_v6(bits, NAT64);
            unicast && !REFUSED_V6.iter().any(|block| within_v6(bits, *block))
        }
    }
}

/// Whether an address always leads to the local host: loopback and unspecified addresses do (RFC 1122, 3.2.1.3).
pub(crate) fn is_this_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => matches!(address.octets()[0], 0 | 127),
        IpAddr::V6(address) => address.is_loopback() || address.is_unspecified(),
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped and compatible (RFC 4291), NAT64 (RFC 6052), 6to4
/// (RFC 3056), Teredo's client (RFC 4380).
pub(crate) fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else { return None };
    let bits = u128::from(address);
    let low = |bits: u128| Ipv4Addr::from_bits(u32::try_from(bits & u128::from(u32::MAX)).unwrap_or(0));
    let at_the_end = [(0xffff << 32, 96), (0, 96), NAT64, (0x0064_ff9b_0001 << 80, 48)];
    let inner = if at_the_end.into_iter().any(|block| within_v6(bits, block)) {
        low(bits)
    } else if within_v6(bits, (0x2002 << 112, 16)) {
        low(bits >> 80)
    } else if within_v6(bits, (0x2001_0000 << 96, 32)) {
        low(!bits)
    } else {
        return None;
    };
    Some(IpAddr::V4(inner))
}

/// How long a list of this host's addresses is used: it is read from the kernel's tables, and a function may open a
/// thousand connections a second.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// This host's own addresses.
#[derive(Debug, Default)]
pub(crate) struct OwnAddresses(Mutex<Option<(Instant, HashSet<IpAddr>)>>);

impl OwnAddresses {
    /// Whether this is one of them.
    pub(crate) fn contain(&self, address: IpAddr) -> bool {
        let mut known = self.0.lock();
        let now = Instant::now();
        let is_new = known.as_ref().is_some_and(|(since, _)| now.saturating_duration_since(*since) < KNOWN_FOR);
        if !is_new {
            *known = Some((now, own_addresses()));
        }
        known.as_ref().is_some_and(|(_, own)| own.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_knows_itself() {
        assert!(OwnAddresses::default().contain([127, 0, 0, 1].into()));
        assert!(!OwnAddresses::default().contain([203, 0, 113, 77].into()));
    }
}
