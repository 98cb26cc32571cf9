//! What instances reach of the world: the rules that a function asks for, and the private networks that an operator permits.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The most rules of one function, and the most networks of one runtime.
pub const MAX_RULES: usize = 100;
/// The longest name of a host, in characters (RFC 1035, 2.3.4).
pub const MAX_NAME: usize = 253;

/// What a function's instances reach of the world.
///
/// `faena.toml` and JSON write it as a word, `"none"` or `"egress"`, or as a table with rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Network {
    /// Nothing but their own loopback.
    #[default]
    None,
    /// The public internet, and the private networks that the operator permits.
    Public,
    /// Of these, only what a rule names.
    Listed(Vec<EgressRule>),
}

impl Network {
    /// Whether its instances reach anything.
    pub fn has_egress(&self) -> bool {
        *self != Self::None
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    egress: Vec<EgressRule>,
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => "none".serialize(serializer),
            Self::Public => "egress".serialize(serializer),
            Self::Listed(egress) => Table { egress: egress.clone() }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NetworkVisitor)
    }
}

struct NetworkVisitor;

impl<'de> Visitor<'de> for NetworkVisitor {
    type Value = Network;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"none\", \"egress\" or a table with the rules of egress")
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Network, E> {
        match word {
            "none" => Ok(Network::None),
            "egress" => Ok(Network::Public),
            _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Network, A::Error> {
        let Table { egress } = Table::deserialize(MapAccessDeserializer::new(map))?;
        match egress.len() {
            0 => Ok(Network::None),
            1..=MAX_RULES => Ok(Network::Listed(egress)),
            many => Err(de::Error::custom(format!("network: {many} rules are more than {MAX_RULES}"))),
        }
    }
}

/// A destination that a function may reach: `api.example.org`, `*.example.org:443` or `10.1.0.0/16:5432`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EgressRule {
    /// A host by its name.
    Name {
        /// In lower case, without a dot at its end; of a pattern, what follows the `*`.
        name: String,
        /// Whether every name below it is meant, rather than the name itself.
        is_pattern: bool,
        /// The only port; none permits every port.
        port: Option<u16>,
    },
    /// Hosts by their address.
    Network(NetworkRule),
}

impl EgressRule {
    /// Whether it permits a host that was named.
    pub fn permits_name(&self, host: &str, port: u16) -> bool {
        self.names(host) && self.port().is_none_or(|only| only == port)
    }

    /// Whether it names a host. The port is not compared.
    pub fn names(&self, host: &str) -> bool {
        match self {
            Self::Name { name, is_pattern: false, .. } => name.eq_ignore_ascii_case(host),
            Self::Name { name, is_pattern: true, .. } => host
                .len()
                .checked_sub(name.len())
                .filter(|at| *at > 0 && host.is_char_boundary(*at))
                .is_some_and(|at| host[at..].eq_ignore_ascii_case(name)),
            Self::Network(_) => false,
        }
    }

    /// The name or the pattern of a rule that permits a port.
    pub fn name_pattern(&self, port: u16) -> Option<String> {
        match self {
            Self::Name { name, is_pattern, .. } if self.port().is_none_or(|only| only == port) => {
                Some(format!("{}{name}", if *is_pattern { "*" } else { "" }))
            }
            _ => None,
        }
    }

    /// Whether it permits an address that was not named.
    pub fn permits_address(&self, address: IpAddr, port: u16) -> bool {
        matches!(self, Self::Network(rule) if rule.permits(address, port))
    }

    fn port(&self) -> Option<u16> {
        match self {
            Self::Name { port, .. } => *port,
            Self::Network(rule) => rule.port,
        }
    }
}

/// A block of addresses, on one port or on every port: `10.1.0.0/16`, `10.1.0.5:5432` or `[fd00::/8]:443`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkRule {
    /// The addresses.
    pub network: IpNet,
    /// The only port; none permits every port.
    pub port: Option<u16>,
}

