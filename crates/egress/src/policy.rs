//! Who may be reached: the one judge, for connections of instances, for the proxy and for callbacks.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use faena_domain::units::{ByteSize, GB};
use faena_domain::{CallPattern, Network, NetworkRule};
use tokio::sync::Semaphore;

use crate::Upstream;
use crate::address::{OwnAddresses, embedded, is_global, is_this_host};
use crate::resolver::Resolvers;

/// Names that are looked up at once, on a whole node.
const LOOKUPS: usize = 32;
/// The most of them for one function.
pub(crate) const LOOKUPS_EACH: usize = LOOKUPS / 4;
/// What may pass in one call or build, both ways together, unless the operator says otherwise.
const BYTES: ByteSize = ByteSize(GB);
/// The port that mail servers speak to each other on: what comes from it is spam to the world (RFC 5321, RFC 6409).
const MAIL: u16 = 25;

/// Ports that may be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ports {
    /// All but 25.
    #[default]
    NoMail,
    /// These.
    Only(Vec<u16>),
}

impl Ports {
    fn permit(&self, port: u16) -> bool {
        match self {
            Self::NoMail => port != MAIL,
            Self::Only(ports) => ports.contains(&port),
        }
    }
}

/// What the operator of a node permits.
#[derive(Clone, Debug)]
pub struct EgressPolicy {
    /// Ports that may be reached.
    pub ports: Ports,
    /// Addresses that may not, besides those that nothing may reach and this host's own.
    pub refused: HashSet<IpAddr>,
    /// Private networks that every function with egress may reach.
    pub networks: Vec<NetworkRule>,
    /// What may pass in one call or build, both ways together.
    pub bytes: ByteSize,
    /// The operator's own proxy, where that is the only way out.
    pub upstream: Option<Upstream>,
    /// What looks names up.
    pub resolvers: Arc<Resolvers>,
    /// Places for names that are being looked up; clones share them.
    pub(crate) lookups: Arc<Semaphore>,
    own: Arc<OwnAddresses>,
}

impl EgressPolicy {
    /// The public internet, directly.
    pub fn public(resolvers: Resolvers) -> Self {
        Self {
            ports: Ports::default(),
            refused: HashSet::new(),
            networks: Vec::new(),
            bytes: BYTES,
            upstream: None,
            resolvers: Arc::new(resolvers),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            own: Arc::default(),
        }
    }

    /// Judges a connection to an address; `name` is the one that it was found under, none where the address itself was
    /// asked for.
    ///
    /// # Errors
    /// [`Denial`] says which rule is missing.
    pub fn judge(&self, reach: &Reach, name: Option<&str>, address: IpAddr, port: u16) -> Result<(), Denial> {
        self.judge_port(port)?;
        reach.judge(name.map_or(Asked::Address(address), Asked::Name), port)?;
        self.judge_address(reach, address, |rule| rule.permits(address, port))
    }

    /// Judges an address that a name has, for whatever port: whether a look-up is answered with it.
    pub(crate) fn judge_answer(&self, reach: &Reach, address: IpAddr) -> Result<(), Denial> {
        self.judge_address(reach, address, |rule| rule.network.contains(&address))
    }

    /// Judges a port alone, where the address is not known yet.
    ///
    /// # Errors
    /// [`Denial::Port`].
    pub fn judge_port(&self, port: u16) -> Result<(), Denial> {
        if self.ports.permit(port) { Ok(()) } else { Err(Denial::Port(port)) }
    }

    fn judge_address(
        &self,
        reach: &Reach,
        address: IpAddr,
        permits: impl Fn(&NetworkRule) -> bool,
    ) -> Result<(), Denial> {
        let rules = || self.networks.iter().chain(&reach.networks).filter(|rule| permits(rule));
        let is_ours = |address| is_this_host(address) || self.refused.contains(&address) || self.own.contain(address);
        let inner = embedded(address);
        if is_ours(address) || inner.is_some_and(is_ours) {
            return if rules().any(NetworkRule::is_exact) { Ok(()) } else { Err(Denial::Own) };
        }
        let is_public = is_global(address) && inner.is_none_or(is_global);
        if is_public || rules().next().is_some() { Ok(()) } else { Err(Denial::Private) }
    }
}

