//! From a name or an address to a connection: through the operator's own proxy where there is one, else to an address that
//! was judged.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use faena_domain::Namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::policy::{Asked, Denial, EgressPolicy, LOOKUPS_EACH, Reach};
use crate::resolver::{Found, Resolver};
use crate::{Upstream, address};

/// How long a head, a name or a connection may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long one address of several may take.
const EACH: Duration = Duration::from_secs(3);
/// How long a connection is silent before its peer is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// The pause before a head that is not whole is looked at again.
const PEEK_AGAIN: Duration = Duration::from_millis(5);
/// How long the upstream proxy may take to reach a server.
const TUNNEL: Duration = Duration::from_secs(30);
/// The largest head of a request or a reply.
const MAX_HEAD: usize = 16 * 1024;
/// What says more about rules.
const PAGE: &str = "https://github.com/faena-dev/faena/blob/main/docs/how-to/egress.md";

/// Why nothing was connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked for: `host:port`, or a name that was looked up.
    pub target: String,
    /// Why.
    pub reason: Reason,
}

/// The kinds of refusals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A rule is missing.
    Denied(Denial),
    /// There is no such name.
    NoSuchName,
    /// The name has no address.
    NoAddress,
    /// The name could not be looked up.
    LookUp(String),
    /// The server refused the connection.
    ConnectionRefused,
    /// It cannot be reached.
    Unreachable(String),
    /// It did not answer in time.
    Late,
    /// The upstream proxy did not connect.
    Upstream(String),
}

impl Refusal {
    /// The status of a proxy's reply (RFC 9110, 15).
    pub fn status(&self) -> u16 {
        match self.reason {
            Reason::Denied(_) => 403,
            Reason::Late => 504,
            _ => 502,
        }
    }

    /// Whether a rule is missing, rather than a server.
    pub fn is_denied(&self) -> bool {
        matches!(self.reason, Reason::Denied(_))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = &self.target;
        match &self.reason {
            Reason::Denied(denial) => write!(f, "egress to {target} refused: {denial}; see {PAGE}"),
            Reason::NoSuchName => write!(f, "{target} does not resolve: there is no such name"),
            Reason::NoAddress => write!(f, "{target} does not resolve: the name has no address"),
            Reason::LookUp(error) => write!(f, "{target} does not resolve: {error}"),
            Reason::ConnectionRefused => write!(f, "{target} refused the connection"),
            Reason::Unreachable(error) => write!(f, "{target} cannot be reached: {error}"),
            Reason::Late => write!(f, "{target} did not answer within {PATIENCE:?}"),
            Reason::Upstream(error) => write!(f, "{target}: the upstream proxy: {error}"),
        }
    }
}

/// On whose behalf names are looked up: a function, or the platform itself. Clones share their places.
#[derive(Clone, Debug)]
pub struct Asker {
    places: Arc<Semaphore>,
    namespace: Option<Namespace>,
}

impl Asker {
    /// A function of this namespace; the platform itself without one.
    pub fn new(namespace: Option<&Namespace>) -> Self {
        Self { places: Arc::new(Semaphore::new(LOOKUPS_EACH)), namespace: namespace.cloned() }
    }

    /// A place for one look-up. Its own first: an asker that waits for a slow server takes none of what there is for all.
    async fn place(&self, policy: &EgressPolicy) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let own = Arc::clone(&self.places).acquire_owned().await.ok()?;
        let place = Arc::clone(&policy.lookups).acquire_owned().await.ok()?;
        Some((own, place))
    }

    /// Looks something up, in time.
    pub(crate) async fn look_up<T>(
        &self,
        policy: &EgressPolicy,
        name: &str,
        look: impl AsyncFnOnce(&Resolver) -> Result<Found<T>, String>,
    ) -> Result<Vec<T>, Refusal> {
        let refused = |reason| Refusal { target: name.to_owned(), reason };
        let looking = async {
            let _places = self.place(policy).await;
            let resolver = policy.resolvers.of(self.namespace.as_ref())?;
            look(&resolver).await
        };
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(Ok(Found::Some(found))) => Ok(found),
            Ok(Ok(Found::Nothing)) => Err(refused(Reason::NoAddress)),
            Ok(Ok(Found::NoSuchName)) => Err(refused(Reason::NoSuchName)),
            Ok(Err(error)) => Err(refused(Reason::LookUp(error))),
            Err(_) => Err(refused(Reason::Late)),
        }
    }
}

