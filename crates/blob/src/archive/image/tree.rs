//! What is where, after each layer, and the tar of what is left.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;

use faena_domain::limits::INODE;
use tar::{EntryType, Header};

use super::super::entries::{Entry, Kind, Meta, tar};
use super::super::{ArchiveError, Bounds, Origin, judge};
use super::layer::Layer;

/// Before the name of what a layer removes, and the name that empties a folder (OCI image specification, "Whiteouts").
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";
/// How names begin that are no files of the image.
const OWN: &str = ".wh..wh.";
/// How many links a path may lead through (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What stands at a path.
#[derive(Clone, Debug)]
enum Node {
    Folder(Meta),
    Link(Meta, Vec<u8>),
    /// A file; several paths may share one, which its number tells.
    File(Meta, Layer, usize),
}

/// A file system in the making.
#[derive(Debug)]
pub(super) struct Tree {
    bounds: Bounds,
    nodes: BTreeMap<String, Node>,
    /// Files seen until now.
    files: usize,
    entries: u64,
    bytes: u64,
}

/// What one layer says.
#[derive(Default)]
struct Changes {
    /// Paths that are removed with all below them.
    removed: Vec<String>,
    /// Folders that are emptied.
    emptied: Vec<String>,
    added: Vec<(String, Entry)>,
}

fn refuse(entry: &Entry, why: &'static str) -> ArchiveError {
    let name: String = String::from_utf8_lossy(&entry.name).chars().take(100).collect();
    ArchiveError::Entry { name, why }
}

/// The folder of a path, and its last part.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

