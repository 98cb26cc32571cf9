//! One TCP connection of an instance: a stack of its own on this side, a connected socket on the other.
//!
//! A stack for each connection keeps the way of a packet constant, whatever the number of connections, and a panic ends one
//! of them alone. Data is copied from the socket into the stack's buffer and from there into a packet, and back; what does
//! not fit stays in the sender's kernel.

use std::io;
use std::net::Ipv4Addr;
use std::time::Instant;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::{Duration as StackDuration, Instant as StackInstant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};

use crate::packet::Ends;
use crate::server_name::{self, Verdict};

/// What a connection buffers of what its instance sends. At most 65,535: above that, version 0.14.0 of the stack takes the
/// window of its SYN|ACK, which is never scaled, for a scaled one, accepts more than it has room for and panics.
pub(crate) const RECEIVE_BUFFER: usize = 64 * 1024 - 1;
/// What it buffers of what its instance is sent. Both buffers together are 256 KiB.
pub(crate) const SEND_BUFFER: usize = 192 * 1024;

/// How long a connection may be silent before its instance is asked whether it is still there.
const KEEP_ALIVE: StackDuration = StackDuration::from_secs(60);

/// The other side of a connection.
pub(crate) trait Peer {
    /// Reads what is there; 0 is the end, `WouldBlock` for nothing yet.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes what fits.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Says that nothing else will be written.
    fn finish(&mut self);
    /// Makes dropping it a reset rather than an end.
    fn abort(&mut self);
}

/// Takes packets for the instance.
pub(crate) trait Outlet {
    /// Sends one; a packet that cannot be sent is lost, as on any network.
    fn send(&mut self, packet: &[u8]);
}

/// The stack's way in and out for one step.
struct Wire<'a, O> {
    incoming: Option<&'a [u8]>,
    outlet: &'a mut O,
    scratch: &'a mut Vec<u8>,
    mtu: usize,
}

struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct OutgoingPacket<'a, O> {
    outlet: &'a mut O,
    scratch: &'a mut Vec<u8>,
}

impl<O: Outlet> TxToken for OutgoingPacket<'_, O> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        if self.scratch.len() < length {
            self.scratch.resize(length, 0);
        }
        let written = f(&mut self.scratch[..length]);
        self.outlet.send(&self.scratch[..length]);
        written
    }
}

impl<O: Outlet> Device for Wire<'_, O> {
    type RxToken<'b>
        = Incoming<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = OutgoingPacket<'b, O>
    where
        Self: 'b;

    fn receive(&mut self, _now: StackInstant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let packet = self.incoming.take()?;
        Some((Incoming(packet), OutgoingPacket { outlet: self.outlet, scratch: self.scratch }))
    }

    fn transmit(&mut self, _now: StackInstant) -> Option<Self::TxToken<'_>> {
        Some(OutgoingPacket { outlet: self.outlet, scratch: self.scratch })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // An instance without capabilities cannot send a packet whose checksum its kernel did not compute, and nothing can
        // be damaged between two memories of one machine.
        let mut checksum = ChecksumCapabilities::default();
        (checksum.ipv4, checksum.tcp) = (Checksum::Tx, Checksum::Tx);
        capabilities.checksum = checksum;
        capabilities
    }
}

/// What a step of a connection has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Bytes from the instance.
    pub(crate) sent: u64,
    /// Bytes to the instance.
    pub(crate) received: u64,
}

/// How a peer has said its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerEnd {
    /// By an end, after all that it had to say.
    End,
    /// By an error: a reset, mostly.
    Reset,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It does; it has to be looked at again at this time, if nothing comes before.
    Goes(Option<Instant>),
    /// It is over.
    Over,
    /// It is over, since its client has named a server that it may not reach.
    Refused,
}

/// One connection.
pub(crate) struct Flow<P> {
    stack: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    mtu: usize,
    /// When this began; the stack counts from here.
    origin: Instant,
    pub(crate) peer: P,
    /// Whether the peer may have something to read, and may take something.
    pub(crate) is_readable: bool,
    pub(crate) is_writable: bool,
    /// Whether the peer has said its last, and how.
    peer_end: Option<PeerEnd>,
    /// Whether it has been told that the instance has said its last.
    peer_told: bool,
    /// Whether it takes nothing any more: what the instance sends is dropped, what it has sent before still arrives.
    peer_deaf: bool,
    /// Whether it was found to have reset the connection when something was written.
    peer_reset: bool,
    /// Names that the first message of TLS may name, until that has come.
    names: Option<Vec<String>>,
    /// When it is looked at again, as far as that was asked for.
    pub(crate) wakes_at: Option<Instant>,
}

