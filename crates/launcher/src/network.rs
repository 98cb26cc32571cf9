//! Network namespaces, made before they are needed: making one takes the kernel longer than all the others together.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::device;

/// How many wait at first, and at most: twice as many each time that there were too few. With a device they are rarer, and
/// none waits before the first was asked for.
const LEAST: usize = 16;
const LEAST_WITH_DEVICE: usize = 4;
const MOST: usize = 64;

/// A namespace that waits.
#[derive(Debug)]
struct Made {
    namespace: OwnedFd,
    device: Option<OwnedFd>,
}

/// Namespaces of one kind.
#[derive(Debug)]
struct Shelf {
    has_device: bool,
    made: VecDeque<Made>,
    wanted: usize,
}

/// Namespaces with nothing but a loopback that is up, and others with a network device. Each is used once: what its last
/// user left is nobody else's.
#[derive(Debug)]
pub(crate) struct Pool {
    home: OwnedFd,
    plain: Shelf,
    with_device: Shelf,
}

fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/self/ns/net")?.into())
}

fn enter(namespace: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

impl Shelf {
    fn wants_more(&self) -> bool {
        self.made.len() < self.wanted
    }

    /// Makes a namespace, and goes back to `home`.
    fn fill(&mut self, home: &OwnedFd) -> io::Result<()> {
        // SAFETY: a new network namespace shares nothing that safe code relies on; this process has one thread.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        let has_device = self.has_device;
        let make = || {
            raise_loopback()?;
            let device = has_device.then(device::make).transpose()?;
            Ok(Made { namespace: current()?, device })
        };
        let made: io::Result<Made> = make();
        enter(home)?;
        self.made.push_back(made?);
        Ok(())
    }

    fn take(&mut self, home: &OwnedFd) -> io::Result<Made> {
        if self.made.is_empty() {
            self.fill(home)?;
            let least = if self.has_device { LEAST_WITH_DEVICE } else { LEAST };
            self.wanted = MOST.min(2 * self.wanted).max(least);
        }
        Ok(self.made.pop_front().ok_or(io::ErrorKind::NotFound)?)
    }
}

impl Pool {
    /// An empty pool of this process, which has one thread.
    pub(crate) fn new() -> io::Result<Self> {
        let shelf = |has_device, wanted| Shelf { has_device, made: VecDeque::new(), wanted };
        Ok(Self { home: current()?, plain: shelf(false, LEAST), with_device: shelf(true, 0) })
    }

    /// Whether fewer wait than should.
    pub(crate) fn wants_more(&self) -> bool {
        self.plain.wants_more() || self.with_device.wants_more()
    }

    /// Makes one that is wanted. Where that fails none is made in advance any more, and who needs one learns why.
    pub(crate) fn fill(&mut self) {
        let shelf = if self.plain.wants_more() { &mut self.plain } else { &mut self.with_device };
        if shelf.fill(&self.home).is_err() {
            shelf.wanted = 0;
        }
    }

    /// Enters a network namespace, which is not used again; a process that is cloned now is born in it. Returns its device,
    /// where it was to have one.
    pub(crate) fn enter(&mut self, has_device: bool) -> io::Result<Option<OwnedFd>> {
        let shelf = if has_device { &mut self.with_device } else { &mut self.plain };
        let Made { namespace, device } = shelf.take(&self.home)?;
        enter(&namespace)?;
        Ok(device)
    }

    /// Goes back to where we came from.
    pub(crate) fn leave(&self) -> io::Result<()> {
        enter(&self.home)
    }

    /// Makes a device in another's namespace.
    pub(crate) fn make_device(&self, namespace: &OwnedFd) -> io::Result<OwnedFd> {
        enter(namespace)?;
        let made = device::make();
        enter(&self.home)?;
        made
    }
}

/// Brings up the loopback of the namespace that we are in.
pub(crate) fn raise_loopback() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: zeroed is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives through the call.
    let done = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCSIFFLAGS, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
