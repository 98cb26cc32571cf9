//! What an entry may be called, point to and weigh.

use std::collections::HashMap;
use std::io::Read;

use faena_domain::limits::RATIO_FREE;

use super::entries::{Entry, Kind};
use super::listing::{Listing, Place};
use super::{ArchiveError, Bounds, Origin};

/// The longest path and the longest part of one, in bytes (what Linux takes, with room for a folder before it).
const MAX_PATH: usize = 2048;
const MAX_PART: usize = 255;
/// The deepest path.
const MAX_DEPTH: usize = 64;
/// Judges one archive from its first entry to its last.
pub(super) struct Judge {
    bounds: Bounds,
    packed: u64,
    bytes: u64,
    entries: u64,
    files: u64,
    /// What stands where, folders that entries only imply included.
    places: HashMap<String, Place>,
}

fn refuse(entry: &Entry, why: &'static str) -> ArchiveError {
    let name: String = String::from_utf8_lossy(&entry.name).chars().take(100).collect();
    ArchiveError::Entry { name, why }
}

/// The normal path of an entry, without what stands for "here" and without a slash at its end.
pub(super) fn path(entry: &Entry, origin: Origin) -> Result<String, ArchiveError> {
    normal(entry, &entry.name, origin)
}

fn normal(entry: &Entry, name: &[u8], origin: Origin) -> Result<String, ArchiveError> {
    let text = std::str::from_utf8(name).map_err(|_| refuse(entry, "has a name that is no UTF-8"))?;
    // Tools that make images write some paths from the root on.
    if text.starts_with('/') && origin != Origin::Image {
        return Err(refuse(entry, "is absolute"));
    }
    if origin == Origin::Source {
        is_no_path_elsewhere(entry, text)?;
    }
    if text.chars().any(char::is_control) {
        return Err(refuse(entry, "has a control character in its name"));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(refuse(entry, "leaves its folder with .."));
    }
    if text.len() > MAX_PATH || is_too_long(&parts.join("/")) {
        return Err(refuse(entry, "has a name that is too long or too deep"));
    }
    Ok(parts.join("/"))
}

/// Whether a normal path has more bytes, or parts, than one may have.
pub(super) fn is_too_long(path: &str) -> bool {
    path.len() > MAX_PATH || path.split('/').count() > MAX_DEPTH || path.split('/').any(|part| part.len() > MAX_PART)
}

/// Refuses the name of an upload that means a place outside of its folder on another system.
fn is_no_path_elsewhere(entry: &Entry, text: &str) -> Result<(), ArchiveError> {
    if let [letter, b':', ..] = text.as_bytes()
        && letter.is_ascii_alphabetic()
    {
        return Err(refuse(entry, "names a drive"));
    }
    if text.starts_with('\\') || text.split(['/', '\\']).any(|part| part == "..") {
        return Err(refuse(entry, "leaves its folder with .."));
    }
    Ok(())
}

/// Whether a link that lies at `path` stays below the top.
fn stays_inside(path: &str, target: &[u8]) -> bool {
    let Ok(target) = std::str::from_utf8(target) else { return false };
    if target.is_empty() || target.starts_with('/') || target.contains('\\') {
        return false;
    }
    let mut depth = path.split('/').count() - 1;
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if depth == 0 => return false,
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    true
}

impl Judge {
    pub(super) fn new(bounds: Bounds, packed: u64) -> Self {
        Self { bounds, packed, bytes: 0, entries: 0, files: 0, places: HashMap::new() }
    }

    /// Judges what an entry says of itself; returns its normal path, which is empty where there is nothing to unpack.
    pub(super) fn entry(&mut self, entry: &Entry) -> Result<String, ArchiveError> {
        self.entries += 1;
        self.count(self.entries)?;
        self.weigh(self.bytes.saturating_add(entry.size))?;
        let path = path(entry, self.bounds.origin)?;
        match (&entry.kind, self.bounds.origin) {
            // An instance has devices of its own.
            (Kind::Other(_), Origin::Image) => return Ok(String::new()),
            (Kind::Other(why), _) => return Err(refuse(entry, why)),
            (Kind::Sparse, _) => return Err(refuse(entry, "is a sparse file; pack it whole")),
            (Kind::Hard(target), Origin::Image) => self.first_name(entry, target)?,
            (Kind::Hard(_), _) => return Err(refuse(entry, "is a hard link; pack the file itself")),
            (Kind::File | Kind::Folder | Kind::Link(_), _) => {}
        }
        if path.is_empty() {
            return if entry.kind == Kind::Folder { Ok(path) } else { Err(refuse(entry, "has no name")) };
        }
        self.place(entry, &path)?;
        Ok(path)
    }

