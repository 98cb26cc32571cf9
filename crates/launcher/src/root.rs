//! The root of an instance: the host's `/usr`, an `/etc` of ours, and little else.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::mount::MountFlags;

use crate::{CA_BUNDLE, Failure, Spec, Step, mounts};

/// Devices that every program may expect; none of them reaches anything.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Links or folders of the host that lead into `/usr` on a merged system (file-hierarchy(7)).
const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Files of /proc that tell of the host or reach it, and are covered.
const MASKED: [&str; 7] = ["kcore", "keys", "sysrq-trigger", "kallsyms", "timer_list", "kmsg", "sched_debug"];
/// Folders of /proc that change the host, and are made read-only.
const FROZEN: [&str; 6] = ["sys", "irq", "bus", "fs", "acpi", "scsi"];
/// What the root itself may hold: folders and links, no data.
const ROOT_BYTES: u64 = 1024 * 1024;

/// Trees of the host, taken hold of while they can still be seen.
pub(crate) struct Trees {
    usr: OwnedFd,
    etc: OwnedFd,
    agent: OwnedFd,
    ca_bundle: Option<OwnedFd>,
    devices: Vec<OwnedFd>,
    merged: Vec<(&'static str, Merged)>,
    code: OwnedFd,
}

enum Merged {
    Link(std::path::PathBuf),
    Tree(OwnedFd),
}

impl Trees {
    /// Takes hold of them. `code` is the tree whose owner was mapped, where that could be done.
    pub(crate) fn open(spec: &Spec, code: Option<OwnedFd>) -> Result<Self, Failure> {
        let tree = |path: &Path| mounts::clone_tree(path).step(format!("taking hold of {}", path.display()));
        let merged = |name: &'static str| {
            let path = Path::new("/").join(name);
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_symlink() => {
                    Some(fs::read_link(&path).step("reading a link").map(|target| (name, Merged::Link(target))))
                }
                Ok(_) => Some(tree(&path).map(|tree| (name, Merged::Tree(tree)))),
                Err(_) => None,
            }
        };
        Ok(Self {
            usr: tree(Path::new("/usr"))?,
            etc: tree(&spec.etc)?,
            agent: tree(&spec.agent)?,
            ca_bundle: spec.ca_bundle.as_deref().map(tree).transpose()?,
            devices: DEVICES.iter().map(|name| tree(&Path::new("/dev").join(name))).collect::<Result<_, _>>()?,
            merged: MERGED.into_iter().filter_map(merged).collect::<Result<_, _>>()?,
            code: code.map_or_else(|| tree(&spec.code), Ok)?,
        })
    }

    /// Builds the root in the working directory, which becomes it. Runs as the instance's user.
    pub(crate) fn build(&self, spec: &Spec) -> Result<(), Failure> {
        // Any folder will do: the mount is ours alone, and the root moves over it.
        mounts::tmpfs("/tmp", ROOT_BYTES, 0o755, MountFlags::NOATIME).step("mounting the root")?;
        std::env::set_current_dir("/tmp").step("entering the root")?;
        self.system().step("mounting the system")?;
        self.devices(spec).step("mounting devices")?;
        processes().step("mounting /proc")?;
        self.folders(spec).step("mounting the code")?;
        pivot().step("pivot_root")?;
        mounts::remount_read_only("/").step("sealing the root")
    }

    fn system(&self) -> io::Result<()> {
        for folder in ["usr", "etc", "proc", "dev", "tmp", "var", "run", "sys", "root", "home", ".faena"] {
            folder_at(folder)?;
        }
        mounts::attach_read_only(&self.usr, "usr")?;
        mounts::attach_read_only(&self.etc, "etc")?;
        symlink("/tmp", "var/tmp")?;
        for (name, merged) in &self.merged {
            match merged {
                Merged::Link(target) => symlink(target, name)?,
                Merged::Tree(tree) => {
                    folder_at(name)?;
                    mounts::attach_read_only(tree, name)?;
                }
            }
        }
        fs::write(".faena/agent", "")?;
        mounts::attach_read_only(&self.agent, ".faena/agent")?;
        if let Some(bundle) = &self.ca_bundle {
            let point = CA_BUNDLE.trim_start_matches('/');
            fs::write(point, "")?;
            mounts::attach_read_only(bundle, point)?;
        }
        Ok(())
    }

    fn devices(&self, spec: &Spec) -> io::Result<()> {
        for (name, device) in DEVICES.iter().zip(&self.devices) {
            let point = format!("dev/{name}");
            fs::write(&point, "")?;
            mounts::attach(device, &point)?;
        }
        for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
            symlink(target, format!("dev/{name}"))?;
        }
        folder_at("dev/shm")?;
        mounts::tmpfs("dev/shm", spec.shm, 0o1777, MountFlags::NOEXEC)
    }

    fn folders(&self, spec: &Spec) -> io::Result<()> {
        mounts::tmpfs("tmp", spec.tmp, 0o1777, MountFlags::empty())?;
        let path = spec.path.trim_start_matches('/');
        let mut so_far = String::new();
        for part in path.split('/') {
            so_far = format!("{so_far}{part}/");
            if !Path::new(&so_far).exists() {
                folder_at(&so_far)?;
            }
        }
        for folder in [".faena/code", ".faena/layer"] {
            folder_at(folder)?;
        }
        mounts::attach_read_only(&self.code, ".faena/code")?;
        mounts::tmpfs(".faena/layer", spec.disk, 0o755, MountFlags::empty())?;
        for folder in [".faena/layer/upper", ".faena/layer/work"] {
            folder_at(folder)?;
        }
        mounts::overlay(".faena/code", ".faena/layer/upper", ".faena/layer/work", path, ",userxattr")?;
        // The overlay keeps both; nobody else shall see them.
        mounts::detach(".faena/layer")?;
        mounts::detach(".faena/code")
    }
}

fn folder_at(path: &str) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn processes() -> io::Result<()> {
    mounts::proc("proc")?;
    for name in MASKED {
        let point = format!("proc/{name}");
        if Path::new(&point).exists() {
            mounts::attach(&mounts::clone_tree(Path::new("dev/null"))?, &point)?;
        }
    }
    FROZEN.iter().try_for_each(|name| mounts::read_only_in_place(&format!("proc/{name}")))
}

/// Makes the working directory the root, and lets go of the old one.
fn pivot() -> io::Result<()> {
    // Both arguments may be the same folder: the old root then lies over the new one (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".")?;
    mounts::detach(".")?;
    std::env::set_current_dir("/")
}
