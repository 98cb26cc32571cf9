//! The one loop of the gateway: messages of the worker, packets of devices, sockets of connections, and time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use faena_instance_protocol::{Decoder, Outgoing, link};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::device::{Device, Effects};
use crate::flow::{Outlet, Peer};
use crate::message::{Blocked, Counters, DeviceId, FlowId, FromGateway, QueryId, ToGateway};
use crate::packet::Ends;

/// Packets of one device that are taken in a row, before it is another's turn.
const PACKETS: usize = 16;
/// Connections of all instances at once: their buffers take 256 KiB each.
const ALL_FLOWS: usize = 2048;
/// The most of them that the instances of one function may have.
const OWNER_FLOWS: usize = ALL_FLOWS / 4;
/// Messages for the worker that wait. A worker that reads none is about to end us, or has ended.
const BACKLOG: usize = 16 * 1024;
/// Events that are taken at once.
const EVENTS: usize = 256;
/// Open files: a socket for each connection, a device and its counters for each instance.
const FILES: u64 = 16 * 1024;
/// Memory that may be mapped: the buffers of all connections several times over, and what the program itself takes.
const MEMORY: u64 = 2 * 1024 * 1024 * 1024;

/// A connected socket.
struct Connected(OwnedFd);

impl Peer for Connected {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(&self.0, buffer, RecvFlags::DONTWAIT).map(|(read, _)| read)?)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(&self.0, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    fn finish(&mut self) {
        // A peer that is gone has nothing to be told.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write);
    }

    fn abort(&mut self) {
        let _ = rustix::net::sockopt::set_socket_linger(&self.0, Some(Duration::ZERO));
    }
}

/// What an event belongs to, as a number for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Worker,
    Device(DeviceId),
    Flow(FlowId),
}

impl Source {
    fn encode(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Self::Worker => 0,
            Self::Device(DeviceId(id)) => id << 1,
            Self::Flow(FlowId(id)) => id << 1 | 1,
        })
    }

    fn decode(data: epoll::EventData) -> Self {
        match data.u64() {
            0 => Self::Worker,
            number if number & 1 == 0 => Self::Device(DeviceId(number >> 1)),
            number => Self::Flow(FlowId(number >> 1)),
        }
    }
}

/// What all devices share.
struct Shared {
    epoll: OwnedFd,
    outbox: VecDeque<FromGateway>,
    timers: BinaryHeap<Reverse<(Instant, FlowId)>>,
    device_of: HashMap<FlowId, DeviceId>,
    places: HashMap<u64, usize>,
    in_use: usize,
    next: u64,
}

impl Shared {
    fn tell(&mut self, message: FromGateway) {
        if self.outbox.len() < BACKLOG {
            self.outbox.push_back(message);
        }
    }
}

/// One device, its descriptors and its owner.
struct Served {
    device: Device<Connected>,
    line: Line,
    memory: OwnedFd,
    /// What the proxy had let through when that was looked at last.
    proxied: u64,
}

/// How one device reaches the others' things.
struct Line {
    id: DeviceId,
    owner: u64,
    tun: OwnedFd,
}

/// The effects of one device.
struct Acting<'a> {
    line: &'a Line,
    memory: &'a OwnedFd,
    shared: &'a mut Shared,
}

impl Outlet for Acting<'_> {
    fn send(&mut self, packet: &[u8]) {
        // A device that takes nothing loses packets, as any network does.
        let _ = rustix::io::write(&self.line.tun, packet);
    }
}

impl Effects for Acting<'_> {
    fn dial(&mut self, flow: FlowId, call: u64, ends: Ends) {
        let device = self.line.id;
        self.shared.device_of.insert(flow, device);
        self.shared.tell(FromGateway::Dial { device, flow, call, target: ends.target });
    }

    fn query(&mut self, query: QueryId, message: &[u8]) {
        self.shared.tell(FromGateway::Query { device: self.line.id, query, message: message.to_vec() });
    }

    fn blocked(&mut self, why: Blocked, ends: Ends) {
        self.shared.tell(FromGateway::Blocked { device: self.line.id, why, target: ends.target });
    }

    fn take_place(&mut self) -> bool {
        let held = self.shared.places.get(&self.line.owner).copied().unwrap_or(0);
        let is_there = self.shared.in_use < ALL_FLOWS && held < OWNER_FLOWS;
        if is_there {
            self.shared.places.insert(self.line.owner, held + 1);
            self.shared.in_use += 1;
        }
        is_there
    }

    fn give_place(&mut self, flow: FlowId) {
        self.shared.device_of.remove(&flow);
        self.shared.in_use = self.shared.in_use.saturating_sub(1);
        if let Some(held) = self.shared.places.get_mut(&self.line.owner) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                self.shared.places.remove(&self.line.owner);
            }
        }
    }

    fn wake(&mut self, flow: FlowId, at: Instant) {
        self.shared.timers.push(Reverse((at, flow)));
    }

    fn count(&mut self, counters: &Counters) {
        counters.write(self.memory);
    }

    fn number(&mut self) -> u64 {
        self.shared.next += 1;
        self.shared.next
    }
}

