//! Archives: told by their bytes, checked before anything is written, unpacked without leaving their folder.
//!
//! [`check`] reads a whole archive and judges every entry; [`unpack`] judges again while it writes, because the two
//! need not have seen the same bytes. Both go through the same `entries` and the same `Judge`.

mod entries;
mod image;
mod judge;
mod listing;
mod unpack;

use std::fs::File;
use std::io::{Read, Seek};

use faena_domain::limits::{INODE, MAX_ENTRIES, MAX_RATIO, MAX_UNPACKED};
use faena_domain::manifest;

pub use image::{Flattened, ImageFormat, flatten};
pub use listing::{Listing, Place};
pub use unpack::{Disk, unpack};

use judge::Judge;

/// What an archive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// PKZIP.
    Zip,
    /// A tar, gzipped.
    TarGz,
    /// A tar.
    Tar,
}

/// Whom an archive comes from decides what it may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A user's upload: links stay inside.
    Source,
    /// An instance's artifact: links may point anywhere inside the instance; they are stored, never followed.
    Artifact,
    /// A root file system: links as in an artifact, hard links within, devices and pipes left out.
    Image,
}

/// The bounds of an archive.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Whom it comes from.
    pub origin: Origin,
    /// The most bytes it may unpack to.
    pub bytes: u64,
    /// The most entries it may have.
    pub entries: u64,
    /// The most bytes for each packed one.
    pub ratio: u64,
}

impl Bounds {
    /// The bounds of an upload.
    pub const SOURCE: Self =
        Self { origin: Origin::Source, bytes: MAX_UNPACKED, entries: MAX_ENTRIES, ratio: MAX_RATIO };
    /// The bounds of an artifact: as large as an upload, of as many files as package managers make.
    pub const ARTIFACT: Self =
        Self { origin: Origin::Artifact, bytes: MAX_UNPACKED, entries: 10 * MAX_ENTRIES, ratio: u64::MAX };
    /// The bounds of an image: what a whole system with a few interpreters needs, and some more.
    pub const IMAGE: Self =
        Self { origin: Origin::Image, bytes: 8 * MAX_UNPACKED, entries: 25 * MAX_ENTRIES, ratio: u64::MAX };
}

/// Why an archive was refused. The sentence names the entry.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// No bytes at all.
    #[error("the file is empty")]
    Empty,
    /// None of the formats.
    #[error("the file is no archive: a zip, a tar.gz or a tar is needed, whatever its name")]
    Unknown,
    /// Ends too early, or contradicts itself.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// Whole, and packed in a way that is not read.
    #[error(
        "the archive's entry {name:?} is {how}, which is not read here; pack it with deflate or store, without a password"
    )]
    Unsupported {
        /// Its name, cut at 100 characters.
        name: String,
        /// How it is packed.
        how: String,
    },
    /// Whole, and of a kind that is not read.
    #[error("the archive {0}")]
    NotRead(String),
    /// No file in it.
    #[error("the archive holds no file")]
    NoFiles,
    /// An entry that reaches out, hides or repeats.
    #[error("the archive's entry {name:?} {why}")]
    Entry {
        /// Its name, cut at 100 characters.
        name: String,
        /// The end of the sentence.
        why: &'static str,
    },
    /// More than the bounds.
    #[error("the archive {0}")]
    TooLarge(String),
    /// Nothing wrong with the archive: the disk failed.
    #[error("the archive could not be written")]
    Write(#[source] std::io::Error),
}

impl ArchiveError {
    fn damaged(error: impl std::fmt::Display) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The format.
    pub format: Format,
    /// How many bytes it unpacks to.
    pub bytes: u64,
    /// What stands where.
    pub listing: Listing,
    /// The text of the `faena.toml` at its top, or else in its only folder.
    pub manifest: Option<String>,
}

impl Checked {
    /// What it takes of a disk: its content, and a block for each file, folder and link.
    pub fn disk(&self) -> u64 {
        self.bytes + self.listing.inodes() * INODE
    }
}

