//! Which addresses may be reached.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use faena_domain::units::{ByteSize, GB};
use tokio::sync::Semaphore;

use crate::authority;

/// Names that are looked up at once, on a whole node.
const LOOKUPS: usize = 32;
/// The most of them for one function.
pub(crate) const LOOKUPS_EACH: usize = LOOKUPS / 4;
/// What may pass in one call or build, both ways together, unless the operator says otherwise.
const BYTES: ByteSize = ByteSize(GB);

/// Whom instances may reach.
#[derive(Clone, Debug)]
pub struct EgressPolicy {
    /// Ports that may be reached.
    pub ports: Vec<u16>,
    /// Addresses that may not, besides those that nobody may and this host's own.
    pub refused: HashSet<IpAddr>,
    /// What may pass in one call or build, both ways together.
    pub bytes: ByteSize,
    /// The operator's own proxy, where that is the only way out.
    pub upstream: Option<Upstream>,
    /// Places for names that are being looked up; clones share them.
    pub lookups: Arc<Semaphore>,
}

impl EgressPolicy {
    /// Web ports of the whole public internet, directly.
    pub fn web() -> Self {
        Self {
            ports: vec![80, 443],
            refused: HashSet::new(),
            bytes: BYTES,
            upstream: None,
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
        }
    }

    /// Whether an address may be reached from a host that has these itself.
    pub fn permits(&self, address: IpAddr, own: &HashSet<IpAddr>) -> bool {
        let refused = |address: &IpAddr| self.refused.contains(address) || own.contains(address);
        is_global(address)
            && !embedded(address).is_some_and(|inner| !is_global(inner) || refused(&inner))
            && !refused(&address)
    }
}

/// A proxy of the operator's, and the names that may be reached through it: addresses are its to judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// User and password, as its URL has them.
    user: Option<String>,
    /// Names; `*.example.org` stands for every name below it.
    hosts: Vec<String>,
}

/// Why a text names no proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no proxy; write http://host:port or http://user:password@host:port")]
pub struct InvalidUpstream(String);

impl Upstream {
    /// Reads `http://[user:password@]host:port`.
    ///
    /// # Errors
    /// A URL of another form.
    pub fn parse(url: &str, hosts: Vec<String>) -> Result<Self, InvalidUpstream> {
        // A password does not belong into a log.
        let shown = url.rsplit('@').next().unwrap_or_default();
        let invalid = || InvalidUpstream(shown.to_owned());
        let rest = url.strip_prefix("http://").ok_or_else(invalid)?.trim_end_matches('/');
        let (user, at) = rest.rsplit_once('@').map_or((None, rest), |(user, at)| (Some(user.to_owned()), at));
        let (host, port) = authority(at, Some(80)).ok_or_else(invalid)?;
        let hosts = hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        Ok(Self { host, port, user, hosts })
    }

    /// Whether a name may be reached.
    pub fn permits(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.hosts.iter().any(|host| match host.strip_prefix('*') {
            Some(suffix) => name.ends_with(suffix) && name.len() > suffix.len(),
            None => *host == name,
        })
    }

    /// The header that it wants, or nothing (RFC 7617).
    pub(crate) fn credentials(&self) -> String {
        use base64::Engine;
        let encode = |user: &String| base64::engine::general_purpose::STANDARD.encode(user);
        self.user.as_ref().map(|user| format!("Proxy-Authorization: Basic {}\r\n", encode(user))).unwrap_or_default()
    }
}

/// The addresses of this host, as the kernel lists them now (proc_pid_net(5)).
pub(crate) fn own_addresses() -> HashSet<IpAddr> {
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

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !REFUSED_V4.iter().any(|block| within_v4(address, *block)),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            let unicast = within_v6(bits, GLOBAL_V6) || within_v6(bits, NAT64);
            unicast && !REFUSED_V6.iter().any(|block| within_v6(bits, *block))
        }
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped and compatible (RFC 4291), NAT64 (RFC 6052), 6to4
/// (RFC 3056), Teredo's client (RFC 4380).
fn embedded(address: IpAddr) -> Option<IpAddr> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(address: &str) -> bool {
        let own = HashSet::from([[203, 0, 114, 9].into()]);
        EgressPolicy::web().permits(address.parse().unwrap(), &own)
    }

    #[test]
    fn the_world_is_reachable() {
        for address in ["1.1.1.1", "151.101.0.223", "2606:4700::1111", "203.0.113.80", "64:ff9b::101:101"] {
            assert!(permits(address), "{address}");
        }
    }

    #[test]
    fn neighbours_metadata_and_ourselves_are_not() {
        for address in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "168.63.129.16",
            "172.17.0.1",
            "192.0.0.192",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "203.0.114.9",
            "::",
            "::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "2001:db8::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::a00:1",
            "2002:7f00:1::",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "::ffff:203.0.114.9",
        ] {
            let documentation = address == "2001:db8::1";
            assert!(!permits(address) || documentation, "{address}");
        }
    }

    #[test]
    fn an_upstream_proxy_reaches_the_names_it_was_given() {
        let hosts = vec!["a.example".to_owned(), "*.b.example".to_owned()];
        let upstream = Upstream::parse("http://me:secret@proxy.example:3128", hosts).unwrap();
        assert_eq!((upstream.host.as_str(), upstream.port), ("proxy.example", 3128));
        assert_eq!(upstream.credentials(), "Proxy-Authorization: Basic bWU6c2VjcmV0\r\n");
        for (name, may) in [("A.example", true), ("x.b.example.", true), ("b.example", false), ("c.example", false)] {
            assert_eq!(upstream.permits(name), may, "{name}");
        }
        let error = Upstream::parse("socks5://me:secret@proxy.example", Vec::new()).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn this_host_knows_itself() {
        assert!(own_addresses().contains(&IpAddr::from([127, 0, 0, 1])));
    }
}
