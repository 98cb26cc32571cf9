//! HTTP and CONNECT, from a listener on an instance's own loopback (RFC 9110, 9.3.6; RFC 9112, 3.2.2).

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::EgressPolicy;

/// Streams of one instance at once.
const STREAMS: usize = 64;
/// Hosts that a call's record names.
const MAX_HOSTS: usize = 100;
/// The largest head of a request.
const MAX_HEAD: usize = 16 * 1024;
/// How long a head, a name or a connection may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// The proxy of one instance; its streams end when it does.
#[derive(Debug)]
pub(crate) struct Egress {
    hosts: Arc<Mutex<BTreeSet<String>>>,
    _stop: DropGuard,
}

impl Egress {
    /// Serves an instance's listener until dropped.
    pub(crate) fn serve(listener: std::net::TcpListener, policy: Arc<EgressPolicy>) -> Self {
        let stop = CancellationToken::new();
        let hosts = Arc::<Mutex<BTreeSet<String>>>::default();
        let proxy = Proxy { policy, hosts: Arc::clone(&hosts), stop: stop.clone() };
        tokio::spawn(async move {
            if let Err(error) = proxy.accept_all(listener).await {
                debug!(%error, "the listener of an instance failed");
            }
        });
        Self { hosts, _stop: stop.drop_guard() }
    }

    /// Ends it, and tells the hosts that were reached.
    pub(crate) fn end(self) -> Vec<String> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[derive(Clone)]
struct Proxy {
    policy: Arc<EgressPolicy>,
    hosts: Arc<Mutex<BTreeSet<String>>>,
    stop: CancellationToken,
}

/// Why a request was refused: a status, and a sentence for who reads the log of a build.
type Refusal = (u16, String);

impl Proxy {
    async fn accept_all(self, listener: std::net::TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let streams = Arc::new(Semaphore::new(STREAMS));
        loop {
            let Ok(permit) = Arc::clone(&streams).acquire_owned().await else { return Ok(()) };
            let stream = tokio::select! {
                accepted = listener.accept() => accepted?.0,
                () = self.stop.cancelled() => return Ok(()),
            };
            let proxy = self.clone();
            tokio::spawn(async move {
                let stop = proxy.stop.clone();
                let _ = stop.run_until_cancelled(proxy.stream(stream)).await;
                drop(permit);
            });
        }
    }

    async fn stream(self, mut inside: TcpStream) {
        let Ok(Ok(head)) = tokio::time::timeout(PATIENCE, read_head(&mut inside)).await else { return };
        let carried = match Request::parse(&head) {
            Ok(request) => self.carry(&mut inside, &request, &head).await,
            Err(refusal) => Err(refusal),
        };
        if let Err((status, why)) = carried {
            let reply = format!(
                "HTTP/1.1 {status} Faena\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{why}",
                why.len()
            );
            let _ = inside.write_all(reply.as_bytes()).await;
        }
    }

    async fn carry(&self, inside: &mut TcpStream, request: &Request, head: &[u8]) -> Result<(), Refusal> {
        let mut outside = self.connect(&request.host, request.port).await?;
        let failed = |error: io::Error| (502, format!("{}: {error}", request.host));
        match &request.rewritten {
            None => inside.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.map_err(failed)?,
            Some(rewritten) => outside.write_all(rewritten).await.map_err(failed)?,
        }
        outside.write_all(&head[request.head..]).await.map_err(failed)?;
        // Either side may go at any time; there is nobody left to tell.
        let _ = tokio::io::copy_bidirectional(inside, &mut outside).await;
        Ok(())
    }