/// Tells a format by its first bytes.
///
/// Signatures: PKWARE's APPNOTE 4.3.7 and 4.3.16, RFC 1952 2.3.1; a tar has none that all have, so its header's
/// checksum is computed (POSIX.1-2017, pax, "ustar Interchange Format").
fn format(file: &mut File) -> Result<Format, ArchiveError> {
    let mut head = Vec::new();
    file.rewind().and_then(|()| file.by_ref().take(512).read_to_end(&mut head)).map_err(ArchiveError::Write)?;
    file.rewind().map_err(ArchiveError::Write)?;
    match head.as_slice() {
        [] => Err(ArchiveError::Empty),
        // First: the name of a tar's first file, which stands at its beginning, may look like another signature.
        head if is_tar_header(head) => Ok(Format::Tar),
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Ok(Format::Zip),
        [0x1f, 0x8b, ..] => Ok(Format::TarGz),
        _ => Err(ArchiveError::Unknown),
    }
}

fn is_tar_header(head: &[u8]) -> bool {
    let Ok(block) = <&[u8; 512]>::try_from(head) else { return false };
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    let stored: String = block[148..156].iter().map(|&byte| char::from(byte)).filter(|c| c.is_digit(8)).collect();
    u32::from_str_radix(&stored, 8) == Ok(sum)
}

/// The manifests that an archive may have, of which one counts.
#[derive(Default)]
struct Manifests {
    top: Option<Vec<u8>>,
    /// The first folder at the top: the only one whose manifest may count.
    folder: Option<String>,
    in_folder: Option<Vec<u8>>,
}

impl Manifests {
    /// Where the content of a file at this path is kept, if it is.
    fn place(&mut self, path: &str) -> Option<&mut Vec<u8>> {
        if path == manifest::FILE {
            return Some(self.top.get_or_insert_default());
        }
        let (top, rest) = path.split_once('/')?;
        if self.folder.is_none() && !listing::is_by_the_way(top) {
            self.folder = Some(top.to_owned());
        }
        let counts = rest == manifest::FILE && self.folder.as_deref() == Some(top);
        counts.then(|| self.in_folder.get_or_insert_default())
    }

    fn text(self, listing: &Listing) -> Result<Option<String>, ArchiveError> {
        let in_folder = self.in_folder.filter(|_| listing.only_folder() == self.folder.as_deref());
        let text = self.top.or(in_folder).map(String::from_utf8).transpose();
        text.map_err(|_| ArchiveError::Damaged("faena.toml is no UTF-8".to_owned()))
    }
}

/// Reads a whole archive and judges every entry; nothing is written.
///
/// # Errors
/// [`ArchiveError`] names the first thing that is wrong.
pub fn check(file: &mut File, bounds: &Bounds) -> Result<Checked, ArchiveError> {
    let format = format(file)?;
    let packed = file.metadata().map_err(ArchiveError::Write)?.len();
    let mut judge = Judge::new(*bounds, packed);
    let mut manifests = Manifests::default();
    entries::for_each(file, format, bounds, |entry, content| {
        let path = judge.entry(&entry)?;
        let mut kept = manifests.place(&path).filter(|_| entry.kind == entries::Kind::File);
        judge.content(&entry, content, |chunk| {
            if let Some(kept) = kept.as_mut().filter(|kept| kept.len() < manifest::MAX_BYTES) {
                kept.extend_from_slice(chunk);
            }
            Ok(())
        })
    })?;
    let (bytes, listing) = judge.finish()?;
    let manifest = manifests.text(&listing)?;
    Ok(Checked { format, bytes, listing, manifest })
}

/// The content of one file of an archive that was checked, cut at `most` bytes; none where there is no such file.
///
/// # Errors
/// [`ArchiveError`], as [`check`].
pub fn content(file: &mut File, bounds: &Bounds, path: &str, most: usize) -> Result<Option<Vec<u8>>, ArchiveError> {
    let format = format(file)?;
    let mut found = None;
    entries::for_each(file, format, bounds, |entry, content| {
        if entry.kind == entries::Kind::File && judge::path(&entry, bounds.origin)? == path {
            let mut kept = Vec::new();
            content.take(most as u64).read_to_end(&mut kept).map_err(ArchiveError::damaged)?;
            found = Some(kept);
        }
        Ok(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests;
