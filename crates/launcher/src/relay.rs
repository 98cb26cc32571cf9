//! Code that enters an instance which stands already: nothing of the overlay that lay there before is seen any more.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::{Remount, SpawnFailure, Step, child, idmap, mounts, root};

/// The number of a process that is named by a descriptor, while it lives (proc_pid_fdinfo(5)).
fn pid_of(pidfd: &OwnedFd) -> io::Result<i32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.filter(|pid| *pid > 0).ok_or_else(|| io::Error::other("the instance is gone"))
}

/// The code's tree, owned inside by the instance's user where that can be mapped.
pub(crate) fn tree(relay: &Remount, instance: &OwnedFd) -> Result<OwnedFd, SpawnFailure> {
    if !relay.privileged {
        return mounts::clone_tree(&relay.code).step("taking hold of the code");
    }
    let pid = pid_of(instance).step("finding the instance")?;
    let tree = idmap::owned_tree(&relay.code, pid).step("mapping the code's owner")?;
    // The number was its own all the while only if it still lives.
    let alive = pid_of(instance).step("finding the instance")? == pid;
    if alive { Ok(tree) } else { Err(io::Error::other("the instance is gone")).step("mapping the code's owner") }
}

/// Lays the code in the instance's own mount namespace and ends; or says which step failed.
pub(crate) fn run(relay: &Remount, instance: &OwnedFd, code: &OwnedFd, parent: &UnixStream) -> ! {
    let Err(failure) = lay(relay, instance, code);
    child::give_up(&failure, parent)
}

fn lay(relay: &Remount, instance: &OwnedFd, code: &OwnedFd) -> Result<Infallible, SpawnFailure> {
    let inside = ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT;
    move_into_thread_name_spaces(instance.as_fd(), inside).step("entering the instance")?;
    child::become_inside_user(relay.privileged).step("becoming the instance's user")?;
    std::env::set_current_dir("/").step("entering the root")?;
    let path = relay.path.trim_start_matches('/');
    // Where nothing lay yet there is nothing to take away.
    let _ = mounts::detach(path);
    root::lay(code, path, relay.disk).step("mounting the code")?;
    // SAFETY: _exit takes no pointers; nothing of the parent's is flushed.
    unsafe { libc::_exit(0) }
}
