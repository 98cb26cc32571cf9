//! Who is who: users of an instance on the host, and owners of its code.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::mount::{OpenTreeFlags, open_tree};

use crate::INSIDE_ID;

/// Maps the one user of a child's namespace to a user of the host.
pub(crate) fn map_ids(pid: i32, host_id: u32, privileged: bool) -> io::Result<()> {
    let map = format!("{INSIDE_ID} {host_id} 1\n");
    if !privileged {
        // Without privilege a group map is only permitted where groups cannot be dropped (user_namespaces(7)).
        fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
    }
    let group =
        if privileged { map.clone() } else { format!("{INSIDE_ID} {} 1\n", rustix::process::getegid().as_raw()) };
    fs::write(format!("/proc/{pid}/gid_map"), group)?;
    fs::write(format!("/proc/{pid}/uid_map"), map)
}

/// A detached, read-only copy of a tree's mount on which [`INSIDE_ID`] on disk is the user of a process' namespace.
pub(crate) fn owned_tree(tree: &Path, pid: i32) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(rustix::fs::CWD, tree, flags)?;
    let namespace = fs::File::open(format!("/proc/{pid}/ns/user"))?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(namespace.as_raw_fd().unsigned_abs()),
    };
    set_attributes(&mount, &attributes, Below::Not)?;
    Ok(mount)
}

/// Whether mounts below a mount are meant too.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    /// They are not.
    Not,
    /// They are: a host may have mounts of its own below /usr.
    Too,
}

/// mount_setattr(2) on a detached mount.
pub(crate) fn set_attributes(mount: &OwnedFd, attributes: &libc::mount_attr, below: Below) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if below == Below::Too { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, the attributes live through the call, and their size is the one given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const *attributes,
            std::mem::size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
