//! Folders that are ours alone, and the locks that say so.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

use crate::settings::Settings;

/// The socket of calls from functions, beside those of the roles.
const INTERNAL_SOCKET: &str = "internal.sock";

/// A folder that only we can enter.
pub(crate) fn private(path: &Path) -> anyhow::Result<()> {
    let make = || fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    make().with_context(|| format!("cannot make the folder {}", path.display()))?;
    let metadata = fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    if !metadata.is_dir() {
        bail!("{} is no folder of ours but a link or a file; choose another", path.display());
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        bail!("the folder {} belongs to somebody else; choose another, or change its owner", path.display());
    }
    if metadata.mode() & 0o077 != 0 {
        let closed = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
        closed.with_context(|| format!("cannot close the folder {} to others", path.display()))?;
    }
    Ok(())
}

/// Refuses a folder that holds something and was never a data folder, before anything about it is changed.
fn ours_or_empty(data: &Path) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(data) else { return Ok(()) };
    // Another role may be making the id at this moment; it makes nothing else before that is there.
    let is_strange = |entry: fs::DirEntry| !entry.file_name().to_string_lossy().starts_with(PLATFORM_ID);
    if entries.flatten().any(is_strange) && !data.join(PLATFORM_ID).exists() {
        bail!("{} holds something and is no data folder of Faena; choose another with --data", data.display());
    }
    Ok(())
}

/// The data folder and the folder of the sockets, made and checked.
#[derive(Debug)]
pub(crate) struct Folders {
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
    /// The platform's random id.
    pub(crate) platform: String,
}

/// Holds a lock for the process's life.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

/// Below which folder the sockets lie: short, and gone after a restart of the machine.
fn run_base() -> PathBuf {
    if let Some(folder) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_dir()) {
        return folder.join("faena");
    }
    if rustix::process::geteuid().is_root() && Path::new("/run").is_dir() {
        return PathBuf::from("/run/faena");
    }
    std::env::temp_dir().join(format!("faena-{}", rustix::process::geteuid().as_raw()))
}

impl Folders {
    pub(crate) fn prepare(settings: &Settings) -> anyhow::Result<Self> {
        ours_or_empty(settings.data())?;
        private(settings.data())?;
        let data = settings.data().canonicalize().context("cannot find the data folder that was just made")?;
        let platform = platform_id(&data)?;
        let run = match &settings.run {
            Some(run) => run.clone(),
            None => {
                let base = run_base();
                private(&base)?;
                base.join(&platform[..12])
            }
        };
        private(&run)?;
        Ok(Self { data, run, platform })
    }

    /// What a worker keeps.
    pub(crate) fn worker(&self) -> PathBuf {
        self.data.join("worker")
    }

    /// Where a worker without the platform's blobs beside it keeps files that pass.
    pub(crate) fn spool(&self) -> PathBuf {
        self.worker().join("spool")
    }

    /// Where the api listens for connections of functions that call others.
    pub(crate) fn internal_socket(&self) -> PathBuf {
        self.run.join(INTERNAL_SOCKET)
    }

    /// Removes the folder of the sockets; the next start makes it again.
    pub(crate) fn leave(&self) {
        // A folder that the settings name may hold more than ours.
        let _ = fs::remove_dir_all(self.run.join("containers"));
        for name in ["db.sock", "api.sock", INTERNAL_SOCKET] {
            let _ = fs::remove_file(self.run.join(name));
        }
        let _ = fs::remove_dir(&self.run);
    }

    /// Takes the lock of a role on this data folder, or says who holds it.
    pub(crate) fn lock(&self, role: &str) -> anyhow::Result<Lock> {
        let path = self.data.join(format!("{role}.lock"));
        let file = File::options().create(true).truncate(false).write(true).read(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let pid = io::read_to_string(&file).unwrap_or_default();
                bail!(
                    "another {role} of Faena (process {}) uses the data folder {}; stop it, or choose another folder with --data",
                    pid.trim(),
                    self.data.display()
                );
            }
            Err(error) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
        file.set_len(0).and_then(|()| writeln!(&file, "{}", std::process::id())).context("cannot write the lock")?;
        Ok(Lock(file))
    }
}

