//! From a name to a connection: through the operator's own proxy where there is one, else to an address that was judged.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::EgressPolicy;
use crate::judge::{LOOKUPS_EACH, Upstream, own_addresses};

/// How long a head, a name or a connection may take.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// The largest head of a request or a reply.
const MAX_HEAD: usize = 16 * 1024;

/// Why nothing was connected: a status of HTTP, and a sentence for who reads the log.
pub type Refusal = (u16, String);

/// On whose behalf names are looked up: a function, or the platform itself. Clones share their places.
#[derive(Clone, Debug)]
pub struct Asker(Arc<Semaphore>);

impl Default for Asker {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LOOKUPS_EACH)))
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

/// Connects to a host, if that may be reached; `tunnel` asks an upstream proxy for a connection to the server itself.
///
/// # Errors
/// A [`Refusal`] that names the host.
pub async fn connect(
    policy: &EgressPolicy,
    asker: &Asker,
    (host, port): (&str, u16),
    tunnel: bool,
) -> Result<(TcpStream, Way), Refusal> {
    if !policy.ports.contains(&port) {
        return Err((403, format!("port {port} of {host} may not be reached; only {:?}", policy.ports)));
    }
    match &policy.upstream {
        Some(upstream) => through(upstream, host, port, tunnel).await,
        None => Ok((direct(policy, asker, host, port).await?, Way::Direct)),
    }
}

/// Resolves once, judges every answer, and connects to an address that was judged.
///
/// # Errors
/// A [`Refusal`] that names the host.
pub async fn direct(policy: &EgressPolicy, asker: &Asker, host: &str, port: u16) -> Result<TcpStream, Refusal> {
    let addresses = resolve(policy, asker, host, port).await?;
    let own = own_addresses();
    if let Some(refused) = addresses.iter().find(|address| !policy.permits(address.ip(), &own)) {
        return Err((403, format!("{host} is at {}, which is no address of the public internet", refused.ip())));
    }
    open(addresses.as_slice(), host).await
}

/// The system's own look-up blocks a thread for as long as it likes, so only so many may be under way at once.
async fn resolve(policy: &EgressPolicy, asker: &Asker, host: &str, port: u16) -> Result<Vec<SocketAddr>, Refusal> {
    let late = |_| (504, format!("{host} does not resolve in time"));
    // Its own place first: an asker that waits for a slow server takes none of what there is for all.
    let own = tokio::time::timeout(PATIENCE, Arc::clone(&asker.0).acquire_owned()).await.map_err(late)?;
    let place = tokio::time::timeout(PATIENCE, Arc::clone(&policy.lookups).acquire_owned()).await.map_err(late)?;
    let name = host.to_owned();
    let looking = tokio::task::spawn_blocking(move || {
        // The asker may have gone; the place is taken until the thread is free.
        let _places = (place, own);
        (name.as_str(), port).to_socket_addrs().map(Vec::from_iter)
    });
    match tokio::time::timeout(PATIENCE, looking).await.map_err(late)? {
        Ok(Ok(addresses)) if addresses.is_empty() => Err((502, format!("{host} has no address"))),
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err((502, format!("{host} does not resolve: {error}"))),
        Err(error) => Err((502, format!("{host} does not resolve: {error}"))),
    }
}

async fn open(addresses: &[SocketAddr], host: &str) -> Result<TcpStream, Refusal> {
    match tokio::time::timeout(PATIENCE, TcpStream::connect(addresses)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err((502, format!("{host} cannot be reached: {error}"))),
        Err(_) => Err((504, format!("{host} does not answer"))),
    }
}

/// Asks the operator's proxy; which address a name has is then its affair, so the name is judged.
async fn through(upstream: &Upstream, host: &str, port: u16, needs_tunnel: bool) -> Result<(TcpStream, Way), Refusal> {
    if !upstream.permits(host) {
        let why = "is not among the names that may be reached through the upstream proxy (setting egress_hosts)";
        return Err((403, format!("{host} {why}")));
    }
    let credentials = upstream.credentials();
    let failed = |why: String| (502, format!("the upstream proxy: {why}"));
    let connecting = TcpStream::connect((upstream.host.as_str(), upstream.port));
    let mut stream = match tokio::time::timeout(PATIENCE, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed("it does not answer".to_owned())),
    };
    if needs_tunnel {
        tunnel(&mut stream, host, port, &credentials).await.map_err(failed)?;
    }
    Ok((stream, Way::Through { credentials }))
}

/// How long the upstream proxy may take to reach a server.
const TUNNEL: Duration = Duration::from_secs(30);

async fn tunnel(stream: &mut TcpStream, host: &str, port: u16, credentials: &str) -> Result<(), String> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let head = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{credentials}\r\n");
    let ask = async {
        stream.write_all(head.as_bytes()).await?;
        read_head(stream).await
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

/// Reads up to the empty line, and whatever came with it.
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

    fn policy(port: u16) -> EgressPolicy {
        let url = format!("http://me:secret@127.0.0.1:{port}");
        let upstream = Upstream::parse(&url, vec!["a.example".to_owned()]).unwrap();
        EgressPolicy { upstream: Some(upstream), ..EgressPolicy::web() }
    }

    #[tokio::test]
    async fn the_upstream_proxy_is_asked_with_its_credentials() {
        let (port, asked) = proxy("HTTP/1.1 200 OK\r\n\r\n").await;
        connect(&policy(port), &Asker::default(), ("a.example", 443), true).await.unwrap();
        let asked = asked.await.unwrap();
        assert!(asked.starts_with("CONNECT a.example:443 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn what_the_upstream_proxy_refuses_is_told() {
        let (port, _asked) = proxy("HTTP/1.1 407 No\r\n\r\n").await;
        let (status, why) = connect(&policy(port), &Asker::default(), ("a.example", 443), true).await.unwrap_err();
        assert_eq!((status, why.as_str()), (502, "the upstream proxy: it answers 407"));
    }

    #[tokio::test]
    async fn a_name_that_nobody_listed_is_not_asked_for() {
        let (status, _) = connect(&policy(1), &Asker::default(), ("b.example", 443), true).await.unwrap_err();
        assert_eq!(status, 403);
    }
}