/// What one function may reach, by its own rules and its runtime's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// What its `faena.toml` asks for.
    pub network: Network,
    /// Private networks that its runtime permits.
    pub networks: Vec<NetworkRule>,
    /// Functions of its namespace that it may call.
    pub calls: Vec<CallPattern>,
}

/// What is asked for.
#[derive(Clone, Copy)]
pub(crate) enum Asked<'a> {
    Name(&'a str),
    Address(IpAddr),
}

impl Reach {
    /// The public internet, and what the platform permits.
    pub fn public() -> Self {
        Self { network: Network::Public, networks: Vec::new(), calls: Vec::new() }
    }

    pub(crate) fn judge(&self, asked: Asked<'_>, port: u16) -> Result<(), Denial> {
        let is_listed = match (&self.network, asked) {
            (Network::None, _) => false,
            (Network::Public, _) => true,
            (Network::Listed(rules), Asked::Name(name)) => rules.iter().any(|rule| rule.permits_name(name, port)),
            (Network::Listed(rules), Asked::Address(address)) => {
                rules.iter().any(|rule| rule.permits_address(address, port))
            }
        };
        if is_listed { Ok(()) } else { Err(Denial::Unlisted) }
    }

    /// Judges a call of another function.
    pub(crate) fn judge_call(&self, name: &str) -> Result<(), Denial> {
        if self.calls.iter().any(|pattern| pattern.permits(name)) { Ok(()) } else { Err(Denial::Uncalled) }
    }

    /// Whether a name may be looked up.
    pub(crate) fn judge_lookup(&self, name: &str) -> Result<(), Denial> {
        let is_listed = match &self.network {
            Network::None => false,
            Network::Public => true,
            Network::Listed(rules) => rules.iter().any(|rule| rule.names(name)),
        };
        if is_listed { Ok(()) } else { Err(Denial::Unlisted) }
    }
}

