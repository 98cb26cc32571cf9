//! Names and their addresses, by the resolvers that this host is configured for. `/etc/hosts` and search lists are the
//! host's own affair: they are not used.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use faena_domain::Namespace;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;

/// How long one server is waited for, and how often it is asked.
const ANSWER: Duration = Duration::from_secs(5);
const TRIES: usize = 2;
/// The most addresses of one name that are used.
const ADDRESSES: usize = 64;
/// Namespaces whose answers are kept; all are forgotten when there are more.
const NAMESPACES: usize = 1000;
/// Answers that are kept for one namespace, and for how long at most. An answer may have 64 KiB, and takes several times that
/// here; what a hostile zone answers must not fill the node's memory.
const ANSWERS: u64 = 64;
const KEPT: Duration = Duration::from_secs(300);
/// The configuration of this host's resolvers (resolv.conf(5)).
const CONFIGURATION: &str = "/etc/resolv.conf";

/// Resolvers of a node, one for each namespace: what one has looked up is not to be seen by another, nor by its time.
#[derive(Debug)]
pub struct Resolvers {
    servers: Vec<SocketAddr>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// When the host's configuration was changed last.
    since: Option<SystemTime>,
    of: HashMap<Option<Namespace>, Resolver>,
}

impl Resolvers {
    /// Those that ask the servers of `/etc/resolv.conf`.
    pub fn of_host() -> Self {
        Self::of_servers(Vec::new())
    }

    /// Those that ask these servers; the host's where there are none.
    pub fn of_servers(servers: Vec<SocketAddr>) -> Self {
        Self { servers, known: Mutex::default() }
    }

    /// The resolver of a namespace, or of the platform itself. Where the host's configuration was changed it is a new one.
    ///
    /// # Errors
    /// A configuration that cannot be read; the next look-up tries again.
    pub(crate) fn of(&self, namespace: Option<&Namespace>) -> Result<Resolver, String> {
        let changed = std::fs::metadata(CONFIGURATION).and_then(|metadata| metadata.modified()).ok();
        let mut known = self.known.lock();
        if self.servers.is_empty() && known.since != changed {
            *known = Known { since: changed, of: HashMap::new() };
        }
        if let Some(resolver) = known.of.get(&namespace.cloned()) {
            return Ok(resolver.clone());
        }
        let resolver = Resolver::new(&self.servers).map_err(|error| format!("this host's resolvers: {error}"))?;
        if known.of.len() >= NAMESPACES {
            known.of.clear();
        }
        known.of.insert(namespace.cloned(), resolver.clone());
        Ok(resolver)
    }
}

/// Looks names up; clones share what they have found.
#[derive(Clone, Debug)]
pub(crate) struct Resolver {
    addresses: TokioResolver,
    /// Other records are asked for rarely and may be long: nothing of them is kept.
    records: TokioResolver,
}

/// What a look-up has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found<T> {
    /// These, at least one.
    Some(Vec<T>),
    /// The name has nothing of this kind.
    Nothing,
    /// There is no such name.
    NoSuchName,
}

impl Resolver {
    fn new(servers: &[SocketAddr]) -> Result<Self, NetError> {
        let servers = if servers.is_empty() {
            // The search list goes: every name is whole.
            hickory_resolver::system_conf::read_system_conf()?.0.name_servers().to_vec()
        } else {
            servers.iter().map(name_server).collect()
        };
        let keeping = |answers| {
            let config = ResolverConfig::from_name_servers(servers.clone());
            let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.with_options(options(answers)).build()
        };
        Ok(Self { addresses: keeping(ANSWERS)?, records: keeping(0)? })
    }

    /// The addresses of a name.
    pub(crate) async fn addresses(&self, name: &str) -> Result<Found<IpAddr>, String> {
        let v4 = |data: &RData| if let RData::A(address) = data { Some(IpAddr::V4(address.0)) } else { None };
        let v6 = |data: &RData| if let RData::AAAA(address) = data { Some(IpAddr::V6(address.0)) } else { None };
        let found = look_up(&self.addresses, name, RecordType::A).await?.data(v4);
        if !has_ipv6_route() {
            return Ok(found);
        }
        match look_up(&self.addresses, name, RecordType::AAAA).await {
            Ok(more) => Ok(found.and(more.data(v6))),
            // What was found is good without it.
            Err(_) if matches!(found, Found::Some(_)) => Ok(found),
            Err(error) => Err(error),
        }
    }

    /// The records of a name, of one kind.
    pub(crate) async fn records(&self, name: &str, kind: RecordType) -> Result<Found<Record>, String> {
        look_up(&self.records, name, kind).await
    }
}

async fn look_up(resolver: &TokioResolver, name: &str, kind: RecordType) -> Result<Found<Record>, String> {
    let name = Name::from_ascii(format!("{name}.")).map_err(|error| error.to_string())?;
    match resolver.lookup(name, kind).await {
        Ok(lookup) => {
            let of_kind = lookup.answers().iter().filter(|record| record.record_type() == kind);
            Ok(Found::of(of_kind.take(ADDRESSES).cloned().collect()))
        }
        Err(error) => absent(&error).ok_or_else(|| error.to_string()),
    }
}

fn absent<T>(error: &NetError) -> Option<Found<T>> {
    if error.is_nx_domain() {
        Some(Found::NoSuchName)
    } else if error.is_no_records_found() {
        Some(Found::Nothing)
    } else {
        None
    }
}

impl<T> Found<T> {
    fn of(found: Vec<T>) -> Self {
        if found.is_empty() { Self::Nothing } else { Self::Some(found) }
    }

    /// Both together.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Some(mut here), Self::Some(there)) => {
                here.extend(there);
                Self::Some(here)
            }
            (Self::Some(found), _) | (_, Self::Some(found)) => Self::Some(found),
            (absent, _) => absent,
        }
    }
}

impl Found<Record> {
    fn data<T>(self, of: impl Fn(&RData) -> Option<T>) -> Found<T> {
        match self {
            Self::Some(records) => Found::of(records.iter().filter_map(|record| of(&record.data)).collect()),
            Self::Nothing => Found::Nothing,
            Self::NoSuchName => Found::NoSuchName,
        }
    }
}

fn name_server(server: &SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut config.connections {
        connection.port = server.port();
    }
    config
}

fn options(answers: u64) -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = ANSWER;
    options.attempts = TRIES;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = answers;
    options.positive_max_ttl = Some(KEPT);
    options.negative_max_ttl = Some(KEPT);
    options
}

/// Whether the kernel has a global address of version 6: without one, addresses of that kind lead nowhere
/// (proc_pid_net(5), `if_inet6`: the fourth column is the scope, and 00 is global).
fn has_ipv6_route() -> bool {
    let list = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    list.lines().any(|line| line.split_whitespace().nth(3) == Some("00"))
}
