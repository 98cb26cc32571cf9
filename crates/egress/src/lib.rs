//! Whom instances and callbacks may reach.
//!
//! Every name is resolved here, every answer is judged, and what is connected to is an address that was judged: so nothing
//! leads to a neighbour, to the host itself, or to a cloud's metadata. [`EgressPolicy`] is the one judge, for connections of
//! instances, for their proxy and for callbacks.

use std::net::Ipv6Addr;

mod address;
mod connect;
mod dns;
mod instance;
mod names;
mod policy;
mod resolver;
mod upstream;

pub use connect::{Asker, PATIENCE, Reason, Refusal, Tunnel, Way, connect, read_head};
pub use instance::{Destination, InstanceEgress};
pub use policy::{Denial, EgressPolicy, Ports, Reach};
pub use resolver::Resolvers;
pub use upstream::{InvalidUpstream, Upstream};

/// Host and port of an authority; an IPv6 address stands in brackets. None for one with a user in it, or without a port
/// where there is no default.
pub fn authority(text: &str, default: Option<u16>) -> Option<(String, u16)> {
    if text.contains('@') {
        return None;
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((_, port))
            if port.is_empty() || port.bytes().any(|byte| !byte.is_ascii_digit()) && !port.contains(']') =>
        {
            return None;
        }
        Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
        _ => (text, default),
    };
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().ok().map(|_| address)?,
        None => Some(host).filter(|host| is_name(host))?,
    };
    Some((host.to_owned(), port?))
}

/// Whether a text may be a host's name, or an IPv4 address: nothing in it means anything to a resolver, a URL or a proxy.
fn is_name(host: &str) -> bool {
    const LONGEST: usize = 253;
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=LONGEST).contains(&host.len()) && host.bytes().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::authority;

    #[test]
    fn only_names_addresses_and_digits_are_an_authority() {
        let whole = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(authority("a-b_c.example", Some(80)), whole("a-b_c.example", 80));
        assert_eq!(authority("127.0.0.1:8080", None), whole("127.0.0.1", 8080));
        assert_eq!(authority("[::1]:443", None), whole("::1", 443));
        for text in [
            "169.254.169.254#.b.example:80",
            "a\\b:80",
            "a/b:80",
            "a:+80",
            "a:",
            "a:80x",
            "a b:80",
            "user@a:80",
            "[nonsense]:80",
            "a%2e:80",
            "[::1",
            "",
            "a:70000",
        ] {
            assert_eq!(authority(text, Some(80)), None, "{text}");
        }
    }
}
