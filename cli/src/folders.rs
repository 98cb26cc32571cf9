//! Folders that are ours alone, and the locks that say so.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

use crate::settings::Settings;

/// A folder that only we can enter.
fn private(path: &Path) -> anyhow::Result<()> {
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

    /// Removes the folder of the sockets; whoever starts next makes it anew.
    pub(crate) fn leave(&self) {
        // A folder that the settings name may hold more than ours.
        let _ = fs::remove_dir_all(self.run.join("containers"));
        for name in ["db.sock", "api.sock"] {
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

/// Made once, when the data folder is: tells this platform's containers from another's.
fn platform_id(data: &Path) -> anyhow::Result<String> {
    let path = data.join("platform-id");
    match fs::read_to_string(&path) {
        Ok(id) if id.trim().len() == 32 && id.trim().chars().all(|c| c.is_ascii_hexdigit()) => Ok(id.trim().to_owned()),
        Ok(_) => bail!("{} does not hold the platform's id; restore it from a backup", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = uuid::Uuid::new_v4().simple().to_string();
            let passing = data.join(format!("platform-id.{}", std::process::id()));
            fs::write(&passing, format!("{id}\n")).context("cannot write the platform's id")?;
            // Roles may start at once: whoever is first decides.
            let linked = fs::hard_link(&passing, &path);
            fs::remove_file(&passing).context("cannot remove a passing file")?;
            match linked {
                Ok(()) => Ok(id),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => platform_id(data),
                Err(error) => Err(error).context("cannot write the platform's id"),
            }
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
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