impl<P: Peer> Flow<P> {
    /// A connection that waits for its first segment.
    pub(crate) fn new(ends: Ends, own: Ipv4Addr, mtu: usize, (peer, seed): (P, u64), now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut none = Vec::new();
        let mut nowhere = Nowhere;
        let mut wire = Wire { incoming: None, outlet: &mut nowhere, scratch: &mut none, mtu };
        let mut stack = Interface::new(config, &mut wire, StackInstant::ZERO);
        let here = IpAddress::from(*ends.target.ip());
        stack.update_ip_addrs(|addresses| {
            // There is room for one.
            let _ = addresses.push(IpCidr::new(here, 32));
        });
        // Any address is reached through the instance's: the device has no other end.
        let _ = stack.routes_mut().add_default_ipv4_route(own);
        let mut socket =
            Socket::new(SocketBuffer::new(vec![0; RECEIVE_BUFFER]), SocketBuffer::new(vec![0; SEND_BUFFER]));
        socket.set_nagle_enabled(false);
        // A kernel whose socket is gone answers with a reset.
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_ack_delay(None);
        // A new socket listens wherever it is told to; the port of a packet that was parsed is none but 0.
        let _ = socket.listen(IpListenEndpoint { addr: Some(here), port: ends.target.port() });
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(socket);
        Self {
            stack,
            sockets,
            handle,
            mtu,
            origin: now,
            peer,
            is_readable: true,
            is_writable: true,
            peer_end: None,
            peer_told: false,
            peer_deaf: false,
            peer_reset: false,
            names: None,
            wakes_at: None,
        }
    }

    /// What the client says first in TLS has to name one of these.
    pub(crate) fn with_names(self, names: Option<Vec<String>>) -> Self {
        Self { names, ..self }
    }

    fn stack_time(&self, now: Instant) -> StackInstant {
        let passed = now.saturating_duration_since(self.origin);
        StackInstant::from_micros(i64::try_from(passed.as_micros()).unwrap_or(i64::MAX))
    }

    /// Takes a packet of this connection, or none, and moves what can be moved. At most `budget` bytes pass.
    pub(crate) fn step(
        &mut self,
        packet: Option<&[u8]>,
        (outlet, scratch): (&mut impl Outlet, &mut Vec<u8>),
        budget: u64,
        now: Instant,
    ) -> (Moved, Life) {
        let at = self.stack_time(now);
        let mut moved = Moved::default();
        let mut wire = Wire { incoming: packet, outlet, scratch, mtu: self.mtu };
        if packet.is_some() {
            self.stack.poll_ingress_single(at, &mut wire, &mut self.sockets);
        }
        if self.judge_names() == Verdict::Refused {
            self.peer.abort();
            self.reset_by(at, &mut wire);
            return (moved, Life::Refused);
        }
        loop {
            let sent = self.pass_to_peer(budget.saturating_sub(moved.sent + moved.received));
            moved.sent += sent;
            let received = self.pass_to_instance(budget.saturating_sub(moved.sent + moved.received));
            moved.received += received;
            self.end_what_is_over();
            let polled = self.stack.poll_egress(at, &mut wire, &mut self.sockets);
            if sent + received == 0 && polled == PollResult::None {
                break;
            }
        }
        let socket = self.sockets.get::<Socket<'_>>(self.handle);
        let state = socket.state();
        let is_over = match state {
            State::Closed => true,
            // After a reset in an early state the socket would listen again.
            State::Listen => packet.is_some(),
            // Nothing else can come; what has come may still wait for the peer.
            State::TimeWait => socket.recv_queue() == 0,
            _ => false,
        };
        if is_over {
            if state != State::TimeWait && !(self.peer_end == Some(PeerEnd::End) && self.peer_told) {
                self.peer.abort();
            }
            return (moved, Life::Over);
        }
        let wait = self.stack.poll_delay(at, &self.sockets);
        let again =
            wait.map(|wait: StackDuration| now + std::time::Duration::from_micros(wait.total_micros().max(100)));
        (moved, Life::Goes(again))
    }

