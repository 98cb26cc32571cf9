//! What the kernel tells of an instance's network.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use procfs::ProcResult;
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::Process;
use rustix::fd::{AsRawFd, OwnedFd};

/// The network of an instance, which is that of a process in it. Another process may have the number once the instance has
/// ended.
#[derive(Clone, Copy, Debug)]
pub struct InstanceNetwork {
    pid: i32,
}

impl InstanceNetwork {
    pub(crate) fn of_process(pid: i32) -> Self {
        Self { pid }
    }

    /// That of a process which is named by a descriptor, while it lives (proc_pid_fdinfo(5)).
    pub(crate) fn of(pidfd: &OwnedFd) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
        let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
        pid.filter(|pid| *pid > 0).map(Self::of_process)
    }

    /// Packets that found no route since the instance was made: what a program without egress has tried.
    pub fn unroutable(self) -> Option<u64> {
        Some(Process::new(self.pid).ok()?.snmp().ok()?.ip_out_no_routes)
    }

    /// Its TCP connections to other hosts that are open, also on one side alone: the instance's port, and the peer.
    pub fn connections(self) -> Vec<(u16, SocketAddrV4)> {
        self.sockets().unwrap_or_default().iter().filter_map(connection).collect()
    }

    fn sockets(self) -> ProcResult<Vec<TcpNetEntry>> {
        let process = Process::new(self.pid)?;
        let (mut sockets, dual) = (process.tcp()?, process.tcp6());
        // A kernel without IPv6 has no such table.
        sockets.extend(dual.unwrap_or_default());
        Ok(sockets)
    }
}

fn connection(socket: &TcpNetEntry) -> Option<(u16, SocketAddrV4)> {
    let is_open =
        matches!(socket.state, TcpState::Established | TcpState::FinWait1 | TcpState::FinWait2 | TcpState::CloseWait);
    // Programs use sockets of IPv6 for IPv4 too (RFC 3493, 3.7).
    let v4 = |address: SocketAddr| match address.ip().to_canonical() {
        IpAddr::V4(ip) => Some(SocketAddrV4::new(ip, address.port())),
        IpAddr::V6(_) => None,
    };
    let peer = v4(socket.remote_address)?;
    (is_open && !peer.ip().is_loopback()).then_some((socket.local_address.port(), peer))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn own() -> InstanceNetwork {
        InstanceNetwork::of_process(i32::try_from(std::process::id()).unwrap())
    }

    #[test]
    fn connections_to_other_hosts_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        let mut sockets = own().sockets().unwrap();
        let socket = sockets.iter_mut().find(|socket| socket.local_address.port() == port).unwrap();
        assert_eq!(connection(socket), None, "loopback needs no gateway");
        for peer in ["192.0.2.7:443", "[::ffff:192.0.2.7]:443"] {
            socket.remote_address = peer.parse().unwrap();
            assert_eq!(connection(socket), Some((port, "192.0.2.7:443".parse().unwrap())));
        }
        socket.state = TcpState::SynSent;
        assert_eq!(connection(socket), None, "its kernel asks again by itself");
    }

    #[test]
    fn packets_without_a_route_are_counted() {
        assert!(own().unroutable().is_some());
    }
}
