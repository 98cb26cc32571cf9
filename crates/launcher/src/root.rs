//! The root of an instance: the host's `/usr` and an `/etc` of ours, or the folders of an imported image; and little else.
//!
//! The root itself is a tmpfs, and every mount point in it is a folder that we made: no link of an image leads a mount
//! anywhere. What is the same in many of them, the *base*, a privileged spawner prepares once, and an instance takes a copy
//! of its mounts; without privilege each child makes one of its own.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use faena_instance_protocol::{SECRETS, SECRETS_BYTES, SHIMS};

use crate::{CA_BUNDLE, SpawnFailure, Spec, Step, mounts};

/// Devices that every program may expect; none of them reaches anything.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Links or folders of the host that lead into `/usr` on a merged system (file-hierarchy(7)).
const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Folders that every instance has of its own.
const OURS: [&str; 6] = ["proc", "dev", "tmp", "run", "sys", ".faena"];
/// Folders that programs expect, where the system has none.
const EXPECTED: [&str; 3] = ["var", "root", "home"];
/// Files of /proc that tell of the host or reach it, and are covered.
const MASKED: [&str; 7] = ["kcore", "keys", "sysrq-trigger", "kallsyms", "timer_list", "kmsg", "sched_debug"];
/// Folders of /proc that change the host, and are made read-only.
const FROZEN: [&str; 6] = ["sys", "irq", "bus", "fs", "acpi", "scsi"];
/// Where the parts of an overlay are mounted for a moment.
const CODE: &str = ".faena/code";
const LAYER: &str = ".faena/layer";
/// What the root itself may hold: folders and links, no data.
const ROOT_BYTES: u64 = 1024 * 1024;

/// Trees of the host, taken hold of while they can still be seen.
pub(crate) struct Trees {
    base: Base,
    code: Option<OwnedFd>,
}

enum Base {
    /// A copy of what a spawner has prepared.
    Prepared(OwnedFd),
    /// What it is made of.
    Parts(Parts),
}

/// What a base is made of.
struct Parts {
    system: Vec<(OsString, Part)>,
    agent: OwnedFd,
    shims: OwnedFd,
    ca_bundle: Option<OwnedFd>,
    devices: Vec<OwnedFd>,
}

/// What stands at the top of the system.
enum Part {
    Link(PathBuf),
    Tree(OwnedFd),
}

fn tree(path: &Path) -> Result<OwnedFd, SpawnFailure> {
    mounts::clone_tree(path).step(format!("taking hold of {}", path.display()))
}

/// A folder or a link; nothing for whatever else stands there.
fn part(path: &Path) -> Result<Option<Part>, SpawnFailure> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => {
            fs::read_link(path).step("reading a link").map(|target| Some(Part::Link(target)))
        }
        Ok(metadata) if metadata.is_dir() => tree(path).map(|tree| Some(Part::Tree(tree))),
        _ => Ok(None),
    }
}

/// The host's own system.
fn of_host(etc: &Path) -> Result<Vec<(OsString, Part)>, SpawnFailure> {
    let mut system = vec![
        (OsString::from("usr"), Part::Tree(tree(Path::new("/usr"))?)),
        (OsString::from("etc"), Part::Tree(tree(etc)?)),
    ];
    for name in MERGED {
        system.extend(part(&Path::new("/").join(name))?.map(|part| (name.into(), part)));
    }
    Ok(system)
}

/// An image's folders, but for those that every instance has of its own.
fn of_image(root: &Path, path: &str) -> Result<Vec<(OsString, Part)>, SpawnFailure> {
    let own = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let mut system = Vec::new();
    for entry in fs::read_dir(root).step(format!("reading {}", root.display()))? {
        let name = entry.step("reading the image")?.file_name();
        if name != own && !OURS.iter().any(|ours| name == *ours) {
            system.extend(part(&root.join(&name))?.map(|part| (name, part)));
        }
    }
    Ok(system)
}

/// Prepares a base, mounted at a folder of ours. What it holds belongs to us: no instance's user may write to it, whatever
/// it is mounted as.
pub(crate) fn prepare(place: &Path, spec: &Spec) -> Result<(), SpawnFailure> {
    let parts = Parts::open(spec)?;
    mounts::tmpfs(place, ROOT_BYTES, 0o755, MountFlags::NOATIME).step("mounting a root")?;
    std::env::set_current_dir(place).step("entering a root")?;
    parts.assemble(&spec.path)
}

impl Trees {
    /// Takes hold of them. `base` is where the base was prepared, and `code` the tree whose owner was mapped, where that
    /// could be done.
    pub(crate) fn open(spec: &Spec, base: Option<&Path>, code: Option<OwnedFd>) -> Result<Self, SpawnFailure> {
        Ok(Self {
            base: match base {
                Some(place) => Base::Prepared(tree(place)?),
                None => Base::Parts(Parts::open(spec)?),
            },
            code: match (code, &spec.code) {
                (Some(code), _) => Some(code),
                (None, path) => path.as_deref().map(tree).transpose()?,
            },
        })
    }

