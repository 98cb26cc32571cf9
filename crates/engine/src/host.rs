//! Programs of this host.

use std::path::{Path, PathBuf};

/// Where a program of the host is found inside.
pub(crate) fn host_program(name: &str) -> Option<PathBuf> {
    ["/usr/local/bin", "/usr/bin", "/bin"].iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
}