/// How a connection came about.
#[derive(Debug)]
pub enum Way {
    /// It ends at the server.
    Direct,
    /// It ends at the operator's proxy, which wants this header (or nothing) in each request.
    Through {
        /// A whole header with its line's end, or nothing.
        credentials: String,
    },
}

/// Whether an upstream proxy is asked for a connection to the server itself, or takes a request for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// A connection.
    Yes,
    /// A request.
    No,
}

/// Connects to a host, given by name or address, if that may be reached.
///
/// # Errors
/// A [`Refusal`] that names the host.
pub async fn connect(
    policy: &EgressPolicy,
    (reach, asker): (&Reach, &Asker),
    (host, port): (&str, u16),
    tunnel: Tunnel,
) -> Result<(TcpStream, Way), Refusal> {
    let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let refused = |reason| Refusal { target: target.clone(), reason };
    let denied = |denial| refused(Reason::Denied(denial));
    let literal = host.parse::<IpAddr>().ok();
    policy.judge_port(port).map_err(denied)?;
    reach.judge(literal.map_or(Asked::Name(host), Asked::Address), port).map_err(denied)?;
    if let Some(upstream) = policy.upstream.as_ref().filter(|upstream| upstream.permits(host)) {
        return through(upstream, host, port, tunnel).await.map_err(|error| refused(Reason::Upstream(error)));
    }
    if policy.upstream.is_some() && policy.networks.is_empty() && reach.networks.is_empty() {
        return Err(denied(Denial::NotThroughProxy));
    }
    let addresses = match literal {
        Some(address) => vec![address],
        None => {
            let looked = asker.look_up(policy, host, async |resolver| resolver.addresses(host).await).await;
            looked.map_err(|refusal| refused(refusal.reason))?
        }
    };
    // Every address is judged. Only permitted ones are tried.
    let name = literal.is_none().then_some(host);
    let judge = |address: IpAddr| match policy.judge(reach, name, address, port) {
        // With an upstream proxy, public addresses are reached through the proxy only.
        Ok(()) if policy.upstream.is_some() && address::is_global(address) => Err(Denial::NotThroughProxy),
        verdict => verdict,
    };
    let (mut permitted, mut denial) = (Vec::new(), None);
    for address in addresses {
        match judge(address) {
            Ok(()) => permitted.push(SocketAddr::new(address, port)),
            Err(why) => denial = denial.or(Some(why)),
        }
    }
    if permitted.is_empty() {
        return Err(refused(denial.map_or(Reason::NoAddress, Reason::Denied)));
    }
    let stream = open(&permitted).await.map_err(refused)?;
    Ok((stream, Way::Direct))
}

/// Connects to the first address that answers. One that drops packets must not use up the time of the others.
async fn open(addresses: &[SocketAddr]) -> Result<TcpStream, Reason> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = Reason::NoAddress;
    for (index, address) in addresses.iter().enumerate() {
        let is_last = index + 1 == addresses.len();
        let until = if is_last { deadline } else { deadline.min(Instant::now() + EACH) };
        last = match tokio::time::timeout_at(until, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(prepared(stream)),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Reason::ConnectionRefused,
            Ok(Err(error)) => Reason::Unreachable(error.to_string()),
            Err(_) => Reason::Late,
        };
    }
    Err(last)
}

/// A connection for others' bytes: what they send goes at once, and a peer that has vanished is noticed.
fn prepared(stream: TcpStream) -> TcpStream {
    // Where one of these cannot be set, the connection serves without it.
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
    let _ = rustix::net::sockopt::set_tcp_keepidle(&stream, KEEP_ALIVE);
    stream
}

/// Asks the operator's proxy; which address a name has is then its affair, so the name was judged.
async fn through(upstream: &Upstream, host: &str, port: u16, tunnel: Tunnel) -> Result<(TcpStream, Way), String> {
    let credentials = upstream.credentials();
    let connecting = TcpStream::connect((upstream.host.as_str(), upstream.port));
    let mut stream = match tokio::time::timeout(PATIENCE, connecting).await {
        Ok(Ok(stream)) => prepared(stream),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("it does not answer".to_owned()),
    };
    if tunnel == Tunnel::Yes {
        ask_for_tunnel(&mut stream, host, port, &credentials).await?;
    }
    Ok((stream, Way::Through { credentials }))
}