/// Why something may not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The platform does not permit the port.
    Port(u16),
    /// The address is not on the public internet, and no rule of the operator permits it.
    Private,
    /// It is this host, or another address of the platform.
    Own,
    /// No rule of the function names it.
    Unlisted,
    /// The operator's proxy may not be asked for it.
    NotThroughProxy,
    /// It is another function, which the function may not call.
    Uncalled,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port {port} is not permitted (setting egress_ports)"),
            Self::Private => {
                f.write_str("private network (the runtime's allow.networks, or the setting egress_networks)")
            }
            Self::Own => f.write_str("an address of this platform"),
            Self::Unlisted => f.write_str("no rule of faena.toml permits it ([network] egress)"),
            Self::Uncalled => f.write_str("no entry of faena.toml permits the call ([identity] calls)"),
            Self::NotThroughProxy => {
                f.write_str("not among the names that may be reached through the upstream proxy (setting egress_hosts)")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> EgressPolicy {
        let refused = HashSet::from([[203, 0, 114, 9].into(), [10, 9, 0, 1].into()]);
        EgressPolicy { refused, ..EgressPolicy::public(Resolvers::of_host()) }
    }

    fn judge(address: &str) -> Result<(), Denial> {
        policy().judge(&Reach::public(), None, address.parse().unwrap(), 443)
    }

    #[test]
    fn the_world_is_reachable() {
        for address in ["1.1.1.1", "151.101.0.223", "2606:4700::1111", "203.0.113.80", "64:ff9b::101:101"] {
            assert_eq!(judge(address), Ok(()), "{address}");
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
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::a00:1",
            "2002:7f00:1::",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "::ffff:203.0.114.9",
        ] {
            assert!(judge(address).is_err(), "{address}");
        }
    }

    /// The rules of operator and function, one against the other.
    #[test]
    fn both_have_to_permit() {
        use Denial::{Own, Port, Private, Unlisted};
        let listed = |rules: &[&str]| Network::Listed(rules.iter().map(|rule| rule.parse().unwrap()).collect());
        let (public, none) = (Network::Public, Network::None);
        type Case<'a> = (Network, &'a [&'a str], Option<&'a str>, &'a str, u16, Result<(), Denial>);
        let cases: Vec<Case<'_>> = vec![
            (none.clone(), &[], None, "1.1.1.1", 443, Err(Unlisted)),
            (none, &["0.0.0.0/0"], None, "1.1.1.1", 443, Err(Unlisted)),
            (public.clone(), &[], None, "1.1.1.1", 443, Ok(())),
            (public.clone(), &[], Some("a.example"), "1.1.1.1", 5432, Ok(())),
            (public.clone(), &[], None, "1.1.1.1", 25, Err(Port(25))),
            (public.clone(), &[], None, "10.1.0.5", 5432, Err(Private)),
            (public.clone(), &["10.1.0.0/16:5432"], None, "10.1.0.5", 5432, Ok(())),
            (public.clone(), &["10.1.0.0/16:5432"], Some("db.example"), "10.1.0.5", 5432, Ok(())),
            (public.clone(), &["10.1.0.0/16:5432"], None, "10.1.0.5", 5433, Err(Private)),
            (public.clone(), &["10.1.0.0/16:5432"], None, "10.2.0.5", 5432, Err(Private)),
            // What is the platform's own takes more than a block.
            (public.clone(), &["10.0.0.0/8"], None, "10.9.0.1", 5432, Err(Own)),
            (public.clone(), &["10.9.0.1"], None, "10.9.0.1", 5432, Err(Own)),
            (public.clone(), &["10.9.0.1:5432"], None, "10.9.0.1", 5432, Ok(())),
            (public.clone(), &["127.0.0.0/8"], None, "127.0.0.1", 5432, Err(Own)),
            (public.clone(), &["0.0.0.0/0"], None, "127.0.0.53", 53, Err(Own)),
            (public.clone(), &["0.0.0.0/0"], None, "0.0.0.0", 80, Err(Own)),
            (public.clone(), &["::/0"], None, "::", 80, Err(Own)),
            (public.clone(), &["::/0"], None, "::1", 80, Err(Own)),
            (public, &["::/0"], None, "::ffff:127.0.0.2", 5432, Err(Own)),
            (listed(&["a.example:443"]), &[], Some("a.example"), "1.1.1.1", 443, Ok(())),
            (listed(&["a.example:443"]), &[], Some("a.example"), "1.1.1.1", 80, Err(Unlisted)),
            (listed(&["a.example"]), &[], Some("b.example"), "1.1.1.1", 443, Err(Unlisted)),
            (listed(&["a.example"]), &[], None, "1.1.1.1", 443, Err(Unlisted)),
            (listed(&["a.example"]), &[], Some("a.example"), "10.1.0.5", 443, Err(Private)),
            (listed(&["a.example"]), &["10.1.0.0/16"], Some("a.example"), "10.1.0.5", 443, Ok(())),
            (listed(&["10.1.0.0/16:5432"]), &[], None, "10.1.0.5", 5432, Err(Private)),
            (listed(&["10.1.0.0/16:5432"]), &["10.0.0.0/8"], None, "10.1.0.5", 5432, Ok(())),
            (listed(&["10.1.0.0/16:5432"]), &["10.0.0.0/8"], None, "10.2.0.5", 5432, Err(Unlisted)),
            (listed(&["1.1.1.0/24"]), &[], None, "1.1.1.1", 25, Err(Port(25))),
        ];
        for (network, permitted, name, address, port, verdict) in cases {
            let networks = permitted.iter().map(|rule| rule.parse().unwrap()).collect();
            let by_runtime = Reach { network: network.clone(), networks, calls: Vec::new() };
            let judged = policy().judge(&by_runtime, name, address.parse().unwrap(), port);
            assert_eq!(judged, verdict, "{by_runtime:?} {name:?} {address}:{port}");
            // The platform's networks count as the runtime's do.
            let by_platform = EgressPolicy { networks: by_runtime.networks, ..policy() };
            let reach = Reach { network, ..Reach::public() };
            assert_eq!(by_platform.judge(&reach, name, address.parse().unwrap(), port), verdict);
        }
    }
}