impl Served {
    /// Lets the device act, within what the proxy has left of its budget.
    fn act(&mut self, shared: &mut Shared, f: impl FnOnce(&mut Device<Connected>, &mut Acting<'_>, Instant)) {
        let Self { device, line, memory, proxied } = self;
        let total = Counters::proxied(&*memory);
        device.charge(total.saturating_sub(std::mem::replace(proxied, total)));
        f(device, &mut Acting { line, memory, shared }, Instant::now());
    }
}

/// The whole of it.
struct Poller {
    worker: UnixStream,
    decoder: Decoder,
    devices: HashMap<DeviceId, Served>,
    shared: Shared,
    /// Closes devices: the kernel takes milliseconds for the last descriptor of one.
    closer: Sender<OwnedFd>,
    packet: Vec<u8>,
}

/// Panics that are told one by one.
const TOLD_PANICS: u32 = 20;

/// A panic ends one connection; whoever can cause one can cause many, and only the first are told.
fn quiet_panics() {
    let told = AtomicU32::new(0);
    std::panic::set_hook(Box::new(move |panic| {
        if told.fetch_add(1, Ordering::Relaxed) < TOLD_PANICS {
            eprintln!("a connection of an instance was ended: {panic}");
        }
    }));
}

/// Serves the worker that standard input leads to, until that ends.
pub(crate) fn main() -> io::Result<()> {
    // What a terminal sends to all of its processes at once is for the worker: we end when it does.
    let _ = rustix::process::setsid();
    quiet_panics();
    let worker = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?);
    worker.set_nonblocking(true)?;
    faena_confine::gateway::drop_privileges(FILES, MEMORY)?;
    let (closer, to_close) = channel::<OwnedFd>();
    let (begun, has_begun) = channel();
    std::thread::spawn(move || {
        // Where the other end is gone, nothing waits for this.
        let _ = begun.send(());
        to_close.into_iter().for_each(drop);
    });
    // What a thread needs to begin is not on the list.
    has_begun.recv().map_err(io::Error::other)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &worker, Source::Worker.encode(), epoll::EventFlags::IN)?;
    // All that has to be made is made.
    faena_confine::gateway::install_list()?;
    let shared = Shared {
        epoll,
        outbox: VecDeque::new(),
        timers: BinaryHeap::new(),
        device_of: HashMap::new(),
        places: HashMap::new(),
        in_use: 0,
        next: 0,
    };
    let packet = vec![0; usize::from(u16::MAX)];
    let poller = Poller { worker, decoder: Decoder::default(), devices: HashMap::new(), shared, closer, packet };
    poller.run()
}

