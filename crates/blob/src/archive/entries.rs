//! The entries of any archive, one after the other.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use flate2::read::MultiGzDecoder;
use tar::EntryType;
use zip::result::ZipError;
use zip::{CompressionMethod, HasZipMetadata, System, ZipArchive};

use super::{ArchiveError, Bounds, Format};

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    /// A symbolic link, and where it points.
    Link(Vec<u8>),
    /// Another name of a file that came before.
    Hard(Vec<u8>),
    /// A file with holes, which are not read.
    Sparse,
    /// Anything else, named for the error.
    Other(&'static str),
}

/// One entry, as it says of itself.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) size: u64,
    /// Where its content begins in a tar that is not packed.
    pub(super) position: u64,
    pub(super) meta: Meta,
}

/// What a tar says of an entry beside its content; of a zip's, the mode alone is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meta {
    pub(super) mode: u32,
    pub(super) user: u64,
    pub(super) group: u64,
    /// In seconds of the Unix clock.
    pub(super) modified: u64,
}

impl Meta {
    pub(super) const FILE: Self = Self { mode: 0o644, user: 0, group: 0, modified: 0 };
    pub(super) const FOLDER: Self = Self { mode: 0o755, ..Self::FILE };

    fn of(header: &tar::Header) -> Self {
        Self {
            mode: header.mode().unwrap_or(Self::FILE.mode) & 0o7777,
            user: header.uid().unwrap_or_default(),
            group: header.gid().unwrap_or_default(),
            modified: header.mtime().unwrap_or_default(),
        }
    }

    pub(super) fn is_executable(self) -> bool {
        self.mode & 0o111 != 0
    }
}

/// The largest extension of a tar's header: long names are at most a few kilobytes.
const MAX_EXTENSION: u64 = 64 * 1024;
/// What a tar adds to each of its files: header, padding, and a name.
pub(super) const FRAME: u64 = 4096;

/// A stream that ends with an error beyond a bound, whatever its content says of itself.
pub(super) struct Bounded<R> {
    pub(super) inner: R,
    pub(super) left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if read as u64 > self.left {
            self.left = 0;
            return Err(std::io::Error::other("it unpacks to more than an archive may"));
        }
        self.left -= read as u64;
        Ok(read)
    }
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
            let most = bounds.bytes.saturating_add(bounds.entries.saturating_mul(FRAME));
            let packed = BufReader::with_capacity(64 * 1024, file);
            let mut unpacked = Bounded { inner: MultiGzDecoder::new(packed), left: most };
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
    let missing = || ArchiveError::damaged("its directory is missing");
    let at = at.ok_or_else(missing)?;
    let record = tail.get(at + 10..at + 20).ok_or_else(missing)?;
    // The wider record of zip64 would hide other numbers than these; no archive within our bounds needs it.
    let is_wide = record[2..].chunks(4).any(|number| number == [0xff; 4])
        || at.checked_sub(20).and_then(|locator| tail.get(locator..locator + 4)) == Some(b"PK\x06\x07");
    if is_wide {
        return Err(ArchiveError::damaged("its directory is a zip64 one, which no archive of a permitted size needs"));
    }
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
    // Each reader believes another of the two headers that an entry has.
    archive.validate_header_consistency().map_err(ArchiveError::damaged)?;
    for index in 0..archive.len() {
        is_read(&archive.by_index_raw(index).map_err(ArchiveError::damaged)?)?;
        let mut file = archive.by_index(index).map_err(ArchiveError::damaged)?;
        let mode = file.unix_mode().unwrap_or(0o100_644);
        let name = zip_name(&file).map_err(ArchiveError::damaged)?;
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
        let entry = Entry { name, kind, size: file.size(), position: 0, meta: Meta { mode, ..Meta::FILE } };
        see(entry, &mut file)?;
    }
    Ok(())
}

