//! The code of a container: an overlay on the host, mounted by the launcher and held by the container as a bind.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use faena_launcher::{OVERLAY, OverlaySpec};
use rustix::mount::{UnmountFlags, unmount};
use tracing::warn;

use crate::uids::Uid;
use crate::{EngineError, InstanceSpec, sandbox};

/// A mounted overlay; it goes, with its folder, when dropped.
#[derive(Debug)]
pub(super) struct Code {
    folder: PathBuf,
    _uid: Uid,
}

impl Code {
    /// Makes the folder and mounts the code in it, owned by the container's user.
    pub(super) async fn mount(
        launcher: &Path,
        folder: &Path,
        spec: &InstanceSpec,
        uid: Uid,
    ) -> Result<Self, EngineError> {
        std::fs::create_dir(folder).map_err(|error| EngineError::create("making a folder", error))?;
        let host_id = uid.id();
        let code = Self { folder: folder.to_owned(), _uid: uid };
        let wanted =
            OverlaySpec { code: spec.code.clone(), folder: folder.to_owned(), disk: spec.limits.disk.0, host_id };
        let (_, mut child) = sandbox::launch::ask(launcher, OVERLAY, &wanted, Stdio::null()).await?;
        let _ = child.wait().await;
        Ok(code)
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// Where the code of a container lies.
pub(super) fn merged(folder: &Path) -> PathBuf {
    folder.join("merged")
}

fn remove(folder: &Path) {
    for name in ["merged", "layer", "code"] {
        // What is not mounted, or not there, needs nothing.
        let _ = unmount(folder.join(name), UnmountFlags::DETACH);
    }
    if let Err(error) = std::fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        warn!(%error, folder = %folder.display(), "the folder of a container could not be removed");
    }
}

/// Removes the folders that dead incarnations left.
pub(super) fn remove_leftovers(folder: &Path, incarnation: &str) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(incarnation) {
            remove(&entry.path());
        }
    }
}

/// A socket that only this container's user can connect to: its folder is closed, and the container sees one file.
pub(super) fn listen(path: &Path, host_id: u32) -> std::io::Result<tokio::net::UnixListener> {
    let listener = tokio::net::UnixListener::bind(path)?;
    chown(path, Some(host_id), Some(host_id))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
