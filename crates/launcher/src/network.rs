//! Network namespaces, made before they are needed: making one takes the kernel longer than all the others together.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// How many wait at first, and at most: twice as many each time that there were too few.
const LEAST: usize = 16;
const MOST: usize = 64;

/// Namespaces with nothing but a loopback that is up. Each is used once: what its last user left is nobody else's.
#[derive(Debug)]
pub(crate) struct Pool {
    home: OwnedFd,
    made: VecDeque<OwnedFd>,
    wanted: usize,
}

fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/self/ns/net")?.into())
}

fn enter(namespace: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

impl Pool {
    /// An empty pool of this process, which has one thread.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { home: current()?, made: VecDeque::new(), wanted: LEAST })
    }

    /// Whether fewer wait than should.
    pub(crate) fn wants_more(&self) -> bool {
        self.made.len() < self.wanted
    }

    /// Makes one.
    pub(crate) fn fill(&mut self) -> io::Result<()> {
        // SAFETY: a new network namespace shares nothing that safe code relies on; this process has one thread.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        let made = raise_loopback().and_then(|()| current());
        enter(&self.home)?;
        self.made.push_back(made?);
        Ok(())
    }

    /// Enters a network namespace, which is not used again; a process that is cloned now is born in it.
    pub(crate) fn enter(&mut self) -> io::Result<()> {
        if self.made.is_empty() {
            self.wanted = MOST.min(2 * self.wanted);
            self.fill()?;
        }
        enter(&self.made.pop_front().ok_or(io::ErrorKind::NotFound)?)
    }

    /// Goes back to where we came from.
    pub(crate) fn leave(&self) -> io::Result<()> {
        enter(&self.home)
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