/// Refuses an entry whose compression or encryption is not supported, by its own name: the archive is not damaged.
fn is_read<R: Read>(file: &zip::read::ZipFile<'_, R>) -> Result<(), ArchiveError> {
    let how = match file.compression() {
        _ if file.encrypted() => "encrypted".to_owned(),
        CompressionMethod::Stored | CompressionMethod::Deflated => return Ok(()),
        other => format!("packed with the method {other}"),
    };
    let name = String::from_utf8_lossy(file.name_raw()).chars().take(100).collect();
    Err(ArchiveError::Unsupported { name, how })
}

/// An entry's name as UTF-8. A name that is not UTF-8 is in code page 437 (APPNOTE, appendix D); backslashes separate folders only where
/// the archive was made on Windows, whose older packers write them.
fn zip_name<R: Read>(file: &zip::read::ZipFile<'_, R>) -> Result<Vec<u8>, ZipError> {
    let name = file.name()?.into_owned();
    let is_windows = matches!(file.get_metadata().system, System::Dos | System::WindowsNTFS);
    Ok(if is_windows { name.replace('\\', "/") } else { name }.into_bytes())
}

/// The content of an extension, which is small.
fn extension(entry: &mut impl Read, size: u64) -> Result<Vec<u8>, ArchiveError> {
    if size > MAX_EXTENSION {
        return Err(ArchiveError::damaged("a header has an extension that is too long"));
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content).map_err(ArchiveError::damaged)?;
    Ok(content)
}

/// What extensions say of the entry that follows them.
#[derive(Default)]
struct Said {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    is_sparse: bool,
}

impl Said {
    /// GNU ends its names with a NUL.
    fn gnu(mut content: Vec<u8>) -> Option<Vec<u8>> {
        content.truncate(content.iter().position(|&byte| byte == 0).unwrap_or(content.len()));
        Some(content)
    }

    fn pax(&mut self, content: &[u8]) -> Result<(), ArchiveError> {
        for record in tar::PaxExtensions::new(content) {
            let record = record.map_err(ArchiveError::damaged)?;
            match record.key_bytes() {
                b"path" => self.name = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                b"size" => return Err(ArchiveError::damaged("an extension gives a file another size than its header")),
                key if key.starts_with(b"GNU.sparse.") => self.is_sparse = true,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Entries as they lie there. The `tar` crate would read extensions whole, whatever size they claim.
pub(super) fn tar(
    reader: &mut dyn Read,
    see: &mut impl FnMut(Entry, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut archive = tar::Archive::new(reader);
    let mut said = Said::default();
    for entry in archive.entries().map_err(ArchiveError::damaged)?.raw(true) {
        let mut entry = entry.map_err(ArchiveError::damaged)?;
        let size = entry.size();
        let kind = match entry.header().entry_type() {
            EntryType::GNULongName => {
                said.name = Said::gnu(extension(&mut entry, size)?);
                continue;
            }
            EntryType::GNULongLink => {
                said.link = Said::gnu(extension(&mut entry, size)?);
                continue;
            }
            EntryType::XHeader => {
                said.pax(&extension(&mut entry, size)?)?;
                continue;
            }
            // git archive writes its commit there.
            EntryType::XGlobalHeader => {
                extension(&mut entry, size)?;
                continue;
            }
            EntryType::Regular | EntryType::Continuous if said.is_sparse => Kind::Sparse,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Folder,
            EntryType::Symlink => {
                let short = || entry.link_name_bytes().unwrap_or_default().into_owned();
                Kind::Link(said.link.take().unwrap_or_else(short))
            }
            EntryType::Link => {
                let short = || entry.link_name_bytes().unwrap_or_default().into_owned();
                Kind::Hard(said.link.take().unwrap_or_else(short))
            }
            EntryType::GNUSparse => Kind::Sparse,
            EntryType::Char | EntryType::Block => Kind::Other("is a device"),
            EntryType::Fifo => Kind::Other("is a pipe"),
            _ => Kind::Other("is of an unknown kind"),
        };
        let (meta, position) = (Meta::of(entry.header()), entry.raw_file_position());
        let name = said.name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
        said = Said::default();
        see(Entry { name, kind, size, position, meta }, &mut entry)?;
    }
    Ok(())
}
