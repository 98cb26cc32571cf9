//! The code of a container: an overlay on the host, mounted by the launcher and held by the container as a bind.
//!
//! Where that cannot be (we are not root, or the daemon does not see what we mount) the container holds the code itself,
//! read-only, and its agent copies it into a bounded tmpfs: slower, and counted in the memory of the call.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use faena_launcher::{Before, OverlaySpec};
use rustix::mount::{UnmountFlags, unmount};
use tracing::warn;

use super::overlay;
use crate::uids::Uid;
use crate::{EngineError, InstanceSpec};

/// How code gets to its place in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeBy {
    /// Mounted on the host: nothing is copied, and it can enter a container that runs already.
    Overlay,
    /// Copied by the agent when the container starts.
    Copy,
}

/// The folder of a container on the host, and the mounts in it; both go when dropped.
#[derive(Debug)]
pub(super) struct Code {
    /// How code is laid; none where the agent copies it.
    overlay: Option<OverlaySpec>,
    launcher: PathBuf,
    folder: PathBuf,
    _uid: Uid,
}

impl Code {
    /// Makes the folder and, where code is not copied, mounts it there, owned by the container's user.
    pub(super) async fn prepare(
        by: CodeBy,
        launcher: &Path,
        folder: &Path,
        spec: &InstanceSpec,
        uid: Uid,
    ) -> Result<Self, EngineError> {
        std::fs::create_dir(folder).map_err(|error| EngineError::create("making a folder", error))?;
        let overlay = OverlaySpec {
            // A container would bind the code itself rather than the place where it is laid, for good.
            code: None,
            folder: folder.to_owned(),
            disk: spec.limits.disk.0,
            host_id: uid.id(),
            before: Before::Nothing,
        };
        let (folder, launcher) = (folder.to_owned(), launcher.to_owned());
        let mut code = Self { overlay: None, launcher, folder, _uid: uid };
        if by == CodeBy::Overlay {
            code.mount(overlay).await?;
        }
        Ok(code)
    }

    async fn mount(&mut self, mut overlay: OverlaySpec) -> Result<(), EngineError> {
        overlay::mount(&self.launcher, &overlay).await?;
        overlay.before = if overlay.code.is_some() { Before::Code } else { Before::Place };
        self.overlay = Some(overlay);
        Ok(())
    }

    /// Mounts code, over nothing or over what was mounted there before.
    pub(super) async fn mount_code(&mut self, code: &Path) -> Result<(), EngineError> {
        let cannot = || EngineError::create("mounting the code", "code is copied into containers here, once");
        let overlay = self.overlay.take().ok_or_else(cannot)?;
        self.mount(OverlaySpec { code: Some(code.to_owned()), ..overlay }).await
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// What the files of a tree hold: what a copy of it takes.
pub(super) fn tree_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => tree_bytes(&entry.path()),
        // A tmpfs counts whole pages.
        Ok(metadata) => metadata.len().next_multiple_of(4096),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// Where the code of a container lies.
pub(super) fn merged(folder: &Path) -> PathBuf {
    folder.join("merged")
}

fn remove(folder: &Path) {
    // The code lies over the place that was made for it.
    for name in ["merged", "merged", "layer", "code"] {
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
    // Without root it stays ours, and open: its folder is closed to everybody else, and the nonce tells who connects.
    let mode = if chown(path, Some(host_id), Some(host_id)).is_ok() { 0o600 } else { 0o666 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}
