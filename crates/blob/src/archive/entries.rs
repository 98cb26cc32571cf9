//! The entries of any archive, one after the other.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use flate2::read::MultiGzDecoder;
use tar::EntryType;
use zip::ZipArchive;

use super::{ArchiveError, Bounds, Format};

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    /// A symbolic link, and where it points.
    Link(Vec<u8>),
    /// Anything else, named for the error.
    Other(&'static str),
}

/// One entry, as it says of itself.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) size: u64,
    pub(super) executable: bool,
}

/// The end of central directory record and its comment: 22 bytes and at most 65,535 (APPNOTE 4.3.16).
const END_RECORD: u64 = 22 + 65_535;

/// Shows every entry and its content.
pub(super) fn for_each(
    file: &mut File,
    format: Format,
    bounds: &Bounds,
    mut see: impl FnMut(Entry, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    file.rewind().map_err(ArchiveError::Write)?;
    match format {
        Format::Zip => zip(file, bounds, &mut see),
        Format::Tar => tar(&mut BufReader::with_capacity(64 * 1024, file), &mut see),
        Format::TarGz => {
            let mut unpacked = MultiGzDecoder::new(BufReader::with_capacity(64 * 1024, file));
            tar(&mut unpacked, &mut see)?;
            // The checksum stands behind the last byte; more than a tar's padding there is no tar's.
            let mut rest = Vec::new();
            unpacked.take(1024 * 1024 + 1).read_to_end(&mut rest).map_err(ArchiveError::damaged)?;
            if rest.iter().all(|&byte| byte == 0) && rest.len() <= 1024 * 1024 {
                Ok(())
            } else {
                Err(ArchiveError::Damaged("something follows the end of the tar".to_owned()))
            }
        }
    }
}

/// How many entries a zip says it has, before its directory is read into memory.
fn declared_entries(file: &mut File) -> Result<u64, ArchiveError> {
    let length = file.seek(SeekFrom::End(0)).map_err(ArchiveError::Write)?;
    let from = length.saturating_sub(END_RECORD);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(from)).and_then(|_| file.read_to_end(&mut tail)).map_err(ArchiveError::Write)?;
    let at = tail.windows(4).rposition(|bytes| bytes == b"PK\x05\x06");
    let record = at
        .and_then(|at| tail.get(at + 10..at + 12))
        .ok_or_else(|| ArchiveError::damaged("its directory is missing"))?;
    Ok(u64::from(u16::from_le_bytes([record[0], record[1]])))
}

fn zip(
    file: &mut File,
    bounds: &Bounds,
    see: &mut impl FnMut(Entry, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let declared = declared_entries(file)?;
    // 65,535 stands for a larger number elsewhere, which is over every bound of ours too.
    if declared > bounds.entries {
        return Err(ArchiveError::TooLarge(format!("has more than {} entries", bounds.entries)));
    }
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(ArchiveError::damaged)?;
    if archive.len() as u64 != declared {
        return Err(ArchiveError::damaged("names are repeated in its directory"));
    }
    if archive.has_overlapping_entries().map_err(ArchiveError::damaged)? {
        return Err(ArchiveError::damaged("entries overlap"));
    }
    for index in 0..archive.len() {
        let mut file = archive.by_index(index).map_err(ArchiveError::damaged)?;
        let mode = file.unix_mode().unwrap_or(0o100_644);
        let name = file.name_raw().to_vec();
        let kind = match mode & 0o170_000 {
            0o120_000 => {
                let mut target = Vec::new();
                file.by_ref().take(4096).read_to_end(&mut target).map_err(ArchiveError::damaged)?;
                Kind::Link(target)
            }
            _ if file.is_dir() || name.ends_with(b"/") => Kind::Folder,
            0 | 0o100_000 => Kind::File,
            _ => Kind::Other("is neither a file nor a folder nor a link"),
        };
        let entry = Entry { name, kind, size: file.size(), executable: mode & 0o111 != 0 };
        see(entry, &mut file)?;
    }
    Ok(())
}

fn tar(
    reader: &mut dyn Read,
    see: &mut impl FnMut(Entry, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().map_err(ArchiveError::damaged)? {
        let mut entry = entry.map_err(ArchiveError::damaged)?;
        let kind = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Folder,
            EntryType::Symlink => Kind::Link(entry.link_name_bytes().unwrap_or_default().into_owned()),
            // git archive writes its commit there.
            EntryType::XGlobalHeader => continue,
            EntryType::Link => Kind::Other("is a hard link; pack the file itself"),
            EntryType::GNUSparse => Kind::Other("is a sparse file; pack it whole"),
            EntryType::Char | EntryType::Block => Kind::Other("is a device"),
            EntryType::Fifo => Kind::Other("is a pipe"),
            _ => Kind::Other("is of an unknown kind"),
        };
        let mode = entry.header().mode().unwrap_or(0o644);
        let seen =
            Entry { name: entry.path_bytes().into_owned(), kind, size: entry.size(), executable: mode & 0o111 != 0 };
        see(seen, &mut entry)?;
    }
    Ok(())
}
