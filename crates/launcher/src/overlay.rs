//! The code of a container: an overlay on the host, which the container holds as a bind.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};

use crate::{SpawnFailure, Step, clone, idmap, mounts};

/// The code of one container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverlaySpec {
    /// The unpacked code, owned by [`crate::INSIDE_ID`] on disk; none yet, where it is laid later.
    pub code: Option<PathBuf>,
    /// A folder of the container's own; `code`, `layer` and `merged` are made in it.
    pub folder: PathBuf,
    /// What may be written, in bytes.
    pub disk: u64,
    /// Who user code is on the host.
    pub host_id: u32,
    /// What stands at `merged` already.
    pub before: Before,
}

/// What stands where code is to be laid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Before {
    /// Nothing: the folder is empty.
    Nothing,
    /// A folder that waits for code.
    Place,
    /// Code, and whatever was written over it.
    Code,
}

/// Mounts `folder/merged`. A container that holds it as a slave sees what is mounted there afterwards.
pub(crate) fn mount(spec: &OverlaySpec) -> Result<(), SpawnFailure> {
    let at = |name: &str| spec.folder.join(name).display().to_string();
    let (code, layer, merged) = (at("code"), at("layer"), at("merged"));
    match spec.before {
        Before::Nothing => {
            for folder in [&code, &layer, &merged] {
                fs::create_dir(folder).step(format!("making {folder}"))?;
            }
            mounts::share(&merged).step("sharing the place of the code")?;
        }
        Before::Place => {}
        Before::Code => mounts::detach(&merged).step("taking the code away")?,
    }
    let Some(from) = &spec.code else { return Ok(()) };
    let tree = mapped_tree(from, spec.host_id).step("mapping the code's owner")?;
    mounts::attach_read_only(&tree, code.as_ref()).step("mounting the code")?;
    mounts::tmpfs(&layer, spec.disk, 0o755, MountFlags::empty()).step("mounting the layer")?;
    let (upper, work) = (format!("{layer}/upper"), format!("{layer}/work"));
    for folder in [&upper, &work] {
        fs::create_dir(folder).step(format!("making {folder}"))?;
    }
    std::os::unix::fs::chown(&upper, Some(spec.host_id), Some(spec.host_id)).step("owning the layer")?;
    mounts::overlay(&code, &upper, &work, &merged, "").step("mounting the overlay")?;
    mounts::detach(&layer).step("hiding the layer")?;
    mounts::detach(&code).step("hiding the code")
}

/// The mapping of a user namespace lives as long as a process in it or a mount that uses it.
fn mapped_tree(code: &Path, host_id: u32) -> io::Result<std::os::fd::OwnedFd> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let Some(child) = clone::into_namespaces(clone::Into::default())? else {
        drop(ours);
        // Waits until the parent is done.
        let _ = (&theirs).read(&mut [0]);
        std::process::exit(0);
    };
    drop(theirs);
    let tree = idmap::map_ids(child.pid, host_id, true).and_then(|()| idmap::owned_tree(code, child.pid));
    drop(ours);
    tree
}
