//! Code, unpacked once per node and never written to again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use faena_blob::archive::{ArchiveError, Bounds, unpack};
use faena_blob::{BlobError, BlobStore};
use faena_domain::BlobKey;
use tokio::sync::OnceCell;

use crate::instance;

/// Who owns code on disk, where we are root: the user that instances map to themselves.
const OWNER: u32 = 1000;

/// Why code is not there.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// Its blob cannot be read.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// It cannot be unpacked.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Its folder cannot be made.
    #[error("the folder of unpacked code failed")]
    Folder(#[from] std::io::Error),
}

type Cell = Arc<OnceCell<PathBuf>>;

/// The unpacked code of one node.
#[derive(Debug)]
pub struct CodeStore {
    folder: PathBuf,
    blobs: BlobStore,
    known: Mutex<HashMap<BlobKey, Cell>>,
}

impl CodeStore {
    /// Keeps code below a folder; what an interrupted unpacking left there is removed.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn open(folder: PathBuf, blobs: BlobStore) -> std::io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        for entry in std::fs::read_dir(&folder)?.flatten() {
            if entry.file_name().to_string_lossy().contains('.') {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self { folder, blobs, known: Mutex::default() })
    }

    /// The folder with the code of a blob; whoever asks meanwhile waits for the same unpacking.
    ///
    /// # Errors
    /// [`CodeError`]; the next one who asks tries again.
    pub async fn get(&self, key: &BlobKey) -> Result<PathBuf, CodeError> {
        let cell = Arc::clone(self.known.lock().unwrap_or_else(PoisonError::into_inner).entry(*key).or_default());
        cell.get_or_try_init(|| self.prepare(key)).await.cloned()
    }

    async fn prepare(&self, key: &BlobKey) -> Result<PathBuf, CodeError> {
        let place = self.folder.join(key.to_string());
        if place.is_dir() {
            return Ok(place);
        }
        let file = self.blobs.open(key).await?;
        // A try that was given up may still be writing under its own name.
        let passing = self.folder.join(format!("{key}.{}", instance::name('u')));
        tokio::task::spawn_blocking(move || {
            let unpacked = unpack_into(file, &passing).and_then(|()| publish(&passing, &place));
            if passing.exists() {
                // The reason is told; a folder that stays is removed at the next start.
                let _ = std::fs::remove_dir_all(&passing);
            }
            unpacked.map(|()| place)
        })
        .await
        .map_err(std::io::Error::other)?
    }
}

/// Puts a whole tree into its place; one that is there already is as good.
fn publish(passing: &Path, place: &Path) -> Result<(), CodeError> {
    match std::fs::rename(passing, place) {
        Err(_) if place.is_dir() => Ok(()),
        renamed => Ok(renamed?),
    }
}

fn unpack_into(mut file: std::fs::File, folder: &Path) -> Result<(), CodeError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => std::fs::create_dir(folder)?,
    }
    let owner = rustix::process::geteuid().is_root().then_some(OWNER);
    // A source was judged when it was uploaded; an artifact's rules let through what both may hold.
    Ok(unpack(&mut file, folder, &Bounds::ARTIFACT, owner)?)
}