async fn ask_for_tunnel(stream: &mut TcpStream, host: &str, port: u16, credentials: &str) -> Result<(), String> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let head = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{credentials}\r\n");
    let ask = async {
        stream.write_all(head.as_bytes()).await?;
        read_head_alone(stream).await
    };
    let reply = tokio::time::timeout(TUNNEL, ask).await.map_err(|_| "it does not answer")?;
    let reply = reply.map_err(|error| error.to_string())?;
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(&reply) {
        Ok(_) if response.code.is_some_and(|code| (200..300).contains(&code)) => Ok(()),
        Ok(_) => Err(format!("it answers {}", response.code.unwrap_or_default())),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads up to the empty line and not a byte further: what follows is the server's, which may speak first.
async fn read_head_alone(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut seen = vec![0; MAX_HEAD];
    let mut before = 0;
    loop {
        let there = stream.peek(&mut seen).await?;
        if let Some(end) = seen[..there].windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let mut head = vec![0; end + 4];
            stream.read_exact(&mut head).await?;
            return Ok(head);
        }
        if there == MAX_HEAD || there == 0 {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        if there == before {
            // A peek does not wait for more than is there already.
            tokio::time::sleep(PEEK_AGAIN).await;
        }
        before = there;
    }
}

/// Reads a head up to its empty line. Bytes that arrived with it are returned too.
///
/// # Errors
/// A stream that ends, or a head that is too long.
pub async fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    loop {
        if head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            return Ok(head);
        }
        if head.len() > MAX_HEAD || stream.read_buf(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Resolvers;

    /// A proxy that answers one request so, and tells what it was asked.
    async fn proxy(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = read_head(&mut stream).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(head).unwrap()
        });
        (port, asked)
    }

    async fn ask(proxy: u16, host: &str) -> Result<(TcpStream, Way), Refusal> {
        let url = format!("http://me:secret@127.0.0.1:{proxy}");
        let upstream = Upstream::parse(&url, vec!["a.example".to_owned()]).unwrap();
        let mut policy = EgressPolicy::public(Resolvers::of_host());
        policy.upstream = Some(upstream);
        let asker = Asker::new(None);
        connect(&policy, (&Reach::public(), &asker), (host, 443), Tunnel::Yes).await
    }

    #[tokio::test]
    async fn the_upstream_proxy_is_asked_with_its_credentials() {
        let (port, asked) = proxy("HTTP/1.1 200 OK\r\n\r\n220 hello").await;
        let (mut stream, _) = ask(port, "a.example").await.unwrap();
        let mut greeting = [0; 9];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 hello");
        let asked = asked.await.unwrap();
        assert!(asked.starts_with("CONNECT a.example:443 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn what_the_upstream_proxy_refuses_is_told() {
        let (port, _asked) = proxy("HTTP/1.1 407 No\r\n\r\n").await;
        let refusal = ask(port, "a.example").await.unwrap_err();
        assert_eq!(refusal.status(), 502);
        assert_eq!(refusal.to_string(), "a.example:443: the upstream proxy: it answers 407");
    }

    #[tokio::test]
    async fn a_name_that_is_not_listed_is_not_asked_for() {
        let refusal = ask(1, "b.example").await.unwrap_err();
        assert_eq!((refusal.status(), refusal.is_denied()), (403, true));
    }

    #[tokio::test]
    async fn an_address_is_judged_before_it_is_connected_to() {
        let policy = EgressPolicy::public(Resolvers::of_host());
        let asker = Asker::new(None);
        for (host, port) in [("127.0.0.1", 80), ("169.254.169.254", 80), ("::ffff:10.0.0.1", 443), ("1.1.1.1", 25)] {
            let refusal = connect(&policy, (&Reach::public(), &asker), (host, port), Tunnel::Yes).await.unwrap_err();
            assert!(refusal.is_denied(), "{refusal}");
        }
    }
}