impl NetworkRule {
    /// Whether it permits this address and port.
    pub fn permits(&self, address: IpAddr, port: u16) -> bool {
        self.network.contains(&address) && self.port.is_none_or(|only| only == port)
    }

    /// Whether it names one address and one port.
    pub fn is_exact(&self) -> bool {
        self.port.is_some() && self.network.prefix_len() == self.network.max_prefix_len()
    }
}

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {expected}: {why}")]
pub struct InvalidRule {
    text: String,
    expected: &'static str,
    why: &'static str,
}

const RULE: &str = "destination (\"api.example.org\", \"*.example.org:443\", \"10.1.0.0/16:5432\")";
const NETWORK: &str = "network (\"10.1.0.0/16\", \"10.1.0.5:5432\", \"[fd00::/8]:443\")";

/// Host and port of a rule. An IPv6 address has a port only in brackets.
fn split(text: &str) -> Result<(&str, Option<u16>), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("the bracket is not closed")?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or("a port follows a colon")?) })
        }
        None if text.matches(':').count() > 1 => (text, None),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let number = |port: &str| {
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        port.parse().ok().filter(|port| digits && *port > 0).ok_or("a port is a number from 1 to 65535")
    };
    Ok((host, port.map(number).transpose()?))
}

fn network(host: &str) -> Option<IpNet> {
    let block = host.parse::<IpNet>().ok().map(|block| block.trunc());
    block.or_else(|| host.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Whether a text may be the name of a host: letters, digits, `-`, `_` and dots between them.
pub fn is_host_name(host: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let part = |part: &str| (1..=63).contains(&part.len()) && part.bytes().all(is_part);
    (1..=MAX_NAME).contains(&host.len()) && host.split('.').all(part)
}

impl FromStr for NetworkRule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let invalid = |why| InvalidRule { text: text.chars().take(80).collect(), expected: NETWORK, why };
        let (host, port) = split(text).map_err(invalid)?;
        let network = network(host).ok_or_else(|| invalid("it begins with no address"))?;
        Ok(Self { network, port })
    }
}

impl FromStr for EgressRule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let invalid = |why| InvalidRule { text: text.chars().take(80).collect(), expected: RULE, why };
        let (host, port) = split(text).map_err(invalid)?;
        if let Some(network) = network(host) {
            return Ok(Self::Network(NetworkRule { network, port }));
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let (name, is_pattern) = match host.strip_prefix('*') {
            Some(below) if below.starts_with('.') => (below.to_owned(), true),
            Some(_) => return Err(invalid("a * is followed by a dot")),
            None => (host, false),
        };
        let plain = if is_pattern { &name[1..] } else { &name };
        // What ends in a number is an address that was misspelt (RFC 3696, 2).
        let is_number = plain.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
        if !is_host_name(plain) || is_number {
            return Err(invalid("it is neither the name of a host nor an address"));
        }
        Ok(Self::Name { name, is_pattern, port })
    }
}

