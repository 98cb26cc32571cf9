//! One clone into everything.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The namespaces of an instance, but for its network.
const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// A child in namespaces of its own.
pub(crate) struct Child {
    /// Its number, while it has not been collected.
    pub(crate) pid: i32,
    /// What names it for ever.
    pub(crate) pidfd: OwnedFd,
}

/// Where a clone begins its life.
#[derive(Clone, Copy, Default)]
pub(crate) struct Into<'a> {
    /// A group of the v2 tree.
    pub(crate) group: Option<&'a OwnedFd>,
    /// A new network namespace of its own, rather than ours.
    pub(crate) network: bool,
}

/// Clones this process; the child, which gets `None`, is PID 1 of its own namespace.
pub(crate) fn into_namespaces(into: Into<'_>) -> io::Result<Option<Child>> {
    let mut flags = NAMESPACES | libc::CLONE_PIDFD;
    if into.network {
        flags |= libc::CLONE_NEWNET;
    }
    let mut pidfd: libc::c_int = -1;
    // SAFETY: zeroed is a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(flags.unsigned_abs());
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.pidfd = (&raw mut pidfd) as u64;
    if let Some(group) = into.group {
        // A bit above those of the older call's 32 (clone3(2), CLONE_INTO_CGROUP).
        arguments.flags |= 0x2_0000_0000;
        arguments.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    }
    // SAFETY: without CLONE_VM and a stack this is fork; this program has one thread, so the child may go on. The
    // place for the descriptor lives through the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, std::mem::size_of::<libc::clone_args>()) };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        // SAFETY: the kernel has just given us this descriptor.
        Ok(pid) if pid > 0 => Ok(Some(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forks; the child gets `None`.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: this program has one thread, so the child may do whatever the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Kills a child; one that has ended needs it no more.
pub(crate) fn kill(pidfd: &OwnedFd) {
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
}