    /// Builds the root, which becomes that of this process. Runs as the instance's user.
    pub(crate) fn build(&self, spec: &Spec) -> Result<(), SpawnFailure> {
        // Any folder will do: the mount is ours alone, and the root moves over it.
        let place = Path::new("/tmp");
        match &self.base {
            Base::Prepared(base) => mounts::attach(base, place),
            Base::Parts(_) => mounts::tmpfs(place, ROOT_BYTES, 0o755, MountFlags::NOATIME),
        }
        .step("mounting the root")?;
        std::env::set_current_dir(place).step("entering the root")?;
        if let Base::Parts(parts) = &self.base {
            parts.assemble(&spec.path)?;
        }
        mounts::tmpfs("dev/shm", spec.shm, 0o1777, MountFlags::NOEXEC).step("mounting /dev/shm")?;
        processes().step("mounting /proc")?;
        self.folders(spec).step("mounting the code")?;
        pivot().step("pivot_root")?;
        mounts::remount_read_only("/").step("sealing the root")
    }

    fn folders(&self, spec: &Spec) -> io::Result<()> {
        mounts::tmpfs("tmp", spec.tmp, 0o1777, MountFlags::empty())?;
        mounts::tmpfs(SECRETS.trim_start_matches('/'), SECRETS_BYTES, 0o700, MountFlags::NOEXEC)?;
        let path = spec.path.trim_start_matches('/');
        // It may lie in what was mounted just now.
        folders_to(path)?;
        match &self.code {
            Some(code) => lay(code, path, spec.disk),
            None => Ok(()),
        }
    }
}

/// Makes what is not there of a folder and those above it.
fn folders_to(path: &str) -> io::Result<()> {
    let mut so_far = String::new();
    for part in path.split('/') {
        so_far = format!("{so_far}{part}/");
        if !Path::new(&so_far).exists() {
            folder_at(so_far.as_ref())?;
        }
    }
    Ok(())
}

impl Parts {
    fn open(spec: &Spec) -> Result<Self, SpawnFailure> {
        Ok(Self {
            system: match &spec.root {
                Some(root) => of_image(root, &spec.path)?,
                None => of_host(&spec.etc)?,
            },
            agent: tree(&spec.agent)?,
            shims: tree(&spec.shims)?,
            ca_bundle: spec.ca_bundle.as_deref().map(tree).transpose()?,
            devices: DEVICES.iter().map(|name| tree(&Path::new("/dev").join(name))).collect::<Result<_, _>>()?,
        })
    }

    /// Puts them together in the working directory, with a folder or a file wherever an instance has something of its own.
    fn assemble(&self, path: &str) -> Result<(), SpawnFailure> {
        self.system().step("mounting the system")?;
        self.devices().step("mounting devices")?;
        let own = [CODE, LAYER, path.trim_start_matches('/')];
        own.into_iter().try_for_each(folders_to).step("making folders")?;
        let Some(bundle) = &self.ca_bundle else { return Ok(()) };
        let point = CA_BUNDLE.trim_start_matches('/');
        let mounted = fs::write(point, "").and_then(|()| mounts::attach_read_only(bundle, point.as_ref()));
        mounted.step("mounting the certificate authorities")
    }

    fn system(&self) -> io::Result<()> {
        OURS.iter().try_for_each(|folder| folder_at(folder.as_ref()))?;
        folder_at(SECRETS.trim_start_matches('/').as_ref())?;
        for (name, part) in &self.system {
            match part {
                Part::Link(target) => symlink(target, name)?,
                Part::Tree(tree) => {
                    folder_at(name.as_ref())?;
                    mounts::attach_read_only(tree, name.as_ref())?;
                }
            }
        }
        for folder in EXPECTED.map(Path::new) {
            if fs::symlink_metadata(folder).is_err() {
                folder_at(folder)?;
            }
        }
        if !self.system.iter().any(|(name, _)| name == "var") {
            symlink("/tmp", "var/tmp")?;
        }
        fs::write(".faena/agent", "")?;
        mounts::attach_read_only(&self.agent, ".faena/agent".as_ref())?;
        let shims = SHIMS.trim_start_matches('/');
        folder_at(shims.as_ref())?;
        mounts::attach_read_only(&self.shims, shims.as_ref())?;
        Ok(())
    }

    fn devices(&self) -> io::Result<()> {
        for (name, device) in DEVICES.iter().zip(&self.devices) {
            let point = format!("dev/{name}");
            fs::write(&point, "")?;
            mounts::attach(device, point.as_ref())?;
        }
        for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
            symlink(target, format!("dev/{name}"))?;
        }
        folder_at("dev/shm".as_ref())
    }
}

/// Lays code over a folder, both named from the root, which is the working directory: the code below, never written
/// to, and a bounded layer above.
pub(crate) fn lay(code: &OwnedFd, path: &str, disk: u64) -> io::Result<()> {
    mounts::attach_read_only(code, CODE.as_ref())?;
    mounts::tmpfs(LAYER, disk, 0o755, MountFlags::empty())?;
    let (upper, work) = (format!("{LAYER}/upper"), format!("{LAYER}/work"));
    for folder in [&upper, &work] {
        folder_at(folder.as_ref())?;
    }
    mounts::overlay(CODE, &upper, &work, path, ",userxattr")?;
    // The overlay keeps both; no other process should see them.
    mounts::detach(LAYER)?;
    mounts::detach(CODE)
}

fn folder_at(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn processes() -> io::Result<()> {
    mounts::proc("proc")?;
    for name in MASKED {
        let point = format!("proc/{name}");
        if Path::new(&point).exists() {
            mounts::attach(&mounts::clone_tree(Path::new("dev/null"))?, point.as_ref())?;
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