impl fmt::Display for NetworkRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.network, self.port) {
            (network, None) => write!(f, "{network}"),
            (IpNet::V4(network), Some(port)) => write!(f, "{network}:{port}"),
            (IpNet::V6(network), Some(port)) => write!(f, "[{network}]:{port}"),
        }
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(rule) => rule.fmt(f),
            Self::Name { name, is_pattern, port } => {
                write!(f, "{}{name}", if *is_pattern { "*" } else { "" })?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

impl TryFrom<String> for NetworkRule {
    type Error = InvalidRule;

    fn try_from(text: String) -> Result<Self, InvalidRule> {
        text.parse()
    }
}

impl TryFrom<String> for EgressRule {
    type Error = InvalidRule;

    fn try_from(text: String) -> Result<Self, InvalidRule> {
        text.parse()
    }
}

impl From<NetworkRule> for String {
    fn from(rule: NetworkRule) -> Self {
        rule.to_string()
    }
}

impl From<EgressRule> for String {
    fn from(rule: EgressRule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(text: &str) -> EgressRule {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_permits_itself_and_a_pattern_what_is_below_it() {
        for (text, host, port, permits) in [
            ("api.example.org", "api.example.org", 443, true),
            ("api.example.org", "API.example.ORG", 25, true),
            ("api.example.org", "example.org", 443, false),
            ("api.example.org", "x.api.example.org", 443, false),
            ("API.example.org.:443", "api.example.org", 443, true),
            ("api.example.org:443", "api.example.org", 80, false),
            ("*.example.org", "a.example.org", 443, true),
            ("*.example.org", "a.b.example.org", 443, true),
            ("*.example.org", "example.org", 443, false),
            ("*.example.org", ".example.org", 443, false),
            ("*.example.org", "badexample.org", 443, false),
            ("*.example.org:443", "a.example.org", 80, false),
            ("10.1.0.0/16", "10.1.0.1", 80, false),
        ] {
            assert_eq!(rule(text).permits_name(host, port), permits, "{text} {host}:{port}");
        }
    }

    #[test]
    fn a_network_permits_its_addresses() {
        for (text, address, port, permits) in [
            ("10.1.0.0/16:5432", "10.1.200.3", 5432, true),
            ("10.1.0.0/16:5432", "10.1.200.3", 5433, false),
            ("10.1.0.0/16", "10.2.0.1", 5432, false),
            ("10.1.0.5", "10.1.0.5", 1, true),
            ("10.1.0.5", "10.1.0.6", 1, false),
            ("[fd00::/8]:443", "fd12::1", 443, true),
            ("fd00::/8", "fe80::1", 443, false),
            ("::1", "::1", 443, true),
            ("example.org", "10.1.0.5", 443, false),
        ] {
            assert_eq!(rule(text).permits_address(address.parse().unwrap(), port), permits, "{text} {address}:{port}");
        }
        let exact = |text: &str| text.parse::<NetworkRule>().unwrap().is_exact();
        assert!(exact("10.0.0.5:5432") && exact("10.0.0.5/32:5432") && exact("[fd00::1]:1"));
        assert!(!exact("10.0.0.5") && !exact("10.0.0.0/24:5432"));
    }

    #[test]
    fn what_is_no_rule_says_why() {
        for (text, why) in [
            ("", "neither"),
            ("a b", "neither"),
            ("*", "followed by a dot"),
            ("*example.org", "followed by a dot"),
            ("a.*.org", "neither"),
            ("a:0", "a port"),
            ("a:x", "a port"),
            ("a:70000", "a port"),
            ("a:+80", "a port"),
            ("http://a", "a port"),
            ("a/b", "neither"),
            ("10.1.0.0/33", "neither"),
            ("10.1.0", "neither"),
            ("[::1", "not closed"),
            ("user@a", "neither"),
        ] {
            let error = text.parse::<EgressRule>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!("example.org".parse::<NetworkRule>().is_err());
    }

    #[test]
    fn a_network_is_a_word_or_a_table() {
        let read = |text: &str| serde_json::from_str::<Network>(text);
        assert_eq!(read("\"none\"").unwrap(), Network::None);
        assert_eq!(read("\"egress\"").unwrap(), Network::Public);
        assert_eq!(read("{\"egress\":[]}").unwrap(), Network::None);
        let listed = read("{\"egress\":[\"a.example:443\",\"10.0.0.0/8\"]}").unwrap();
        assert_eq!(
            serde_json::to_value(&listed).unwrap(),
            serde_json::json!({"egress": ["a.example:443", "10.0.0.0/8"]})
        );
        for bad in ["\"world\"", "{\"egress\":[\"a b\"]}", "{\"ingress\":[]}", "1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let many = vec!["a.example"; MAX_RULES + 1];
        assert!(read(&serde_json::json!({"egress": many}).to_string()).is_err());
    }

    proptest! {
        #[test]
        fn a_rule_reads_back_as_it_was_written(text in "(\\*\\.)?[a-z0-9.:/\\[\\]]{1,30}") {
            if let Ok(rule) = text.parse::<EgressRule>() {
                prop_assert_eq!(rule.to_string().parse::<EgressRule>().unwrap(), rule);
            }
        }
    }
}
