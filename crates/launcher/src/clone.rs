//! One clone into everything.

use std::io;

/// The namespaces of an instance.
const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Clones this process; the child, which gets `None`, is PID 1 of its own namespace.
pub(crate) fn into_namespaces() -> io::Result<Option<i32>> {
    // SAFETY: zeroed is a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(NAMESPACES.unsigned_abs());
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    // SAFETY: without CLONE_VM and a stack this is fork; this program has one thread, so the child may go on.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, std::mem::size_of::<libc::clone_args>()) };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        Ok(pid) if pid > 0 => Ok(Some(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Kills a child of ours that has not been reported.
pub(crate) fn kill(pid: i32) {
    // SAFETY: kill takes no pointers; the child is ours and not yet collected, so the number is its own.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}