impl Tree {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, nodes: BTreeMap::new(), files: 0, entries: 0, bytes: 0 }
    }

    /// Takes over the files of a tar as they are.
    pub(super) fn fill(&mut self, whole: &Layer) -> Result<(), ArchiveError> {
        tar(&mut whole.buffered(), &mut |entry: Entry, _content| {
            let path = self.judge(&entry)?;
            self.add(&path, &entry, whole)
        })
    }

    /// Applies a layer.
    pub(super) fn apply(&mut self, layer: &Layer) -> Result<(), ArchiveError> {
        let mut changes = Changes::default();
        tar(&mut layer.buffered(), &mut |entry: Entry, _content| {
            let path = self.judge(&entry)?;
            let (folder, name) = split(&path);
            match name.strip_prefix(WHITEOUT) {
                _ if name == OPAQUE => changes.emptied.push(folder.to_owned()),
                // Older tools keep files of their own below names that begin so (AUFS).
                _ if path.split('/').any(|part| part.starts_with(OWN)) => {}
                Some(hidden) => changes.removed.push(join(folder, hidden)),
                None => changes.added.push((path, entry)),
            }
            Ok(())
        })?;
        // What a layer removes is what lies below it, wherever in it that stands.
        for path in &changes.removed {
            let path = self.real(path);
            self.nodes.remove(&path);
            self.remove_below(&path);
        }
        for folder in &changes.emptied {
            let folder = self.real(&join(folder, "x"));
            self.remove_below(split(&folder).0);
        }
        changes.added.iter().try_for_each(|(path, entry)| self.add(path, entry, layer))
    }

    /// The normal path of an entry, if there may be one more of it.
    fn judge(&mut self, entry: &Entry) -> Result<String, ArchiveError> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.size);
        if self.entries > self.bounds.entries || self.bytes > self.bounds.bytes {
            let Bounds { entries, bytes, .. } = self.bounds;
            return Err(ArchiveError::TooLarge(format!("has more than {entries} files, or {bytes} bytes, in all")));
        }
        judge::path(entry, Origin::Image)
    }

    fn remove_below(&mut self, folder: &str) {
        // '0' is the character after the slash.
        let below = if folder.is_empty() {
            std::mem::take(&mut self.nodes).into_keys().collect()
        } else {
            let range = self.nodes.range(format!("{folder}/")..format!("{folder}0"));
            range.map(|(path, _)| path.clone()).collect::<Vec<_>>()
        };
        for path in below {
            self.nodes.remove(&path);
        }
    }

    /// A path whose folders are no links: where tools write below a link, they mean where it leads.
    fn real(&self, path: &str) -> String {
        let mut links = 0;
        let (folder, name) = split(path);
        let mut left: Vec<String> = folder.split('/').rev().map(str::to_owned).collect();
        let mut real: Vec<String> = Vec::new();
        while let Some(part) = left.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    real.pop();
                    continue;
                }
                _ => real.push(part),
            }
            if let Some(Node::Link(_, target)) = self.nodes.get(&real.join("/"))
                && links < MAX_LINKS
            {
                links += 1;
                let target = String::from_utf8_lossy(target).into_owned();
                real.pop();
                if target.starts_with('/') {
                    real.clear();
                }
                left.extend(target.split('/').rev().map(str::to_owned));
            }
        }
        join(&real.join("/"), name)
    }

    fn add(&mut self, path: &str, entry: &Entry, layer: &Layer) -> Result<(), ArchiveError> {
        if path.is_empty() {
            return Ok(());
        }
        let path = self.real(path);
        let node = match &entry.kind {
            Kind::Folder => Node::Folder(entry.meta),
            Kind::Link(target) => Node::Link(entry.meta, target.clone()),
            Kind::File => {
                self.files += 1;
                Node::File(entry.meta, layer.part(entry.position, entry.size), self.files)
            }
            Kind::Hard(target) => {
                let target = Entry { name: target.clone(), ..entry.clone() };
                let target = self.real(&judge::path(&target, Origin::Image)?);
                let found = self.nodes.get(&target).filter(|node| !matches!(node, Node::Folder(_)));
                found.cloned().ok_or_else(|| refuse(entry, "is a hard link to nothing that came before it"))?
            }
            Kind::Sparse => return Err(refuse(entry, "is a sparse file; pack it whole")),
            // An instance has devices of its own.
            Kind::Other(_) => return Ok(()),
        };
        self.make_folders(split(&path).0);
        if !matches!((self.nodes.get(&path), &node), (Some(Node::Folder(_)), Node::Folder(_))) {
            self.remove_below(&path);
        }
        self.nodes.insert(path, node);
        Ok(())
    }

    /// Makes the folders that a path implies; what stands in their way goes.
    fn make_folders(&mut self, folder: &str) {
        if folder.is_empty() || matches!(self.nodes.get(folder), Some(Node::Folder(_))) {
            return;
        }
        self.make_folders(split(folder).0);
        self.nodes.insert(folder.to_owned(), Node::Folder(Meta::FOLDER));
    }

    /// Writes the tar; what it takes of a disk when it is unpacked.
    pub(super) fn write(&self, to: &mut impl Write) -> Result<u64, ArchiveError> {
        if self.nodes.is_empty() {
            return Err(ArchiveError::NoFiles);
        }
        let mut builder = tar::Builder::new(to);
        let (mut first, mut unpacked): (HashMap<usize, &str>, u64) = (HashMap::new(), 0);
        for (path, node) in &self.nodes {
            unpacked += INODE;
            let written = match node {
                Node::Folder(meta) => {
                    builder.append_data(&mut header(*meta, EntryType::Directory, 0), path, std::io::empty())
                }
                Node::Link(meta, target) => {
                    let target = String::from_utf8_lossy(target);
                    builder.append_link(&mut header(*meta, EntryType::Symlink, 0), path, target.as_ref())
                }
                Node::File(meta, content, number) => match first.get(number) {
                    Some(first) => builder.append_link(&mut header(*meta, EntryType::Link, 0), path, first),
                    None => {
                        first.insert(*number, path);
                        unpacked += content.length();
                        let mut header = header(*meta, EntryType::Regular, content.length());
                        builder.append_data(&mut header, path, content.clone())
                    }
                },
            };
            written.map_err(ArchiveError::Write)?;
        }
        builder.into_inner().map(drop).map_err(ArchiveError::Write)?;
        Ok(unpacked)
    }
}

fn header(meta: Meta, kind: EntryType, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(bytes);
    header.set_mode(meta.mode);
    header.set_uid(meta.user);
    header.set_gid(meta.group);
    header.set_mtime(meta.modified);
    header
}