impl Poller {
    fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            self.write()?;
            let timeout = self.timeout();
            events.clear();
            match epoll::wait(&self.shared.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            // The worker's word comes first: connections of a call that has ended are reset before the next one's begin.
            for event in &events {
                if Source::decode(event.data) == Source::Worker && !self.listen()? {
                    return Ok(());
                }
            }
            for event in &events {
                let flags = event.flags;
                match Source::decode(event.data) {
                    Source::Worker => {}
                    Source::Device(device) => self.read(device),
                    Source::Flow(flow) => self.ready(flow, flags),
                }
            }
            self.wake();
        }
    }

    /// Until when nothing has to be done.
    fn timeout(&self) -> Option<Timespec> {
        let Reverse((at, _)) = self.shared.timers.peek()?;
        let left = at.saturating_duration_since(Instant::now());
        Timespec::try_from(left).ok()
    }

    fn wake(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, flow))) = self.shared.timers.peek().copied() {
            if at > now {
                return;
            }
            self.shared.timers.pop();
            self.flow(flow, |device, acting, now| device.woken(flow, at, acting, now));
        }
    }

    fn flow(&mut self, flow: FlowId, f: impl FnOnce(&mut Device<Connected>, &mut Acting<'_>, Instant)) {
        let Some(device) = self.shared.device_of.get(&flow) else { return };
        let Some(served) = self.devices.get_mut(device) else { return };
        served.act(&mut self.shared, f);
    }

    fn ready(&mut self, flow: FlowId, flags: epoll::EventFlags) {
        let ended = epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        let readable = flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP | ended);
        let writable = flags.intersects(epoll::EventFlags::OUT | ended);
        self.flow(flow, |device, acting, now| device.ready(flow, (readable, writable), acting, now));
    }

    /// Takes packets of a device.
    fn read(&mut self, id: DeviceId) {
        let Self { devices, shared, packet, .. } = self;
        let Some(served) = devices.get_mut(&id) else { return };
        for _ in 0..PACKETS {
            match rustix::io::read(&served.line.tun, &mut packet[..]) {
                Ok(length) => {
                    served.act(shared, |device, acting, now| device.packet(&packet[..length], acting, now));
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                // The instance is gone, and its device with it.
                Err(_) => return self.detach(id),
            }
        }
    }

    fn detach(&mut self, id: DeviceId) {
        let Some(mut served) = self.devices.remove(&id) else { return };
        served.act(&mut self.shared, |device, acting, now| device.end_call(0, acting, now));
        self.shared.device_of.retain(|_, device| *device != id);
        let _ = epoll::delete(&self.shared.epoll, &served.line.tun);
        // Where the thread is gone, the device is closed here.
        let _ = self.closer.send(served.line.tun);
    }

    /// Takes what the worker has said; false at its end.
    fn listen(&mut self) -> io::Result<bool> {
        loop {
            match self.decoder.read(&self.worker) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
            while let Some((message, fds)) = self.decoder.decode::<ToGateway>().map_err(io::Error::other)? {
                self.carry_out(message, fds.into());
            }
        }
    }

    fn carry_out(&mut self, message: ToGateway, mut fds: VecDeque<OwnedFd>) {
        match message {
            ToGateway::Attach { device, owner, budget, call, lost } => {
                if let (Some(tun), Some(memory)) = (fds.pop_front(), fds.pop_front()) {
                    self.attach(Line { id: device, owner, tun }, memory, (budget, call));
                    let lost = lost.into_iter().map(|(port, target)| Ends { port, target });
                    self.device(device, |device, acting, _| device.reset_lost(lost, acting));
                }
            }
            ToGateway::Detach { device } => self.detach(device),
            ToGateway::EndCall { device, next } => {
                self.drain(device);
                self.device(device, |device, acting, now| device.end_call(next, acting, now));
            }
            ToGateway::Renew { device } => self.device(device, |device, _, _| device.renew()),
            ToGateway::Dialed { device, flow, names } => {
                if let Some(socket) = fds.pop_front() {
                    self.dialed(device, flow, (socket, names));
                }
            }
            ToGateway::Refused { device, flow, how } => {
                self.device(device, |device, acting, _| device.refused(flow, how, acting));
            }
            ToGateway::Answer { device, query, message } => {
                self.device(device, |device, acting, _| device.answer(query, &message, acting));
            }
        }
    }

    fn device(&mut self, id: DeviceId, f: impl FnOnce(&mut Device<Connected>, &mut Acting<'_>, Instant)) {
        if let Some(served) = self.devices.get_mut(&id) {
            served.act(&mut self.shared, f);
        }
    }

    /// Drops what the processes of a call that has ended had sent: it opens nothing in the next one.
    fn drain(&mut self, id: DeviceId) {
        let Self { devices, packet, .. } = self;
        let Some(served) = devices.get(&id) else { return };
        for _ in 0..link::QUEUE {
            if rustix::io::read(&served.line.tun, &mut packet[..]).is_err() {
                return;
            }
        }
    }

    fn attach(&mut self, line: Line, memory: OwnedFd, (budget, call): (u64, u64)) {
        let flags = epoll::EventFlags::IN;
        let watched = epoll::add(&self.shared.epoll, &line.tun, Source::Device(line.id).encode(), flags);
        // A device that is served by nothing drops packets, and connections to it time out.
        if watched.is_err() {
            return;
        }
        let device = Device::new(link::ADDRESS, budget, Instant::now());
        let (proxied, counted) = (Counters::proxied(&memory), Counters::read(&memory));
        let mut served = Served { device, line, memory, proxied };
        // What an earlier gateway has counted stays counted.
        (served.device.counters, served.device.call) = (counted, call);
        self.devices.insert(served.line.id, served);
    }

    fn dialed(&mut self, device: DeviceId, flow: FlowId, (socket, names): (OwnedFd, Option<Vec<String>>)) {
        // Edges alone: what can be read or written is remembered, and nothing is asked of the kernel again.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        if epoll::add(&self.shared.epoll, &socket, Source::Flow(flow).encode(), flags).is_err() {
            return self.device(device, |device, acting, _| device.refused(flow, crate::Refuse::Reset, acting));
        }
        self.flow(flow, |device, acting, now| {
            device.dialed(flow, (Connected(socket), names), acting, now);
        });
    }

    /// Writes what is there for the worker.
    fn write(&mut self) -> io::Result<()> {
        while let Some(message) = self.shared.outbox.pop_front() {
            let mut outgoing = Outgoing::new(&message, &[]).map_err(io::Error::other)?;
            loop {
                match outgoing.write(&self.worker) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_for_room()?,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// A frame that was begun is written whole. The worker reads all the while, so this is short.
    fn wait_for_room(&self) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, poll};
        match poll(&mut [PollFd::new(&self.worker, PollFlags::OUT)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
