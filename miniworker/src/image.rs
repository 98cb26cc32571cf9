//! Root file systems for the sandbox, taken in from an archive.

use std::fs::File;
use std::path::{Path, PathBuf};

use faena_blob::archive::{ArchiveError, Bounds, Disk, unpack};
use faena_blob::key_of;
use faena_domain::ImageName;
use faena_engine::{ImageId, Images, ImportError};

/// Why an image could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The archive cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Where.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The archive was refused.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The folder of images failed.
    #[error(transparent)]
    Folder(#[from] ImportError),
}

/// Imports the root file system in a tar, tar.gz or zip under a name, for the worker with this folder.
///
/// It is unpacked as artifacts are: never followed out of its place, modes 0755 and 0644, no devices, no set-user-id.
///
/// # Errors
/// [`ImageError`]; the name then stands for what it did.
pub fn import_image(worker: &Path, name: &ImageName, archive: &Path) -> Result<ImageId, ImageError> {
    let read = |source| ImageError::Read { path: archive.to_owned(), source };
    let (mut file, key) = File::open(archive).and_then(key_of).map_err(read)?;
    Images::at(worker).import(&name.to_string(), &key.to_string(), |folder| {
        Ok(unpack(&mut file, folder, &Bounds::IMAGE, Disk::default())?)
    })
}
