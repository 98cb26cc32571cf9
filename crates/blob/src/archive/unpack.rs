//! Writing an archive's entries below one folder, and nowhere else.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown, fstatvfs,
    futimens, linkat, mkdirat, openat2, symlinkat,
};
use rustix::io::Errno;

use super::entries::{Entry, Kind, for_each};
use super::judge::Judge;
use super::{ArchiveError, Bounds, Origin, format};

/// No step of a path may lead out of the folder or through a link (openat2(2)).
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// How often the disk is looked at while an archive is unpacked: after this many bytes, or entries.
pub(super) const LOOK_BYTES: u64 = 16 * 1024 * 1024;
const LOOK_ENTRIES: u64 = 256;
/// Inodes that stay free, on file systems that count them.
const RESERVED_INODES: u64 = 1024;

/// How a tree is written to its disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk {
    /// Who owns everything, where we may give it away.
    pub owner: Option<u32>,
    /// Bytes that stay free: unpacking ends before they are touched.
    pub reserve: u64,
}

/// Unpacks into a folder that is empty; modes become 0755 or 0644.
///
/// # Errors
/// [`ArchiveError`]; the folder then holds a part, and is the caller's to remove. A disk that is short of bytes or of
/// inodes is an error of the kind `StorageFull`.
pub fn unpack(file: &mut File, into: &Path, bounds: &Bounds, disk: Disk) -> Result<(), ArchiveError> {
    let folder =
        openat2(CWD, into, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty()).map_err(write)?;
    let top = Top { folder, disk };
    top.own(top.folder.as_fd(), 0o755)?;
    let format = format(file)?;
    let packed = file.metadata().map_err(ArchiveError::Write)?.len();
    top.has_room(packed)?;
    let (mut bytes, mut entries) = (0, 0);
    let mut judge = Judge::new(*bounds, packed);
    for_each(file, format, bounds, |entry, content| {
        let path = judge.entry(&entry)?;
        if path.is_empty() {
            return Ok(());
        }
        entries += 1;
        if entries % LOOK_ENTRIES == 0 {
            top.has_room(0)?;
        }
        let Some(mut target) = top.place(&path, &entry)? else { return Ok(()) };
        judge.content(&entry, content, |chunk| {
            bytes += chunk.len() as u64;
            if bytes > LOOK_BYTES {
                top.has_room(std::mem::take(&mut bytes))?;
            }
            target.write_all(chunk).map_err(ArchiveError::Write)
        })?;
        // Interpreters compare the time of a source with the one that its compiled form remembers.
        if bounds.origin == Origin::Image { modify(&target, entry.meta.modified) } else { Ok(()) }
    })?;
    judge.finish().map(drop)
}

/// Gives a file the time of its last change.
fn modify(file: &File, seconds: u64) -> Result<(), ArchiveError> {
    let at = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 };
    futimens(file, &Timestamps { last_access: at, last_modification: at }).map_err(write)
}

fn write(error: Errno) -> ArchiveError {
    ArchiveError::Write(error.into())
}

struct Top {
    folder: OwnedFd,
    disk: Disk,
}

impl Top {
    /// Whether the disk has room for more bytes, and for a few inodes.
    fn has_room(&self, bytes: u64) -> Result<(), ArchiveError> {
        let disk = fstatvfs(&self.folder).map_err(write)?;
        let is_short = disk.f_bavail.saturating_mul(disk.f_frsize) < self.disk.reserve.saturating_add(bytes)
            || (disk.f_files > 0 && disk.f_favail < RESERVED_INODES);
        if is_short { Err(ArchiveError::Write(std::io::ErrorKind::StorageFull.into())) } else { Ok(()) }
    }

    fn own(&self, fd: BorrowedFd<'_>, mode: u32) -> Result<(), ArchiveError> {
        fchmod(fd, Mode::from_raw_mode(mode)).map_err(write)?;
        match self.disk.owner {
            Some(owner) => fchown(fd, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner))).map_err(write),
            None => Ok(()),
        }
    }

    fn open(&self, path: &str) -> Result<OwnedFd, Errno> {
        openat2(&self.folder, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), BENEATH)
    }

    /// Makes a folder and those above it.
    fn make(&self, path: &str) -> Result<OwnedFd, ArchiveError> {
        match self.open(path) {
            Err(Errno::NOENT) => {}
            opened => return opened.map_err(write),
        }
        let (above, name) = self.above(path)?;
        match mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(write(error)),
        }
        let made = self.open(path).map_err(write)?;
        self.own(made.as_fd(), 0o755)?;
        Ok(made)
    }

    /// The folder that holds a path, made where it is missing, and the path's last part.
    fn above<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str), ArchiveError> {
        match path.rsplit_once('/') {
            Some((above, name)) => Ok((self.make(above)?, name)),
            None => Ok((self.folder.try_clone().map_err(ArchiveError::Write)?, path)),
        }
    }

    /// Makes what an entry stands for; a file is given back to be filled.
    fn place(&self, path: &str, entry: &Entry) -> Result<Option<File>, ArchiveError> {
        if entry.kind == Kind::Folder {
            return self.make(path).map(|_| None);
        }
        let (above, name) = self.above(path)?;
        if let Kind::Link(target) = &entry.kind {
            symlinkat(target.as_slice(), &above, name).map_err(write)?;
            if let Some(owner) = self.disk.owner {
                let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner));
                chownat(&above, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW).map_err(write)?;
            }
            return Ok(None);
        }
        if let Kind::Hard(target) = &entry.kind {
            let target = String::from_utf8_lossy(target);
            let (first, first_name) = self.above(target.trim_start_matches("./"))?;
            linkat(&first, first_name, &above, name, AtFlags::empty()).map_err(write)?;
            return Ok(None);
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat2(&above, name, flags, Mode::from_raw_mode(0o600), BENEATH).map_err(write)?;
        self.own(file.as_fd(), if entry.meta.is_executable() { 0o755 } else { 0o644 })?;
        Ok(Some(file.into()))
    }
}