    /// A hard link names a file that came before.
    fn first_name(&self, entry: &Entry, target: &[u8]) -> Result<(), ArchiveError> {
        let target = normal(entry, target, self.bounds.origin)?;
        let is_file = self.places.get(&target) == Some(&Place::File);
        if is_file { Ok(()) } else { Err(refuse(entry, "is a hard link to nothing that came before it")) }
    }

    fn count(&self, entries: u64) -> Result<(), ArchiveError> {
        if entries > self.bounds.entries {
            return Err(ArchiveError::TooLarge(format!("has more than {} files and folders", self.bounds.entries)));
        }
        Ok(())
    }

    /// No two entries may take the same place, and none may lie below a file or a link. Names that differ only in case are
    /// two files, as packages have them.
    fn place(&mut self, entry: &Entry, path: &str) -> Result<(), ArchiveError> {
        for (at, _) in path.match_indices('/') {
            match self.places.get(&path[..at]) {
                Some(Place::Folder) => {}
                Some(Place::File) => return Err(refuse(entry, "lies below a file")),
                Some(Place::Link) => return Err(refuse(entry, "lies behind a link")),
                None => self.take(&path[..at], Place::Folder)?,
            }
        }
        let place = match &entry.kind {
            Kind::Link(target) => {
                if self.bounds.origin == Origin::Source && !stays_inside(path, target) {
                    return Err(refuse(entry, "is a link that leads out of the archive"));
                }
                Place::Link
            }
            Kind::Folder | Kind::Other(_) | Kind::Sparse => Place::Folder,
            Kind::File | Kind::Hard(_) => Place::File,
        };
        match (self.places.get(path), place) {
            (Some(Place::Folder), Place::Folder) => return Ok(()),
            (Some(Place::Folder), _) | (Some(_), Place::Folder) => {
                return Err(refuse(entry, "is a folder and also a file or a link"));
            }
            (Some(_), _) => return Err(refuse(entry, "is there twice")),
            (None, _) => {}
        }
        self.files += u64::from(place == Place::File);
        self.take(path, place)
    }

    fn take(&mut self, path: &str, place: Place) -> Result<(), ArchiveError> {
        self.places.insert(path.to_owned(), place);
        self.count(self.places.len() as u64)
    }

    fn weigh(&self, bytes: u64) -> Result<(), ArchiveError> {
        if bytes > self.bounds.bytes {
            return Err(ArchiveError::TooLarge(format!("unpacks to more than {} bytes", self.bounds.bytes)));
        }
        if bytes.saturating_sub(RATIO_FREE) / self.bounds.ratio > self.packed {
            return Err(ArchiveError::TooLarge(format!("unpacks to more than {} times its size", self.bounds.ratio)));
        }
        Ok(())
    }

    /// Reads the content of an entry, counting what really comes.
    pub(super) fn content(
        &mut self,
        entry: &Entry,
        content: &mut dyn Read,
        mut take: impl FnMut(&[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        if entry.kind != Kind::File {
            return Ok(());
        }
        let mut chunk = vec![0; 64 * 1024];
        let mut read_in_all = 0u64;
        loop {
            let read = content.read(&mut chunk).map_err(ArchiveError::damaged)?;
            if read == 0 {
                break;
            }
            read_in_all += read as u64;
            self.bytes += read as u64;
            self.weigh(self.bytes)?;
            take(&chunk[..read])?;
        }
        if read_in_all == entry.size { Ok(()) } else { Err(refuse(entry, "is shorter or longer than it says")) }
    }

    /// The bytes of all content, and what stands where; an upload without a file is refused.
    pub(super) fn finish(self) -> Result<(u64, Listing), ArchiveError> {
        if self.files == 0 && self.bounds.origin == Origin::Source {
            Err(ArchiveError::NoFiles)
        } else {
            Ok((self.bytes, Listing::new(self.places)))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::entries::Meta;
    use super::*;

    #[test]
    fn links_are_followed_on_paper() {
        assert!(stays_inside("a/b/link", b"../c"));
        assert!(stays_inside("link", b"a/../b"));
        for (path, target) in
            [("link", "../x"), ("a/link", "../../x"), ("link", "/etc/passwd"), ("link", ""), ("a", "b\\c")]
        {
            assert!(!stays_inside(path, target.as_bytes()), "{path} -> {target}");
        }
    }

    proptest! {
        #[test]
        fn a_path_that_is_taken_never_leaves_its_folder(name in proptest::collection::vec(any::<u8>(), 0..60)) {
            let entry = Entry { name, kind: Kind::File, size: 0, position: 0, meta: Meta::FILE };
            if let Ok(path) = path(&entry, Origin::Source) {
                prop_assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".."));
            }
        }
    }
}
