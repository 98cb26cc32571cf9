//! The device against a second TCP/IP stack, which plays the kernel of an instance. Peers and time are in memory.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device as Phy, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::*;

const BUDGET: u64 = 1 << 30;
const THERE: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 5), 5432);

/// The other side of a connection, in memory.
#[derive(Debug, Default)]
struct Memory {
    incoming: VecDeque<u8>,
    ended: bool,
    outgoing: Vec<u8>,
    takes: usize,
    finished: bool,
    aborted: bool,
}

#[derive(Clone, Debug)]
struct Remote(Rc<RefCell<Memory>>);

impl Remote {
    fn new() -> Self {
        Self(Rc::new(RefCell::new(Memory { takes: usize::MAX, ..Memory::default() })))
    }
}

impl Peer for Remote {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut memory = self.0.borrow_mut();
        if memory.incoming.is_empty() {
            return if memory.ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let length = buffer.len().min(memory.incoming.len());
        for (place, byte) in buffer.iter_mut().zip(memory.incoming.drain(..length)) {
            *place = byte;
        }
        Ok(length)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut memory = self.0.borrow_mut();
        let length = bytes.len().min(memory.takes);
        if length == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        memory.takes -= length;
        memory.outgoing.extend_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn finish(&mut self) {
        self.0.borrow_mut().finished = true;
    }

    fn abort(&mut self) {
        self.0.borrow_mut().aborted = true;
    }
}

/// What a device does, noted down.
#[derive(Default)]
struct Notes {
    packets: VecDeque<Vec<u8>>,
    dials: Vec<FlowId>,
    queries: Vec<(QueryId, Vec<u8>)>,
    blocked: Vec<Blocked>,
    places: usize,
    wakes: Vec<(FlowId, Instant)>,
    last: u64,
    counted: Counters,
}

impl Outlet for Notes {
    fn send(&mut self, packet: &[u8]) {
        self.packets.push_back(packet.to_vec());
    }
}

impl Effects for Notes {
    fn dial(&mut self, flow: FlowId, _call: u64, _ends: Ends) {
        self.dials.push(flow);
    }

    fn query(&mut self, query: QueryId, message: &[u8]) {
        self.queries.push((query, message.to_vec()));
    }

    fn blocked(&mut self, why: Blocked, _ends: Ends) {
        self.blocked.push(why);
    }

    fn take_place(&mut self) -> bool {
        self.places += 1;
        true
    }

    fn give_place(&mut self, _flow: FlowId) {
        self.places -= 1;
    }

    fn wake(&mut self, flow: FlowId, at: Instant) {
        self.wakes.push((flow, at));
    }

    fn count(&mut self, counters: &Counters) {
        self.counted = *counters;
    }

    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// The instance's kernel.
struct Kernel {
    stack: Interface,
    sockets: SocketSet<'static>,
    wire: Line,
    port: u16,
}

#[derive(Default)]
struct Line {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

struct Arrived(Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Leaving<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Phy for Line {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _now: StackInstant) -> Option<(Arrived, Leaving<'_>)> {
        Some((Arrived(self.incoming.pop_front()?), Leaving(&mut self.outgoing)))
    }

    fn transmit(&mut self, _now: StackInstant) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        (capabilities.medium, capabilities.max_transmission_unit) = (Medium::Ip, usize::from(link::MTU));
        capabilities
    }
}

impl Kernel {
    fn new() -> Self {
        let mut wire = Line::default();
        let mut stack = Interface::new(Config::new(HardwareAddress::Ip), &mut wire, StackInstant::ZERO);
        stack.update_ip_addrs(|addresses| addresses.push(IpCidr::new(link::ADDRESS.into(), 32)).unwrap());
        stack.routes_mut().add_default_ipv4_route(link::RESOLVER).unwrap();
        Self { stack, sockets: SocketSet::new(Vec::new()), wire, port: 40_000 }
    }

    fn connect(&mut self) -> SocketHandle {
        self.port += 1;
        let buffer = || SocketBuffer::new(vec![0; 60_000]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.connect(self.stack.context(), (IpAddress::from(THERE.0), THERE.1), self.port).unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }
}

/// An instance, its device, and time.
struct World {
    kernel: Kernel,
    device: Device<Remote>,
    notes: Notes,
    began: Instant,
    now: Instant,
}

impl World {
    fn new(budget: u64) -> Self {
        let now = Instant::now();
        let device = Device::new(link::ADDRESS, budget, now);
        Self { kernel: Kernel::new(), device, notes: Notes::default(), began: now, now }
    }

