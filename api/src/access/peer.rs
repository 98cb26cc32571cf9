//! The other end of a connection: its address, and whose socket it is where it lies on this machine.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use axum::http::HeaderMap;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as KernelAddress};
use tracing::debug;

/// The largest answer of the kernel about one socket.
const ANSWER: usize = 8 * 1024;

/// A connection from a client.
#[derive(Debug)]
pub(crate) struct Peer {
    ours: SocketAddr,
    theirs: SocketAddr,
    owner: OnceLock<Option<u32>>,
}

/// Whom an open platform is for: users of this machine, by their numbers.
#[derive(Clone, Debug, Default)]
pub struct Operators(Vec<u32>);

impl Operators {
    /// These users.
    pub fn new(users: impl IntoIterator<Item = u32>) -> Self {
        Self(users.into_iter().collect())
    }
}

impl Peer {
    pub(crate) fn new(ours: SocketAddr, theirs: SocketAddr) -> Self {
        Self { ours, theirs, owner: OnceLock::new() }
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.theirs.ip()
    }

    /// Whether its socket belongs to one of these users. The kernel is asked once.
    pub(crate) fn is_of(&self, operators: &Operators) -> bool {
        let owner = self.owner.get_or_init(|| {
            owner(self.theirs, self.ours).inspect_err(|error| debug!(%error, "whose a connection is is not known")).ok()
        });
        owner.is_some_and(|owner| operators.0.contains(&owner))
    }
}

/// The user whose socket is bound to one address and connected to another (sock_diag(7)).
fn owner(local: SocketAddr, remote: SocketAddr) -> io::Result<u32> {
    let (family, none) = match local {
        SocketAddr::V4(_) => (AF_INET, SocketId::new_v4()),
        SocketAddr::V6(_) => (AF_INET6, SocketId::new_v6()),
    };
    let socket_id = SocketId {
        source_port: local.port(),
        destination_port: remote.port(),
        source_address: local.ip(),
        destination_address: remote.ip(),
        // INET_DIAG_NOCOOKIE: whichever socket it is.
        cookie: [0xff; 8],
        ..none
    };
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&KernelAddress::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let mut answer = Vec::with_capacity(ANSWER);
    socket.recv(&mut answer, 0)?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        // A socket that its owner has closed has no inode, and is told to be root's.
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) if found.header.inode != 0 => {
            Ok(found.header.uid)
        }
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(io::Error::other(format!("the kernel answers {other:?}"))),
    }
}

/// The client's address: that of the connection, or what proxies that are trusted say they have it from. Each proxy adds
/// whom it has a request from at the end, so what none of them has added is the client's own word.
pub(crate) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(&address.to_canonical()));
    let mut client = peer;
    let told = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let told: Vec<&str> = told.flat_map(|value| value.split(',')).map(str::trim).collect();
    for address in told.iter().rev() {
        if !is_trusted(&client) {
            break;
        }
        // An entry that is no address ends the search: neither it nor the entries before it are trusted.
        let Ok(address) = address.parse::<IpAddr>() else { break };
        client = address;
    }
    client
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn whose_a_connection_is_is_told_by_the_kernel() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, theirs) = listener.accept().unwrap();
            let peer = Peer::new(server.local_addr().unwrap(), theirs);
            let own = rustix::process::getuid().as_raw();
            assert!(peer.is_of(&Operators::new([own])), "{address}");
            assert!(!peer.is_of(&Operators::new([own + 1])), "{address}");
            drop(client);
        }
    }

    #[test]
    fn nobody_owns_a_socket_that_is_not_there() {
        let peer = Peer::new("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        assert!(!peer.is_of(&Operators::new([0])));
    }

    #[test]
    fn proxies_are_believed_as_far_as_they_are_trusted() {
        let trusted: Vec<IpNet> = vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
        let client = |peer: &str, told: &[&str]| {
            let headers = told.iter().map(|value| ("x-forwarded-for".parse().unwrap(), value.parse().unwrap()));
            let headers: HeaderMap = headers.collect();
            client_address(peer.parse().unwrap(), &headers, &trusted).to_string()
        };
        assert_eq!(client("192.0.2.1", &["198.51.100.7"]), "192.0.2.1", "it is no proxy of ours");
        assert_eq!(client("127.0.0.1", &[]), "127.0.0.1");
        assert_eq!(client("127.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(
            client("127.0.0.1", &["203.0.113.1, 198.51.100.7, 10.1.1.1"]),
            "198.51.100.7",
            "the rest is its own word"
        );
        assert_eq!(client("127.0.0.1", &["198.51.100.7", "nonsense"]), "127.0.0.1");
        assert_eq!(client("::ffff:127.0.0.1", &["2001:db8::1"]), "2001:db8::1");
    }
}