    /// Judges the first bytes of the client, where its names are restricted.
    fn judge_names(&mut self) -> Verdict {
        let Self { sockets, handle, names, .. } = self;
        let Some(permitted) = names else { return Verdict::Permitted };
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
        let judged = socket.recv(|bytes| (0, server_name::judge(bytes, permitted))).unwrap_or(Verdict::Unfinished);
        // A client that has said its last will not finish the message.
        let is_open =
            matches!(socket.state(), State::SynReceived | State::Established | State::FinWait1 | State::FinWait2);
        match judged {
            Verdict::Permitted => *names = None,
            Verdict::Unfinished if !is_open && socket.recv_queue() > 0 => return Verdict::Refused,
            Verdict::Unfinished | Verdict::Refused => {}
        }
        judged
    }

    /// What the instance has sent goes to the peer, and then its end.
    fn pass_to_peer(&mut self, budget: u64) -> u64 {
        let Self { sockets, handle, peer, is_writable, peer_told, peer_deaf, peer_reset, names, .. } = self;
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
        let mut passed = 0;
        // What may be the beginning of a refused message waits.
        if names.is_some() && socket.recv_queue() > 0 {
            return 0;
        }
        while *is_writable && passed < budget {
            let most = usize::try_from(budget - passed).unwrap_or(usize::MAX);
            let wrote = socket.recv(|bytes| {
                let bytes = &bytes[..bytes.len().min(most)];
                if bytes.is_empty() {
                    return (0, 0);
                }
                if *peer_deaf {
                    return (bytes.len(), bytes.len());
                }
                match peer.write(bytes) {
                    Ok(written) => (written, written),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        *is_writable = false;
                        (0, 0)
                    }
                    // What it has sent before comes first; then its end shows when it is read. A reset that was told here
                    // is not told there again.
                    Err(error) => {
                        *peer_deaf = true;
                        *peer_reset |= error.kind() == io::ErrorKind::ConnectionReset;
                        (bytes.len(), bytes.len())
                    }
                }
            });
            match wrote {
                Ok(0) => break,
                Ok(written) => passed += written as u64,
                Err(RecvError::Finished) => {
                    if !std::mem::replace(peer_told, true) {
                        peer.finish();
                    }
                    break;
                }
                Err(RecvError::InvalidState) => break,
            }
        }
        passed
    }

    /// What the peer has sent goes to the instance.
    fn pass_to_instance(&mut self, budget: u64) -> u64 {
        let Self { sockets, handle, peer, is_readable, peer_end, peer_reset, .. } = self;
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
        let mut passed = 0;
        while *is_readable && passed < budget && socket.can_send() {
            let most = usize::try_from(budget - passed).unwrap_or(usize::MAX);
            let read = socket.send(|room| {
                let length = room.len().min(most);
                if length == 0 {
                    return (0, 0);
                }
                match peer.read(&mut room[..length]) {
                    Ok(0) => *peer_end = Some(if *peer_reset { PeerEnd::Reset } else { PeerEnd::End }),
                    Ok(read) => return (read, read),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => *peer_end = Some(PeerEnd::Reset),
                }
                (0, 0)
            });
            match read {
                Ok(0) => *is_readable = false,
                Ok(read) => passed += read as u64,
                Err(_) => break,
            }
        }
        passed
    }

    /// Tells the instance of the peer's end, when all that came before it is told: a reset when that has arrived, an end when
    /// nothing waits for the peer any more.
    fn end_what_is_over(&mut self) {
        let Self { sockets, handle, peer_end, .. } = self;
        let socket = sockets.get_mut::<Socket<'_>>(*handle);
        match peer_end {
            Some(PeerEnd::Reset) if socket.send_queue() == 0 => socket.abort(),
            // In CLOSE-WAIT the last acknowledgement would end the connection, and what waits with it.
            Some(PeerEnd::End) if socket.state() != State::CloseWait || socket.recv_queue() == 0 => socket.close(),
            _ => {}
        }
    }

    /// Ends the connection by a reset to both sides.
    pub(crate) fn reset(&mut self, outlet: &mut impl Outlet, scratch: &mut Vec<u8>, now: Instant) {
        // An instance that has said its last is not reset: what it sent arrives.
        if !self.peer_told {
            self.peer.abort();
        }
        let at = self.stack_time(now);
        self.reset_by(at, &mut Wire { incoming: None, outlet, scratch, mtu: self.mtu });
    }

    fn reset_by<O: Outlet>(&mut self, at: StackInstant, wire: &mut Wire<'_, O>) {
        self.sockets.get_mut::<Socket<'_>>(self.handle).abort();
        self.stack.poll_egress(at, wire, &mut self.sockets);
    }
}

/// Takes nothing: a stack that is made sends nothing.
struct Nowhere;

impl Outlet for Nowhere {
    fn send(&mut self, _packet: &[u8]) {}
}