    /// Lets everything happen that can happen without waiting.
    fn settle(&mut self) {
        loop {
            let passed = i64::try_from((self.now - self.began).as_micros()).unwrap();
            let Kernel { stack, sockets, wire, .. } = &mut self.kernel;
            wire.incoming.extend(self.notes.packets.drain(..));
            stack.poll(StackInstant::from_micros(passed), wire, sockets);
            let packets = std::mem::take(&mut wire.outgoing);
            if packets.is_empty() {
                return;
            }
            for packet in packets {
                self.device.packet(&packet, &mut self.notes, self.now);
            }
        }
    }

    /// A connection that stands.
    fn connected(&mut self) -> (SocketHandle, Remote) {
        let handle = self.kernel.connect();
        self.settle();
        let flow = self.notes.dials.pop().expect("a dial");
        assert_eq!(self.kernel.socket(handle).state(), State::SynSent, "nothing is answered before");
        let remote = Remote::new();
        assert!(self.device.dialed(flow, (remote.clone(), None), &mut self.notes, self.now));
        self.settle();
        assert_eq!(self.kernel.socket(handle).state(), State::Established);
        (handle, remote)
    }

    /// Tells the device that a peer has something, and lets everything happen.
    fn peer_is_ready(&mut self) {
        for flow in self.device.by_id.keys().copied().collect::<Vec<_>>() {
            self.device.ready(flow, (true, true), &mut self.notes, self.now);
        }
        self.settle();
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[test]
fn bytes_pass_both_ways_and_so_do_ends() {
    let mut world = World::new(BUDGET);
    let (handle, remote) = world.connected();
    let (up, down) = (pattern(1_000_000), pattern(700_000));
    remote.0.borrow_mut().incoming.extend(&down);
    let (mut sent, mut got) = (0, Vec::new());
    for _ in 0..1000 {
        let socket = world.kernel.socket(handle);
        sent += socket.send_slice(&up[sent..]).unwrap_or(0);
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        if sent == up.len() {
            // Its end is told while the other way goes on.
            socket.close();
        }
        world.peer_is_ready();
    }
    assert!(got == down && remote.0.borrow().outgoing == up, "{} {}", got.len(), remote.0.borrow().outgoing.len());
    assert!(remote.0.borrow().finished && !remote.0.borrow().aborted);
    assert_eq!(world.device.connections(), 1, "the peer may still send");
    remote.0.borrow_mut().ended = true;
    world.peer_is_ready();
    assert_eq!((world.device.connections(), world.notes.places), (0, 0));
    assert!(!remote.0.borrow().aborted);
    let Counters { sent, received, connections } = world.device.counters;
    assert_eq!((sent, received, connections), (1_000_000, 700_000, 1));
}

#[test]
fn a_refusal_is_a_reset_at_once() {
    let mut world = World::new(BUDGET);
    let handle = world.kernel.connect();
    world.settle();
    let flow = world.notes.dials.pop().unwrap();
    world.device.refused(flow, Refuse::Reset, &mut world.notes);
    world.settle();
    assert_eq!(world.kernel.socket(handle).state(), State::Closed);
    assert_eq!((world.device.connections(), world.notes.places), (0, 0));
    // A late connection belongs to nothing.
    assert!(!world.device.dialed(flow, (Remote::new(), None), &mut world.notes, world.now));
}

#[test]
fn a_reset_reaches_the_other_side() {
    let mut world = World::new(BUDGET);
    let (handle, remote) = world.connected();
    world.kernel.socket(handle).abort();
    world.settle();
    assert!(remote.0.borrow().aborted);
    assert_eq!((world.device.connections(), world.notes.places), (0, 0));
}

#[test]
fn the_end_of_a_call_resets_what_is_open_and_opens_nothing_else() {
    let mut world = World::new(BUDGET);
    let (open, remote) = world.connected();
    let waiting = world.kernel.connect();
    world.settle();
    world.device.end_call(1, &mut world.notes, world.now);
    world.settle();
    assert_eq!(world.kernel.socket(open).state(), State::Closed);
    assert_eq!(world.kernel.socket(waiting).state(), State::Closed);
    assert!(remote.0.borrow().aborted);
    assert_eq!((world.device.connections(), world.notes.places), (0, 0));
    world.connected();
}

#[test]
fn a_peer_that_does_not_read_stops_its_instance() {
    let mut world = World::new(BUDGET);
    let (handle, remote) = world.connected();
    remote.0.borrow_mut().takes = 0;
    let mut sent = 0;
    for _ in 0..100 {
        sent += world.kernel.socket(handle).send_slice(&[7; 50_000]).unwrap();
        world.settle();
        world.now += Duration::from_millis(10);
    }
    // What both ends buffer, and not a byte more.
    assert!(sent <= 60_000 + crate::flow::RECEIVE_BUFFER, "{sent}");
    remote.0.borrow_mut().takes = usize::MAX;
    world.peer_is_ready();
    for _ in 0..200 {
        // Windows that were closed are asked for again.
        world.now += Duration::from_millis(100);
        world.settle();
    }
    assert_eq!(remote.0.borrow().outgoing.len(), sent);
}

#[test]
fn a_client_that_names_another_server_is_reset() {
    for (bytes, passes) in [(&b"GET / HTTP/1.1"[..], true), (&[22, 3, 1, 0, 4, 2, 0, 0, 0], false)] {
        let mut world = World::new(BUDGET);
        let handle = world.kernel.connect();
        world.settle();
        let (flow, remote) = (world.notes.dials.pop().unwrap(), Remote::new());
        let names = Some(vec!["api.example.org".to_owned()]);
        assert!(world.device.dialed(flow, (remote.clone(), names), &mut world.notes, world.now));
        world.settle();
        for byte in bytes {
            // One that was reset takes no more.
            let _ = world.kernel.socket(handle).send_slice(&[*byte]);
            world.settle();
        }
        assert_eq!(remote.0.borrow().outgoing == bytes, passes, "{bytes:?}");
        assert_eq!(remote.0.borrow().aborted, !passes);
        assert_eq!(world.notes.blocked == [Blocked::ServerName], !passes);
        let state = world.kernel.socket(handle).state();
        assert_eq!(state, if passes { State::Established } else { State::Closed });
    }
}

#[test]
fn no_more_passes_than_may() {
    let mut world = World::new(10_000);
    let (handle, remote) = world.connected();
    world.kernel.socket(handle).send_slice(&[1; 20_000]).unwrap();
    world.settle();
    assert_eq!(remote.0.borrow().outgoing.len(), 10_000);
    assert_eq!(world.notes.counted.bytes(), 10_000, "the worker learns of it");
    assert!(remote.0.borrow().aborted && world.notes.blocked.is_empty());
    assert_eq!(world.kernel.socket(handle).state(), State::Closed);
    let refused = world.kernel.connect();
    world.settle();
    assert_eq!(world.kernel.socket(refused).state(), State::Closed);
    world.device.renew();
    world.connected();
}

#[test]
fn connections_are_bounded() {
    let mut world = World::new(BUDGET);
    let handles: Vec<_> = (0..HALF_OPEN + 3).map(|_| world.kernel.connect()).collect();
    world.settle();
    assert_eq!((world.notes.dials.len(), world.device.connections()), (HALF_OPEN, HALF_OPEN));
    let closed = handles.iter().filter(|handle| world.kernel.socket(**handle).state() == State::Closed).count();
    assert_eq!(closed, 3);
    for flow in std::mem::take(&mut world.notes.dials) {
        assert!(world.device.dialed(flow, (Remote::new(), None), &mut world.notes, world.now));
    }
    world.settle();
    while world.device.connections() < FLOWS {
        world.connected();
    }
    let one_too_many = world.kernel.connect();
    world.settle();
    assert_eq!(world.kernel.socket(one_too_many).state(), State::Closed);
    assert!(world.notes.blocked.contains(&Blocked::Connections));
}

#[test]
fn a_flood_of_openings_is_not_answered() {
    let mut world = World::new(BUDGET);
    let handle = world.kernel.connect();
    world.settle();
    let flow = world.notes.dials.pop().unwrap();
    world.device.refused(flow, Refuse::Reset, &mut world.notes);
    world.notes.packets.clear();
    let _ = handle;
    let syn = |port: u16| {
        let ends = Ends { port, target: std::net::SocketAddrV4::new(THERE.0, THERE.1) };
        crate::packet::tests::syn_of(ends)
    };
    for port in 1..10_000 {
        world.device.packet(&syn(port), &mut world.notes, world.now);
    }
    assert!(world.notes.packets.len() < 2000 && world.notes.dials.len() == HALF_OPEN);
    assert!(world.notes.blocked.len() <= 20);
}

#[test]
fn a_query_is_passed_on_and_other_datagrams_are_refused() {
    let mut world = World::new(BUDGET);
    let to = |address, port| {
        let ends = Ends { port, target: std::net::SocketAddrV4::new(link::ADDRESS, 50_000) };
        datagram(ends, address, b"query")
    };
    world.device.packet(&to(link::RESOLVER, 53), &mut world.notes, world.now);
    let (query, message) = world.notes.queries.pop().unwrap();
    assert_eq!(message, b"query");
    world.device.answer(query, b"answer", &mut world.notes);
    let answer = world.notes.packets.pop_front().unwrap();
    assert_eq!(&answer[28..], b"answer");
    world.device.answer(query, b"again", &mut world.notes);
    assert!(world.notes.packets.is_empty());
    for (address, port) in [(link::RESOLVER, 54), (THERE.0, 53), (THERE.0, 443)] {
        world.device.packet(&to(address, port), &mut world.notes, world.now);
        // Protocol 1 is ICMP; type 3 and code 3 are "port unreachable" (RFC 792).
        let refusal = world.notes.packets.pop_front().unwrap();
        assert_eq!((refusal[9], refusal[20], refusal[21]), (1, 3, 3));
    }
    for _ in 0..1000 {
        world.device.packet(&to(link::RESOLVER, 53), &mut world.notes, world.now);
    }
    assert_eq!(world.notes.queries.len(), QUERIES);
}

/// Random changes of real packets, in the order in which they come, others in between, and time that passes. With debug
/// assertions this looks for more than panics that a release would have.
#[test]
fn hostile_packets_end_nothing_but_their_own_connection() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new(BUDGET);
        let mut remotes = Vec::new();
        let mut seen: Vec<Vec<u8>> = Vec::new();
        for _ in 0..1500 {
            if random.u8(..) < 20 {
                world.kernel.connect();
            }
            let handles: Vec<SocketHandle> = world.kernel.sockets.iter().map(|(handle, _)| handle).collect();
            if !handles.is_empty() {
                let socket = world.kernel.socket(handles[random.usize(0..handles.len())]);
                match random.u8(0..8) {
                    0 => socket.close(),
                    1 => socket.abort(),
                    2 => drop(socket.recv(|bytes| (bytes.len(), ()))),
                    _ => drop(socket.send_slice(&vec![1; random.usize(0..50_000)])),
                }
            }
            let passed = i64::try_from((world.now - world.began).as_micros()).unwrap();
            let Kernel { stack, sockets, wire, .. } = &mut world.kernel;
            wire.incoming.extend(world.notes.packets.drain(..));
            stack.poll(StackInstant::from_micros(passed), wire, sockets);
            seen.extend(std::mem::take(&mut wire.outgoing));
            for _ in 0..random.usize(0..6) {
                let Some(packet) = (!seen.is_empty()).then(|| seen[random.usize(0..seen.len())].clone()) else { break };
                let packet = mutate(packet, &mut random);
                world.device.packet(&packet, &mut world.notes, world.now);
            }
            seen.truncate(200);
            for flow in std::mem::take(&mut world.notes.dials) {
                let remote = Remote::new();
                if random.bool() && world.device.dialed(flow, (remote.clone(), None), &mut world.notes, world.now) {
                    remotes.push(remote);
                } else {
                    world.device.refused(flow, Refuse::Unreachable, &mut world.notes);
                }
            }
            for remote in &remotes {
                remote.0.borrow_mut().incoming.extend(std::iter::repeat_n(3, random.usize(0..2000)));
            }
            for (flow, at) in std::mem::take(&mut world.notes.wakes) {
                world.device.woken(flow, at, &mut world.notes, world.now);
            }
            world.now += Duration::from_millis(random.u64(0..50));
            assert!(world.device.connections() <= FLOWS);
            assert_eq!(world.device.connections(), world.notes.places);
            assert_eq!(world.device.by_id.len(), world.device.connections());
        }
        world.device.end_call(1, &mut world.notes, world.now);
        assert_eq!((world.device.connections(), world.notes.places, world.device.panics()), (0, 0, 0));
    }
}

/// Changes a few bytes behind the addresses, mostly of the TCP header, and now and then the length.
fn mutate(mut packet: Vec<u8>, random: &mut fastrand::Rng) -> Vec<u8> {
    for _ in 0..random.usize(0..4) {
        let at = random.usize(20..packet.len().min(64));
        packet[at] = random.u8(..);
    }
    if random.u8(..) < 40 {
        packet.truncate(random.usize(20..=packet.len()));
        let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
        packet[2..4].copy_from_slice(&length.to_be_bytes());
    }
    packet
}
