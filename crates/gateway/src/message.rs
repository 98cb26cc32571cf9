//! What worker and gateway say to each other, over one socket, as frames of `faena_instance_protocol`.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

/// The device of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceId(pub u64);

/// One connection; unique while the gateway runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FlowId(pub u64);

/// One query to the resolver's address; unique while the gateway runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QueryId(pub u64);

/// From the worker to the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGateway {
    /// Serve a device. With it come the device, and the memory that its [`Counters`] are written to.
    Attach {
        /// The number that the worker gave it.
        device: DeviceId,
        /// Whose it is: devices of one owner share a bound on connections.
        owner: u64,
        /// Bytes that may pass until [`ToGateway::EndCall`], both ways together.
        budget: u64,
        /// The number of the call that runs.
        call: u64,
        /// Connections that an earlier gateway served: they are reset. Each is the instance's port and the destination.
        lost: Vec<(u16, SocketAddrV4)>,
    },
    /// Serve a device no longer.
    Detach {
        /// Which.
        device: DeviceId,
    },
    /// A call has ended: its connections are reset, and what may pass is as at the beginning.
    EndCall {
        /// Whose.
        device: DeviceId,
        /// The number of the next call, in whose name connections are asked for from now on.
        next: u64,
    },
    /// What may pass is as at the beginning; connections stay.
    Renew {
        /// Whose.
        device: DeviceId,
    },
    /// The destination was reached; the connected socket comes with this.
    Dialed {
        /// Of which device.
        device: DeviceId,
        /// Which connection.
        flow: FlowId,
        /// Names that the first message of TLS may name, as `api.example.org` and `*.example.org`; none where any may be
        /// named.
        names: Option<Vec<String>>,
    },
    /// There is no connection.
    Refused {
        /// Of which device.
        device: DeviceId,
        /// Which connection.
        flow: FlowId,
        /// What the instance is told.
        how: Refuse,
    },
    /// A DNS message that answers a query.
    Answer {
        /// Of which device.
        device: DeviceId,
        /// Which query.
        query: QueryId,
        /// The message; empty for no answer.
        message: Vec<u8>,
    },
}

/// How an instance learns that there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refuse {
    /// By a reset: "connection refused".
    Reset,
    /// By an ICMP message: "no route to host".
    Unreachable,
}

/// From the gateway to the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGateway {
    /// Connect to a destination, if that may be reached.
    Dial {
        /// Of which device.
        device: DeviceId,
        /// Which connection.
        flow: FlowId,
        /// The call that it was asked for in.
        call: u64,
        /// Where to.
        target: SocketAddrV4,
    },
    /// A DNS message was sent to the resolver's address by UDP.
    Query {
        /// Of which device.
        device: DeviceId,
        /// Which query.
        query: QueryId,
        /// The message.
        message: Vec<u8>,
    },
    /// Something was refused that the worker was not asked about.
    Blocked {
        /// Of which device.
        device: DeviceId,
        /// Why.
        why: Blocked,
        /// Where it would have gone.
        target: SocketAddrV4,
    },
}

/// Why the gateway refuses by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Blocked {
    /// A datagram; only queries to the resolver are passed on.
    Udp,
    /// As many connections as one instance, its function or the node may have.
    Connections,
    /// The client has named another server in TLS than the one that it dialled.
    ServerName,
}

/// What has passed through a device, in memory that both processes map to a descriptor: the worker reads it at the end of
/// each call, and no message is needed for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that the instance has sent.
    pub sent: u64,
    /// Bytes that it has received.
    pub received: u64,
    /// Connections that were opened.
    pub connections: u64,
}

/// How many bytes the counters take.
const COUNTERS: usize = 24;
/// Where the worker writes what has passed through the proxy since the call began.
const PROXIED: u64 = COUNTERS as u64;

impl Counters {
    /// Memory for the counters of one device.
    ///
    /// # Errors
    /// What memfd_create(2) says.
    pub fn memory() -> io::Result<std::os::fd::OwnedFd> {
        let memory = rustix::fs::memfd_create("faena-counters", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, PROXIED + 8)?;
        Ok(memory)
    }

    /// Reads them.
    pub fn read(memory: impl AsFd) -> Self {
        let mut bytes = [0; COUNTERS];
        let whole = rustix::io::pread(memory, &mut bytes, 0).is_ok_and(|read| read == COUNTERS);
        let number = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        if whole { Self { sent: number(0), received: number(8), connections: number(16) } } else { Self::default() }
    }

    /// Writes them.
    pub(crate) fn write(self, memory: impl AsFd) {
        let words = [self.sent, self.received, self.connections].map(u64::to_ne_bytes);
        // The memory was made large enough; a failure leaves older numbers.
        let _ = rustix::io::pwrite(memory, &words.concat(), 0);
    }

    /// What has passed since another reading.
    pub fn since(self, before: Self) -> Self {
        Self {
            sent: self.sent.saturating_sub(before.sent),
            received: self.received.saturating_sub(before.received),
            connections: self.connections.saturating_sub(before.connections),
        }
    }

    /// Bytes both ways.
    pub fn bytes(self) -> u64 {
        self.sent.saturating_add(self.received)
    }

    /// Tells the gateway what has passed through the proxy in the call that runs.
    pub fn write_proxied(memory: impl AsFd, bytes: u64) {
        let _ = rustix::io::pwrite(memory, &bytes.to_ne_bytes(), PROXIED);
    }

    /// What has passed through the proxy in the call that runs.
    pub(crate) fn proxied(memory: impl AsFd) -> u64 {
        let mut word = [0; 8];
        let _ = rustix::io::pread(memory, &mut word, PROXIED);
        u64::from_ne_bytes(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_as_they_were_written() {
        let memory = Counters::memory().unwrap();
        assert_eq!(Counters::read(&memory), Counters::default());
        let counters = Counters { sent: 1, received: u64::MAX, connections: 3 };
        counters.write(&memory);
        Counters::write_proxied(&memory, 7);
        assert_eq!(Counters::read(&memory), counters);
        assert_eq!(Counters::proxied(&memory), 7);
    }
}
