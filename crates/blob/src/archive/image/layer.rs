//! The bytes of one layer, and the passing files that unpacked ones lie in.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use rustix::fs::fstatvfs;
use sha2::{Digest, Sha256};

use super::super::entries::{Bounded, FRAME};
use super::super::unpack::LOOK_BYTES;
use super::super::{ArchiveError, Bounds};

/// The first bytes of gzip (RFC 1952, 2.3.1) and of Zstandard (RFC 8878, 3.1.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How much of a layer is held in memory.
const CHUNK: usize = 256 * 1024;

/// A part of a file, read from its beginning by everybody who clones it.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Layer {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Layer {
    /// A whole file.
    pub(super) fn whole(file: File) -> Result<Self, ArchiveError> {
        let end = file.metadata().map_err(ArchiveError::Write)?.len();
        Ok(Self { file: Arc::new(file), at: 0, end })
    }

    /// So many bytes of it, from a position on.
    pub(super) fn part(&self, position: u64, bytes: u64) -> Self {
        let at = self.at.saturating_add(position).min(self.end);
        Self { file: Arc::clone(&self.file), at, end: at.saturating_add(bytes).min(self.end) }
    }

    /// How many bytes it has.
    pub(super) fn length(&self) -> u64 {
        self.end - self.at
    }

    /// All of it, where it is short.
    pub(super) fn text(&self, most: u64) -> Result<Vec<u8>, ArchiveError> {
        if self.length() > most {
            return Err(ArchiveError::Damaged("one of its documents is too long".to_owned()));
        }
        let mut bytes = Vec::new();
        self.clone().read_to_end(&mut bytes).map_err(ArchiveError::damaged)?;
        Ok(bytes)
    }

    /// Its entries, read through a buffer.
    pub(super) fn buffered(&self) -> BufReader<Self> {
        BufReader::with_capacity(CHUNK, self.clone())
    }

    /// Whether its bytes have this digest, which reads `sha256:` and 64 digits.
    pub(super) fn verify(&self, digest: &str) -> Result<(), ArchiveError> {
        let (mut hash, mut content, mut chunk) = (Sha256::new(), self.clone(), vec![0; CHUNK]);
        loop {
            match content.read(&mut chunk).map_err(ArchiveError::damaged)? {
                0 => break,
                read => hash.update(&chunk[..read]),
            }
        }
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if digest.strip_prefix("sha256:") == Some(found.as_str()) {
            return Ok(());
        }
        let digest: String = digest.chars().take(100).collect();
        Err(ArchiveError::Damaged(format!("what it names {digest} has the digest sha256:{found}")))
    }
}

/// Where layers are unpacked.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    reserve: u64,
    /// What the layers may still unpack to.
    left: u64,
    /// Layers that were unpacked and verified, by where they lie: an image may name one several times.
    known: HashMap<(u64, u64), (Layer, String)>,
}

/// A writer that ends before it touches what must stay free on its disk.
pub(super) struct Guarded<'a, W> {
    to: &'a mut W,
    disk: File,
    reserve: u64,
    since_look: u64,
}

impl<W: Write> Write for Guarded<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.since_look += written as u64;
        if self.since_look > LOOK_BYTES {
            self.since_look = 0;
            let disk = fstatvfs(&self.disk)?;
            if disk.f_bavail.saturating_mul(disk.f_frsize) < self.reserve {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

impl Scratch {
    pub(super) fn new(folder: &Path, reserve: u64, bounds: &Bounds) -> Result<Self, ArchiveError> {
        let left = bounds.bytes.saturating_add(bounds.entries.saturating_mul(FRAME));
        Ok(Self { folder: folder.to_owned(), reserve, left, known: HashMap::new() })
    }

    /// Wraps a writer so that it stops before the reserve of the disk is touched.
    pub(super) fn guarded<'a, W: Write>(&self, to: &'a mut W) -> Result<Guarded<'a, W>, ArchiveError> {
        let disk = File::open(&self.folder).map_err(ArchiveError::Write)?;
        Ok(Guarded { to, disk, reserve: self.reserve, since_look: 0 })
    }

    /// A layer as a plain tar whose bytes have a digest.
    pub(super) fn verified(&mut self, layer: Layer, digest: &str) -> Result<Layer, ArchiveError> {
        let place = (layer.at, layer.end);
        if let Some((plain, known)) = self.known.get(&place)
            && known == digest
        {
            return Ok(plain.clone());
        }
        let plain = self.plain(layer)?;
        plain.verify(digest)?;
        self.known.insert(place, (plain.clone(), digest.to_owned()));
        Ok(plain)
    }

    /// A layer as a plain tar: itself, or what it unpacks to.
    pub(super) fn plain(&mut self, layer: Layer) -> Result<Layer, ArchiveError> {
        let mut magic = Vec::new();
        layer.part(0, 4).read_to_end(&mut magic).map_err(ArchiveError::damaged)?;
        if magic == ZSTD {
            let why = "has layers that are packed with Zstandard, which is not read here; write it again with gzip, as \
                       `skopeo copy --dest-compress-format gzip` does";
            return Err(ArchiveError::NotRead(why.to_owned()));
        }
        if !magic.starts_with(&GZIP) {
            return Ok(layer);
        }
        let mut file = tempfile::tempfile_in(&self.folder).map_err(ArchiveError::Write)?;
        let mut packed = MultiGzDecoder::new(layer.buffered());
        // What the layer holds is to blame for a failed read, and the disk for a failed write.
        let mut unpacked = Bounded { inner: &mut packed, left: self.left };
        let mut guarded = self.guarded(&mut file)?;
        let mut chunk = vec![0; CHUNK];
        loop {
            match unpacked.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => guarded.write_all(&chunk[..read]).map_err(ArchiveError::Write)?,
                Err(_) if unpacked.left == 0 => return Err(too_large()),
                Err(error) => return Err(ArchiveError::damaged(error)),
            }
        }
        self.left = unpacked.left;
        Layer::whole(file)
    }
}

fn too_large() -> ArchiveError {
    ArchiveError::TooLarge(format!("unpacks to more than {} bytes", Bounds::IMAGE.bytes))
}
