//! Writing an archive's entries below one folder, and nowhere else.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, fchown, linkat, mkdirat, openat2, symlinkat,
};
use rustix::io::Errno;

use super::entries::{Entry, Kind, for_each};
use super::judge::Judge;
use super::{ArchiveError, Bounds, format};

/// No step of a path may lead out of the folder or through a link (openat2(2)).
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Unpacks into a folder that is empty; modes become 0755 or 0644, and `owner` owns everything where we may give it away.
///
/// # Errors
/// [`ArchiveError`]; the folder then holds a part, and is the caller's to remove.
pub fn unpack(file: &mut File, into: &Path, bounds: &Bounds, owner: Option<u32>) -> Result<(), ArchiveError> {
    let folder =
        openat2(CWD, into, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty()).map_err(write)?;
    let top = Top { folder, owner };
    top.own(top.folder.as_fd(), 0o755)?;
    let format = format(file)?;
    let packed = file.metadata().map_err(ArchiveError::Write)?.len();
    let mut judge = Judge::new(*bounds, packed);
    for_each(file, format, bounds, |entry, content| {
        let path = judge.entry(&entry)?;
        if path.is_empty() {
            return Ok(());
        }
        let Some(mut target) = top.place(&path, &entry)? else { return Ok(()) };
        judge.content(&entry, content, |chunk| target.write_all(chunk).map_err(ArchiveError::Write))
    })?;
    judge.finish().map(drop)
}

fn write(error: Errno) -> ArchiveError {
    ArchiveError::Write(error.into())
}

struct Top {
    folder: OwnedFd,
    owner: Option<u32>,
}

impl Top {
    fn own(&self, fd: BorrowedFd<'_>, mode: u32) -> Result<(), ArchiveError> {
        fchmod(fd, Mode::from_raw_mode(mode)).map_err(write)?;
        match self.owner {
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
            if let Some(owner) = self.owner {
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
        self.own(file.as_fd(), if entry.executable { 0o755 } else { 0o644 })?;
        Ok(Some(file.into()))
    }
}
