//! Archives: told by their bytes, checked before anything is written, unpacked without leaving their folder.
//!
//! [`check`] reads a whole archive and judges every entry; [`unpack`] judges again while it writes, because the two
//! need not have seen the same bytes. Both go through the same `entries` and the same `Judge`.

mod entries;
mod judge;
mod unpack;

use std::fs::File;
use std::io::{Read, Seek};

use faena_domain::limits::{MAX_ENTRIES, MAX_RATIO, MAX_UNPACKED};
use faena_domain::manifest;

pub use unpack::unpack;

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
    /// The text of the `faena.toml` at its top, where there is one.
    pub manifest: Option<String>,
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

/// Reads a whole archive and judges every entry; nothing is written.
///
/// # Errors
/// [`ArchiveError`] names the first thing that is wrong.
pub fn check(file: &mut File, bounds: &Bounds) -> Result<Checked, ArchiveError> {
    let format = format(file)?;
    let packed = file.metadata().map_err(ArchiveError::Write)?.len();
    let mut judge = Judge::new(*bounds, packed);
    let mut text = None;
    entries::for_each(file, format, bounds, |entry, content| {
        judge.entry(&entry)?;
        let is_manifest = entry.kind == entries::Kind::File && entry.name == manifest::FILE.as_bytes();
        let mut kept = Vec::new();
        judge.content(&entry, content, |chunk| {
            if is_manifest && kept.len() < manifest::MAX_BYTES {
                kept.extend_from_slice(chunk);
            }
            Ok(())
        })?;
        if is_manifest {
            text =
                Some(String::from_utf8(kept).map_err(|_| ArchiveError::Damaged("faena.toml is no UTF-8".to_owned()))?);
        }
        Ok(())
    })?;
    Ok(Checked { format, bytes: judge.finish()?, manifest: text })
}

#[cfg(test)]
mod tests;
