//! What is where, after each layer, and the tar of what is left.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io::Write;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;

use faena_domain::limits::INODE;
use tar::{EntryType, Header};

use super::super::entries::{Entry, Kind, Meta, tar};
use super::super::{ArchiveError, Bounds, Origin, judge};
use super::bundle::ROOTS;
use super::layer::Layer;

/// Before the name of what a layer removes, and the name that empties a folder (OCI image specification, "Whiteouts").
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";
/// How names begin that are no files of the image.
const OWN: &str = ".wh..wh.";
/// How many links a path may lead through (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// The most bytes of names and of links' targets that an image may have in memory.
const MAX_TEXT: usize = 256 * 1024 * 1024;
/// The longest target of a link (symlink(7), `PATH_MAX` without its NUL).
const MAX_TARGET: usize = 4095;

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
    /// The node at each path, and the number of the layer that added it.
    nodes: BTreeMap<String, (Node, usize)>,
    /// The layer that is applied.
    layer: usize,
    /// Files seen until now.
    files: usize,
    entries: u64,
    bytes: u64,
    text: usize,
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
        Self { bounds, nodes: BTreeMap::new(), layer: 0, files: 0, entries: 0, bytes: 0, text: 0 }
    }

    /// Takes over the files of a tar as they are.
    pub(super) fn fill(&mut self, whole: &Layer) -> Result<(), ArchiveError> {
        tar(&mut whole.buffered(), &mut |entry: Entry, _content| {
            let path = self.judge(&entry)?;
            self.add(&path, &entry, whole)
        })
    }

    /// Applies a layer, entry by entry. What it removes is what lower layers have put there, wherever in it that stands.
    pub(super) fn apply(&mut self, layer: &Layer) -> Result<(), ArchiveError> {
        self.layer += 1;
        tar(&mut layer.buffered(), &mut |entry: Entry, _content| {
            let path = self.judge(&entry)?;
            let (folder, name) = split(&path);
            match name.strip_prefix(WHITEOUT) {
                _ if name == OPAQUE => {
                    let inside = self.real(&join(folder, name), &entry)?;
                    self.remove_below(split(&inside).0, true);
                }
                // Older tools keep files of their own below names that begin so (AUFS).
                _ if path.split('/').any(|part| part.starts_with(OWN)) => {}
                Some("") => return Err(refuse(&entry, "removes nothing that has a name")),
                Some(hidden) => {
                    let hidden = self.real(&join(folder, hidden), &entry)?;
                    self.remove(&hidden);
                }
                None => self.add(&path, &entry, layer)?,
            }
            Ok(())
        })
    }

    /// The normal path of an entry, if there may be one more of it.
    fn judge(&mut self, entry: &Entry) -> Result<String, ArchiveError> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.size);
        if self.entries > self.bounds.entries || self.bytes > self.bounds.bytes {
            let Bounds { entries, bytes, .. } = self.bounds;
            return Err(ArchiveError::TooLarge(format!("has more than {entries} files, or {bytes} bytes, in all")));
        }
        if let Kind::Link(target) | Kind::Hard(target) = &entry.kind
            && (target.is_empty() || target.len() > MAX_TARGET || target.contains(&0))
        {
            return Err(refuse(entry, "is a link to what cannot be a path"));
        }
        judge::path(entry, Origin::Image)
    }

    /// Counts what a path holds of memory.
    fn insert(&mut self, path: String, node: Node) -> Result<(), ArchiveError> {
        let target = if let Node::Link(_, target) = &node { target.len() } else { 0 };
        self.text += path.len() + target;
        self.nodes.insert(path, (node, self.layer));
        if self.nodes.len() as u64 > self.bounds.entries || self.text > MAX_TEXT {
            let entries = self.bounds.entries;
            let why = format!("has more than {entries} files and folders, or {MAX_TEXT} bytes of names");
            return Err(ArchiveError::TooLarge(why));
        }
        Ok(())
    }

    /// Removes what lower layers have put at a path and below it.
    fn remove(&mut self, path: &str) {
        self.remove_below(path, true);
        let is_lower = self.nodes.get(path).is_some_and(|(_, layer)| *layer < self.layer);
        if is_lower {
            // What this layer has put below it stays, and so does its folder.
            let is_empty = self.below(path).next().is_none();
            if is_empty {
                self.nodes.remove(path);
            } else {
                self.nodes.insert(path.to_owned(), (Node::Folder(Meta::FOLDER), self.layer));
            }
        }
    }

    fn below(&self, folder: &str) -> impl Iterator<Item = (&String, &(Node, usize))> {
        // '0' is the character after the slash.
        let (from, to) = if folder.is_empty() {
            (Bound::Unbounded, Bound::Unbounded)
        } else {
            (Bound::Included(format!("{folder}/")), Bound::Excluded(format!("{folder}0")))
        };
        self.nodes.range((from, to))
    }

    /// Removes what lies below a folder; with `is_lower`, what lower layers have put there.
    fn remove_below(&mut self, folder: &str, is_lower: bool) {
        let goes = |layer: usize| !is_lower || layer < self.layer;
        let below: Vec<String> =
            self.below(folder).filter(|(_, (_, layer))| goes(*layer)).map(|(path, _)| path.clone()).collect();
        for path in below {
            self.nodes.remove(&path);
        }
    }

    /// A path whose folders are no links: where tools write below a link, they mean where it leads.
    fn real(&self, path: &str, entry: &Entry) -> Result<String, ArchiveError> {
        let (mut links, (folder, name)) = (0, split(path));
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
            let until = real.join("/");
            if judge::is_too_long(&until) {
                return Err(refuse(entry, "lies behind links, at a path that is too long or too deep"));
            }
            if let Some((Node::Link(_, target), _)) = self.nodes.get(&until)
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
        let real = join(&real.join("/"), name);
        let is_bad = judge::is_too_long(&real) || real.chars().any(char::is_control);
        if is_bad { Err(refuse(entry, "lies behind links, at a path that cannot be used")) } else { Ok(real) }
    }

    fn add(&mut self, path: &str, entry: &Entry, layer: &Layer) -> Result<(), ArchiveError> {
        if path.is_empty() {
            return Ok(());
        }
        let path = self.real(path, entry)?;
        let node = match &entry.kind {
            Kind::Folder => Node::Folder(entry.meta),
            Kind::Link(target) => Node::Link(entry.meta, target.clone()),
            Kind::File => {
                self.files += 1;
                Node::File(entry.meta, layer.part(entry.position, entry.size), self.files)
            }
            Kind::Hard(target) => {
                let target = Entry { name: target.clone(), ..entry.clone() };
                let target = self.real(&judge::path(&target, Origin::Image)?, entry)?;
                let found = self.nodes.get(&target).filter(|(node, _)| !matches!(node, Node::Folder(_)));
                let found = found.ok_or_else(|| refuse(entry, "is a hard link to nothing that came before it"))?;
                found.0.clone()
            }
            Kind::Sparse => return Err(refuse(entry, "is a sparse file; pack it whole")),
            // An instance has devices of its own.
            Kind::Other(_) => return Ok(()),
        };
        self.make_folders(split(&path).0)?;
        let is_folder = |node: Option<&(Node, usize)>| matches!(node, Some((Node::Folder(_), _)));
        if !(is_folder(self.nodes.get(&path)) && matches!(node, Node::Folder(_))) {
            self.remove_below(&path, false);
        }
        self.insert(path, node)
    }

    /// Makes the folders that a path implies; what stands in their way goes.
    fn make_folders(&mut self, folder: &str) -> Result<(), ArchiveError> {
        let ends = folder.match_indices('/').map(|(at, _)| at).chain([folder.len()]);
        for end in ends.filter(|end| *end > 0) {
            if !matches!(self.nodes.get(&folder[..end]), Some((Node::Folder(_), _))) {
                self.insert(folder[..end].to_owned(), Node::Folder(Meta::FOLDER))?;
            }
        }
        Ok(())
    }

    /// Whether any folder of a system is at its top.
    pub(super) fn is_root(&self) -> bool {
        ROOTS.iter().any(|name| self.nodes.contains_key(*name))
    }

    /// Writes the tar; what it takes of a disk when it is unpacked.
    pub(super) fn write(&self, to: &mut impl Write) -> Result<u64, ArchiveError> {
        if self.nodes.is_empty() {
            return Err(ArchiveError::NoFiles);
        }
        let mut builder = tar::Builder::new(to);
        let (mut first, mut unpacked): (HashMap<usize, &str>, u64) = (HashMap::new(), 0);
        for (path, (node, _)) in &self.nodes {
            unpacked += INODE;
            let written = match node {
                Node::Folder(meta) => {
                    builder.append_data(&mut header(*meta, EntryType::Directory, 0), path, std::io::empty())
                }
                Node::Link(meta, target) => {
                    builder.append_link(&mut header(*meta, EntryType::Symlink, 0), path, OsStr::from_bytes(target))
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