/// The file that holds the platform's id; what binds it to this very folder stands beside it.
const PLATFORM_ID: &str = "platform-id";

/// What a copy of the identity's file does not have: its inode, its time of birth, and the machine. Device numbers change
/// across restarts.
fn binding(file: &Path) -> anyhow::Result<String> {
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    let wanted = rustix::fs::StatxFlags::BASIC_STATS | rustix::fs::StatxFlags::BTIME;
    let stat = rustix::fs::statx(rustix::fs::CWD, file, flags, wanted).context("cannot look at the platform's id")?;
    let born = (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    Ok(format!("{} {}.{} {}", stat.stx_ino, born.0, born.1, machine.trim()))
}

/// Made once for each data folder: tells this platform's instances from another's. A folder that was copied or restored
/// gets an id of its own at its first start, so that it touches nothing of the original's.
pub(crate) fn platform_id(data: &Path) -> anyhow::Result<String> {
    let beside = |name: &str| data.join(format!("{PLATFORM_ID}.{name}"));
    let (path, bound) = (data.join(PLATFORM_ID), beside("bound"));
    // Roles may start at once; the lock ends with this function.
    let lock =
        File::options().create(true).truncate(false).write(true).open(beside("lock")).context("cannot make a lock")?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the platform's id")?;
    let is_made_here = || -> anyhow::Result<bool> {
        let binding = binding(&path)?;
        Ok(fs::read_to_string(&bound).map_or(true, |bound| bound.trim() == binding))
    };
    if path.exists() && !is_made_here()? {
        fs::rename(&path, beside("copied")).context("cannot replace the platform's id")?;
        fs::remove_file(&bound).context("cannot replace the platform's id")?;
        eprintln!(
            "faena: the data folder {} is a copy, or was restored: it is a platform of its own from now on, and leaves the original's instances alone",
            data.display()
        );
    }
    let id = match fs::read_to_string(&path) {
        Ok(text) if text.trim().len() == 32 && text.trim().chars().all(|c| c.is_ascii_hexdigit()) => {
            text.trim().to_owned()
        }
        Ok(_) => bail!("{} does not hold the platform's id; restore it from a backup", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = uuid::Uuid::new_v4().simple().to_string();
            let passing = beside("new");
            fs::write(&passing, format!("{id}\n")).context("cannot write the platform's id")?;
            fs::rename(&passing, &path).context("cannot write the platform's id")?;
            id
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    if !bound.exists() {
        fs::write(&bound, binding(&path)?).context("cannot write what binds the platform's id")?;
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_keeps_its_id() {
        let folder = tempfile::tempdir().unwrap();
        let id = platform_id(folder.path()).unwrap();
        assert_eq!(platform_id(folder.path()).unwrap(), id);
    }

    #[test]
    fn a_copy_is_another_platform_and_the_original_stays_itself() {
        let (original, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = platform_id(original.path()).unwrap();
        for entry in fs::read_dir(original.path()).unwrap().flatten() {
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        let other = platform_id(copy.path()).unwrap();
        assert_ne!(other, id);
        assert_eq!(platform_id(copy.path()).unwrap(), other);
        assert_eq!(platform_id(original.path()).unwrap(), id);
        let moved = original.path().with_extension("moved");
        fs::rename(original.path(), &moved).unwrap();
        assert_eq!(platform_id(&moved).unwrap(), id, "a folder that was moved is itself");
        fs::rename(&moved, original.path()).unwrap();
    }

    #[test]
    fn a_folder_with_a_strangers_files_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(ours_or_empty(folder.path()).is_ok() && ours_or_empty(&folder.path().join("new")).is_ok());
        fs::write(folder.path().join("thesis.txt"), "x").unwrap();
        assert!(ours_or_empty(folder.path()).is_err());
    }

    #[test]
    fn a_folder_behind_a_link_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        assert!(private(&link).is_err());
    }

    #[test]
    fn a_second_holder_is_told_about_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let folders = Folders { data: folder.path().into(), run: folder.path().into(), platform: String::new() };
        let held = folders.lock("db").unwrap();
        let error = folders.lock("db").unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(held);
        assert!(folders.lock("db").is_ok());
    }
}
