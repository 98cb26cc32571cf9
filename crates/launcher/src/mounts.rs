//! The few kinds of mounts that an instance is made of.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount};

use crate::idmap::{Below, set_attributes};

/// What hostile code gets of a mount that it may read.
const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// A detached copy of a mount, with everything below it.
pub(crate) fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

/// Puts a detached mount into place, following no link at its end.
pub(crate) fn attach(tree: &OwnedFd, to: &Path) -> io::Result<()> {
    Ok(move_mount(tree, "", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Makes a detached mount read-only and puts it into place.
pub(crate) fn attach_read_only(tree: &OwnedFd, to: &Path) -> io::Result<()> {
    seal(tree, READ_ONLY, Below::Too)?;
    attach(tree, to)
}

/// Makes a mount read-only, and whatever else is asked.
fn seal(mount: &OwnedFd, attributes: u64, below: Below) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    set_attributes(mount, &attributes, below)
}

/// Makes an existing mount read-only in place.
pub(crate) fn remount_read_only(path: &str) -> io::Result<()> {
    let mount = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    seal(&mount, libc::MOUNT_ATTR_RDONLY, Below::Not)
}

/// A file or folder over itself, read-only; nothing where it is not there.
pub(crate) fn read_only_in_place(path: &str) -> io::Result<()> {
    if !Path::new(path).exists() {
        return Ok(());
    }
    attach_read_only(&clone_tree(Path::new(path))?, path.as_ref())
}

/// A bounded file system in memory.
pub(crate) fn tmpfs(to: impl rustix::path::Arg, bytes: u64, mode: u32, flags: MountFlags) -> io::Result<()> {
    // An inode costs about a kilobyte of memory, so they are bounded with the bytes.
    let options = format!("size={bytes},mode={mode:o},nr_inodes={}", (bytes / 4096).clamp(64, 262_144));
    mount("tmpfs", to, "tmpfs", flags | MountFlags::NOSUID | MountFlags::NODEV, Some(c_string(&options).as_c_str()))?;
    Ok(())
}

/// The code, never written to, under a bounded layer that is.
pub(crate) fn overlay(lower: &str, upper: &str, work: &str, to: &str, options: &str) -> io::Result<()> {
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}{options}");
    mount("overlay", to, "overlay", MountFlags::NOSUID | MountFlags::NODEV, Some(c_string(&options).as_c_str()))?;
    Ok(())
}

/// The kernel's view of the processes of this namespace.
pub(crate) fn proc(to: &str) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("proc", to, "proc", flags, None::<&std::ffi::CStr>)?)
}

/// Takes a mount out of sight; what uses it keeps it.
pub(crate) fn detach(path: impl rustix::path::Arg) -> io::Result<()> {
    Ok(unmount(path, UnmountFlags::DETACH)?)
}

/// Leaves the host's mount namespace for a copy of it.
pub(crate) fn leave_namespace() -> io::Result<()> {
    // SAFETY: a mount namespace of its own shares nothing that safe code relies on; the caller has one thread.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    Ok(())
}

/// Lets nothing that is mounted here reach the host, while what the host mounts is seen here.
pub(crate) fn make_slave() -> io::Result<()> {
    let flags = rustix::mount::MountPropagationFlags::DOWNSTREAM | rustix::mount::MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", flags)?)
}

/// Lets nothing that is mounted here reach the host, nor the other way.
pub(crate) fn make_private() -> io::Result<()> {
    let flags = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", flags)?)
}

/// A folder over itself, so that what is mounted on it later is seen by everybody who has bound it as a slave.
pub(crate) fn share(path: &str) -> io::Result<()> {
    rustix::mount::mount_bind(path, path)?;
    Ok(rustix::mount::mount_change(path, rustix::mount::MountPropagationFlags::SHARED)?)
}

fn c_string(text: &str) -> std::ffi::CString {
    std::ffi::CString::new(text).unwrap_or_default()
}
