//! What processes that have ended left outside `path` is removed, so that the next one finds nothing of theirs.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What a folder that everybody may write to has as its mode.
const OPEN: u32 = 0o1777;

/// Where anything that outlives a process can be written but for `path`: file systems in memory, and message queues. They
/// are found where the kernel tells of them, since an image may declare any folder a volume (proc_pid_mountinfo(5)).
fn folders(mounts: &str) -> Vec<PathBuf> {
    let of = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(4);
        let (point, options) = (left.next()?, left.next()?);
        let is_kept = matches!(right.split(' ').next()?, "tmpfs" | "mqueue");
        let is_ours = options.split(',').any(|option| option == "rw") && !matches!(point, "/" | "/dev");
        (is_kept && is_ours).then(|| PathBuf::from(point.replace("\\040", " ")))
    };
    mounts.lines().filter_map(of).collect()
}

/// Removes everything but what lies at `path`, which is mounted again; every process of the user's is dead.
pub(crate) fn everything(path: &str) -> io::Result<()> {
    // A file that is covered by a device is mounted too.
    let mounted = folders(&fs::read_to_string("/proc/self/mountinfo")?);
    for folder in mounted.into_iter().filter(|point| point != Path::new(path) && point.is_dir()) {
        let is_ours = open(&folder)?;
        if is_ours || rustix::fs::access(&folder, rustix::fs::Access::WRITE_OK).is_ok() {
            empty(&folder)?;
        }
    }
    shared_memory()?;
    semaphores()?;
    queues()
}

/// A folder whose owner we are may have been closed, or carry attributes and access lists: it is as it was. Tells whether
/// we are.
fn open(folder: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    if fs::metadata(folder)?.uid() != rustix::process::geteuid().as_raw() {
        return Ok(false);
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(OPEN))?;
    let mut names = vec![0; 64 * 1024];
    // A file system that keeps none says so.
    let Ok(length) = rustix::fs::listxattr(folder, &mut names) else { return Ok(true) };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| is_owners(name)) {
        rustix::fs::removexattr(folder, name)?;
    }
    Ok(true)
}

/// Attributes that a folder's owner may set: its own, and lists of who may do what (xattr(7), acl(5)).
fn is_owners(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_")
}

/// Empties a folder. A folder below it that its owner closed is opened first: its owner is whom we run as.
fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
            empty(&path)?;
            fs::remove_dir(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The identifiers in a table of /proc/sysvipc, which has them in its second column (proc_sysvipc(5)).
fn identifiers(table: &str) -> Vec<libc::c_int> {
    let text = fs::read_to_string(Path::new("/proc/sysvipc").join(table)).unwrap_or_default();
    text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect()
}

fn done(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn shared_memory() -> io::Result<()> {
    // SAFETY: IPC_RMID takes no buffer.
    let remove = |id| done(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) });
    identifiers("shm").into_iter().try_for_each(remove)
}

fn semaphores() -> io::Result<()> {
    // SAFETY: IPC_RMID takes no fourth argument.
    identifiers("sem").into_iter().try_for_each(|id| done(unsafe { libc::semctl(id, 0, libc::IPC_RMID) }))
}

fn queues() -> io::Result<()> {
    // SAFETY: IPC_RMID takes no buffer.
    let remove = |id| done(unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) });
    identifiers("msg").into_iter().try_for_each(remove)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_written_is_emptied() {
        let mounts = "22 1 0:20 / / ro,relatime - tmpfs tmpfs rw\n23 22 0:21 / /tmp rw,nosuid - tmpfs tmpfs rw\n\
                      24 22 0:22 / /dev rw - tmpfs tmpfs rw\n25 24 0:23 / /dev/mqueue rw - mqueue mqueue rw\n\
                      26 22 0:24 / /ws rw - overlay overlay rw\n27 22 0:25 / /proc/acpi ro - tmpfs tmpfs ro\n";
        assert_eq!(folders(mounts), ["/tmp", "/dev/mqueue"].map(PathBuf::from));
    }

    #[test]
    fn a_folder_is_emptied_whatever_its_owner_closed() {
        let folder = std::env::temp_dir().join(format!("faena-clean-{}", std::process::id()));
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::write(folder.join("a/b/c"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", folder.join("link")).unwrap();
        fs::set_permissions(folder.join("a"), fs::Permissions::from_mode(0o000)).unwrap();
        empty(&folder).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        assert!(Path::new("/etc").exists());
        fs::remove_dir(folder).unwrap();
    }
}
