//! Files that pass: written once, hashed while they are, and gone when they are dropped.

use std::fs::File;
use std::io::{Read, Seek, Write};

use faena_domain::{BlobKey, DigestKind};
use sha2::{Digest, Sha256};

use crate::error::BlobError;

/// How much of a file is held in memory while it is copied.
pub(crate) const CHUNK: usize = 512 * 1024;

/// The digest of a file's bytes; the file is then at its beginning.
///
/// # Errors
/// A file that cannot be read.
pub fn key_of(file: File) -> std::io::Result<(File, BlobKey)> {
    hashed(file, Sha256::new())
}

pub(crate) fn hashed(mut file: File, mut hash: Sha256) -> std::io::Result<(File, BlobKey)> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            break;
        }
        hash.update(&chunk[..read]);
    }
    file.rewind()?;
    Ok((file, BlobKey::new(DigestKind::Sha256, hash.finalize().into())))
}

/// A passing file that is being written.
#[derive(Debug)]
pub struct Spool {
    pub(crate) file: File,
    pub(crate) hash: Sha256,
    pub(crate) bytes: u64,
}

/// For what writes by itself; the error of a full disk keeps its kind.
impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match Spool::write(self, bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(BlobError::Spool(error)) => Err(error),
            Err(error) => Err(std::io::Error::other(error)),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A passing file that is whole; it vanishes when dropped.
#[derive(Debug)]
pub struct Spooled {
    /// The file; its position is anywhere.
    pub file: File,
    /// The name its bytes will have.
    pub key: BlobKey,
    /// How many they are.
    pub bytes: u64,
}

impl Spool {
    /// Appends bytes; small enough pieces that the runtime's thread may wait for the page cache.
    ///
    /// # Errors
    /// A disk that is full or fails.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(self.file.write_all(bytes)?)
    }

    /// How many bytes were written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Ends the writing.
    ///
    /// # Errors
    /// A file that cannot be rewound.
    pub fn finish(mut self) -> Result<Spooled, BlobError> {
        self.file.rewind()?;
        Ok(Spooled {
            file: self.file,
            key: BlobKey::new(DigestKind::Sha256, self.hash.finalize().into()),
            bytes: self.bytes,
        })
    }
}
