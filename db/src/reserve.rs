//! A file that stands for the disk which running work needs to end: given up when the disk is short.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tracing::{info, warn};

/// How much room a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// Enough.
    Roomy,
    /// Little enough that logs go before new work has to be refused.
    Tight,
    /// New work is refused.
    Short,
}

/// How many times the reserve must be free, the reserve itself aside, for a disk to be roomy.
const ROOMY: u64 = 3;

/// The reserve of one database.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    bytes: u64,
    disk: Disk,
}

impl Reserve {
    /// The reserve beside a database file; it is made at the first look.
    pub(crate) fn beside(database: &Path, bytes: u64) -> Self {
        Self { path: database.with_extension("reserve"), bytes, disk: Disk::Roomy }
    }

    /// Looks at the disk: gives the reserve up where it is short, and takes it again when it is not. How much room there is.
    pub(crate) fn look(&mut self) -> Disk {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let Ok(disk) = statvfs(folder) else { return self.disk };
        self.judge(disk.f_bavail.saturating_mul(disk.f_frsize));
        self.disk
    }

    fn judge(&mut self, free: u64) {
        let is_held = self.path.exists();
        // Taking it again needs room for the file and for what must stay free beside it.
        let needed = if is_held { self.bytes } else { self.bytes.saturating_mul(2) };
        let was_short = self.disk == Disk::Short;
        let roomy = if free < needed.saturating_mul(ROOMY) { Disk::Tight } else { Disk::Roomy };
        self.disk = if free < needed { Disk::Short } else { roomy };
        match (free < needed, was_short) {
            (true, false) => {
                warn!(
                    free,
                    reserve = self.bytes,
                    "the disk is nearly full: new work is refused, and what runs is finished"
                );
                if is_held && let Err(error) = std::fs::remove_file(&self.path) {
                    warn!(%error, "the reserve could not be given up");
                }
            }
            (false, true) => {
                info!(free, "the disk has room again");
                self.take();
            }
            (false, false) if !is_held => self.take(),
            _ => {}
        }
    }

    fn take(&self) {
        let taken =
            File::create(&self.path).and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, self.bytes)?));
        if let Err(error) = taken {
            warn!(%error, "the reserve of disk cannot be taken");
            // A file without its room would be none.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_given_up_and_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::beside(&folder.path().join("faena.db"), 1 << 20);
        let size = || std::fs::metadata(folder.path().join("faena.reserve")).map(|metadata| metadata.len()).ok();
        reserve.judge(1 << 30);
        assert_eq!((reserve.disk, size()), (Disk::Roomy, Some(1 << 20)));
        reserve.judge(2 << 20);
        assert_eq!((reserve.disk, size()), (Disk::Tight, Some(1 << 20)));
        reserve.judge(1000);
        assert_eq!((reserve.disk, size()), (Disk::Short, None));
        reserve.judge((1 << 20) + 1000);
        assert_eq!(reserve.disk, Disk::Short, "what was given up is no new room");
        reserve.judge(1 << 30);
        assert_eq!((reserve.disk, size()), (Disk::Roomy, Some(1 << 20)));
    }
}