    /// Resolves once, judges every answer, and connects to an address that was judged.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, Refusal> {
        if !self.policy.ports.contains(&port) {
            return Err((403, format!("port {port} of {host} may not be reached; only {:?}", self.policy.ports)));
        }
        let looked_up = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host, port))).await;
        let addresses: Vec<SocketAddr> = match looked_up {
            Ok(Ok(addresses)) => addresses.collect(),
            Ok(Err(error)) => return Err((502, format!("{host} does not resolve: {error}"))),
            Err(_) => return Err((504, format!("{host} does not resolve in time"))),
        };
        if let Some(refused) = addresses.iter().find(|address| !self.policy.permits(address.ip())) {
            return Err((403, format!("{host} is at {}, which is no address of the public internet", refused.ip())));
        }
        self.tell(host);
        match tokio::time::timeout(PATIENCE, TcpStream::connect(addresses.as_slice())).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err((502, format!("{host} cannot be reached: {error}"))),
            Err(_) => Err((504, format!("{host} does not answer"))),
        }
    }

    fn tell(&self, host: &str) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() < MAX_HOSTS {
            hosts.insert(host.to_owned());
        }
    }
}

/// Reads up to the empty line, and whatever came with it.
async fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    loop {
        if head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            return Ok(head);
        }
        if head.len() > MAX_HEAD || stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    host: String,
    port: u16,
    /// How many bytes the head has.
    head: usize,
    /// The head as the server gets it; none for CONNECT.
    rewritten: Option<Vec<u8>>,
}

impl Request {
    fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let bad = || (400, "this proxy takes CONNECT host:port and http:// URLs".to_owned());
        let mut headers = [httparse::EMPTY_HEADER; 100];
        let mut parsed = httparse::Request::new(&mut headers);
        let Ok(httparse::Status::Complete(head)) = parsed.parse(bytes) else { return Err(bad()) };
        let (Some(method), Some(target)) = (parsed.method, parsed.path) else { return Err(bad()) };
        if method.eq_ignore_ascii_case("CONNECT") {
            let (host, port) = authority(target, None).ok_or_else(bad)?;
            return Ok(Self { host, port, head, rewritten: None });
        }
        let rest = target.strip_prefix("http://").ok_or_else(bad)?;
        let (at, path) = rest.find(['/', '?']).map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = authority(at, Some(80)).ok_or_else(bad)?;
        let path = if path.starts_with('?') { format!("/{path}") } else { path.to_owned() };
        let mut rewritten = format!("{method} {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n").into_bytes();
        let dropped = |name: &str| {
            ["host", "connection", "keep-alive", "upgrade"].iter().any(|own| name.eq_ignore_ascii_case(own))
                || name.to_ascii_lowercase().starts_with("proxy-")
        };
        for header in parsed.headers.iter().filter(|header| !dropped(header.name)) {
            rewritten.extend_from_slice(header.name.as_bytes());
            rewritten.extend_from_slice(b": ");
            rewritten.extend_from_slice(header.value);
            rewritten.extend_from_slice(b"\r\n");
        }
        rewritten.extend_from_slice(b"\r\n");
        Ok(Self { host, port, head, rewritten: Some(rewritten) })
    }
}

/// Host and port; an IPv6 address stands in brackets.
fn authority(text: &str, default: Option<u16>) -> Option<(String, u16)> {
    if text.contains('@') {
        return None;
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
        _ => (text, default),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then(|| Some((host.to_owned(), port?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Request, Refusal> {
        Request::parse(text.as_bytes())
    }

    #[test]
    fn connect_names_host_and_port() {
        let request = parse("CONNECT pypi.org:443 HTTP/1.1\r\nHost: pypi.org:443\r\n\r\n").unwrap();
        assert_eq!((request.host.as_str(), request.port, request.rewritten), ("pypi.org", 443, None));
        assert_eq!(parse("CONNECT [::1]:443 HTTP/1.1\r\n\r\n").unwrap().host, "::1");
        assert!(parse("CONNECT pypi.org HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn a_url_becomes_a_path_and_the_proxys_headers_go() {
        let request =
            parse("GET http://a.example/x?y HTTP/1.1\r\nHost: evil\r\nProxy-Authorization: x\r\nA: b\r\n\r\n").unwrap();
        let rewritten = String::from_utf8(request.rewritten.unwrap()).unwrap();
        assert_eq!(rewritten, "GET /x?y HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nA: b\r\n\r\n");
    }

    #[test]
    fn what_is_no_proxy_request_is_refused() {
        for text in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET https://a/ HTTP/1.1\r\n\r\n",
            "GET http://a@b/ HTTP/1.1\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
