//! What an entry may be called, point to and weigh.

use std::collections::HashSet;
use std::io::Read;

use super::entries::{Entry, Kind};
use super::{ArchiveError, Bounds, Origin};

/// The longest path and the longest part of one, in bytes (what Linux takes, with room for a folder before it).
const MAX_PATH: usize = 2048;
const MAX_PART: usize = 255;
/// The deepest path.
const MAX_DEPTH: usize = 64;
/// What any archive may unpack to, however well it was packed.
const SMALL: u64 = 16 * 1024 * 1024;

/// Judges one archive from its first entry to its last.
pub(super) struct Judge {
    bounds: Bounds,
    packed: u64,
    bytes: u64,
    entries: u64,
    files: u64,
    names: HashSet<String>,
    links: HashSet<String>,
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
    if text.starts_with('/') {
        return Err(refuse(entry, "is absolute"));
    }
    // systemd's units have backslashes in their names.
    if origin != Origin::Image && (text.contains('\\') || text.as_bytes().get(1) == Some(&b':')) {
        return Err(refuse(entry, "has a backslash or a drive in its name; paths have slashes"));
    }
    if text.chars().any(char::is_control) {
        return Err(refuse(entry, "has a control character in its name"));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(refuse(entry, "leaves its folder with .."));
    }
    if text.len() > MAX_PATH || parts.len() > MAX_DEPTH || parts.iter().any(|part| part.len() > MAX_PART) {
        return Err(refuse(entry, "has a name that is too long or too deep"));
    }
    Ok(parts.join("/"))
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
        Self { bounds, packed, bytes: 0, entries: 0, files: 0, names: HashSet::new(), links: HashSet::new() }
    }

    /// Judges what an entry says of itself; returns its normal path, which is empty where there is nothing to unpack.
    pub(super) fn entry(&mut self, entry: &Entry) -> Result<String, ArchiveError> {
        self.entries += 1;
        if self.entries > self.bounds.entries {
            return Err(ArchiveError::TooLarge(format!("has more than {} entries", self.bounds.entries)));
        }
        self.weigh(self.bytes.saturating_add(entry.size))?;
        let path = path(entry, self.bounds.origin)?;
        match (&entry.kind, self.bounds.origin) {
            // An instance has devices of its own.
            (Kind::Other(_), Origin::Image) => return Ok(String::new()),
            (Kind::Other(why), _) => return Err(refuse(entry, why)),
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
        let is_file = self.names.contains(&target) && !self.links.contains(&target);
        if is_file { Ok(()) } else { Err(refuse(entry, "is a hard link to nothing that came before it")) }
    }

    /// No two entries may take the same place, and none may lie behind a link. Case is not told apart, so that a tree
    /// means the same on every disk.
    fn place(&mut self, entry: &Entry, path: &str) -> Result<(), ArchiveError> {
        let key = if self.bounds.origin == Origin::Source { path.to_lowercase() } else { path.to_owned() };
        let behind = key.match_indices('/').any(|(at, _)| self.links.contains(&key[..at]));
        if behind {
            return Err(refuse(entry, "lies behind a link"));
        }
        let repeated = !self.names.insert(key.clone());
        if repeated && entry.kind != Kind::Folder {
            return Err(refuse(entry, "is there twice, perhaps in another case"));
        }
        match &entry.kind {
            Kind::Link(target) => {
                if self.bounds.origin == Origin::Source && !stays_inside(path, target) {
                    return Err(refuse(entry, "is a link that leads out of the archive"));
                }
                self.links.insert(key);
            }
            Kind::File | Kind::Hard(_) => self.files += 1,
            Kind::Folder | Kind::Other(_) => {}
        }
        Ok(())
    }

    fn weigh(&self, bytes: u64) -> Result<(), ArchiveError> {
        if bytes > self.bounds.bytes {
            return Err(ArchiveError::TooLarge(format!("unpacks to more than {} bytes", self.bounds.bytes)));
        }
        if bytes > SMALL && bytes / self.bounds.ratio > self.packed {
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

    /// The bytes of all content; an archive without a file is refused.
    pub(super) fn finish(self) -> Result<u64, ArchiveError> {
        if self.files == 0 && self.bounds.origin == Origin::Source {
            Err(ArchiveError::NoFiles)
        } else {
            Ok(self.bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            let entry = Entry { name, kind: Kind::File, size: 0, executable: false };
            if let Ok(path) = path(&entry, Origin::Source) {
                prop_assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".."));
            }
        }
    }
}
