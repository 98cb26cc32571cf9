//! Code, unpacked once per node and never written to again.
//!
//! What has not been used for longest goes first when all of it together is larger than the operator allows; code that
//! an instance holds stays.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use faena_blob::archive::{ArchiveError, Bounds, unpack};
use faena_blob::{BlobError, BlobStore};
use faena_domain::BlobKey;
use faena_domain::units::ByteSize;
use tokio::sync::OnceCell;
use tracing::{info, warn};

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

/// One unpacked archive: its folder once it is there, and how many bytes lie in it once they are counted.
#[derive(Debug, Default)]
struct Tree {
    place: OnceCell<PathBuf>,
    bytes: OnceCell<u64>,
}

#[derive(Debug)]
struct Known {
    tree: Arc<Tree>,
    used: Instant,
}

/// Unpacked code that somebody uses; it is not removed before this is dropped.
#[derive(Clone, Debug)]
pub struct CodeLease {
    path: PathBuf,
    _tree: Arc<Tree>,
}

impl CodeLease {
    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The unpacked code of one node.
#[derive(Clone, Debug)]
pub struct CodeStore {
    folder: PathBuf,
    blobs: BlobStore,
    /// How much may be kept.
    most: ByteSize,
    known: Arc<Mutex<HashMap<BlobKey, Known>>>,
    /// Held by whoever makes room.
    sweeping: Arc<Mutex<()>>,
}

impl CodeStore {
    /// Keeps code below a folder, `most` bytes of it; what an interrupted unpacking left there is removed.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn open(folder: PathBuf, blobs: BlobStore, most: ByteSize) -> std::io::Result<Self> {
        forget_other_boots(&folder)?;
        std::fs::create_dir_all(&folder)?;
        let mut known = HashMap::new();
        for entry in std::fs::read_dir(&folder)?.flatten() {
            match entry.file_name().to_string_lossy().parse::<BlobKey>() {
                Ok(key) => {
                    let tree = Tree { place: OnceCell::new_with(Some(entry.path())), bytes: OnceCell::new() };
                    known.insert(key, Known { tree: Arc::new(tree), used: Instant::now() });
                }
                Err(_) => std::fs::remove_dir_all(entry.path())?,
            }
        }
        Ok(Self { folder, blobs, most, known: Arc::new(Mutex::new(known)), sweeping: Arc::default() })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<BlobKey, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder with the code of a blob; whoever asks meanwhile waits for the same unpacking.
    ///
    /// # Errors
    /// [`CodeError`]; the next one who asks tries again.
    pub async fn get(&self, key: &BlobKey) -> Result<CodeLease, CodeError> {
        let tree = {
            let mut known = self.known();
            let found = known.entry(*key).or_insert_with(|| Known { tree: Arc::default(), used: Instant::now() });
            found.used = Instant::now();
            Arc::clone(&found.tree)
        };
        let was_there = tree.place.initialized();
        let path = tree.place.get_or_try_init(|| self.prepare(key)).await?.clone();
        if !was_there {
            let store = self.clone();
            tokio::task::spawn_blocking(move || store.make_room());
        }
        Ok(CodeLease { path, _tree: tree })
    }

    /// Removes what has not been used for longest until the rest is no larger than it may be.
    fn make_room(&self) {
        let _alone = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let mut trees: Vec<(BlobKey, Instant, Arc<Tree>)> =
            self.known().iter().map(|(key, known)| (*key, known.used, Arc::clone(&known.tree))).collect();
        trees.sort_by_key(|(_, used, _)| *used);
        let sizes: Vec<(BlobKey, u64)> = trees.iter().map(|(key, _, tree)| (*key, tree.bytes())).collect();
        drop(trees);
        let mut total: u64 = sizes.iter().map(|(_, bytes)| bytes).sum();
        for (key, bytes) in sizes {
            if total <= self.most.0 {
                return;
            }
            if let Some(passing) = self.take_away(&key) {
                info!(code = %key, bytes, "removing unpacked code that has not been used for longest");
                if let Err(error) = std::fs::remove_dir_all(&passing) {
                    warn!(%error, folder = %passing.display(), "unpacked code could not be removed; it goes at the next start");
                }
                total -= bytes;
            }
        }
    }

    /// Forgets code that nobody uses; where its folder went to be removed.
    fn take_away(&self, key: &BlobKey) -> Option<PathBuf> {
        let mut known = self.known();
        // The one reference that is left is this map's: nobody can take another before the lock is free.
        let place = known.get(key).filter(|found| Arc::strong_count(&found.tree) == 1)?.tree.place.get()?.clone();
        let passing = self.folder.join(format!("{key}.{}", instance::name('r')));
        std::fs::rename(place, &passing).ok()?;
        known.remove(key);
        Some(passing)
    }

    async fn prepare(&self, key: &BlobKey) -> Result<PathBuf, CodeError> {
        let place = self.folder.join(key.to_string());
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

/// Unpacking is not synced: after a power cut a tree may lack what was written last, so none outlives its boot.
fn forget_other_boots(folder: &Path) -> std::io::Result<()> {
    let (boot, marker) = (std::fs::read("/proc/sys/kernel/random/boot_id")?, folder.with_extension("boot"));
    if std::fs::read(&marker).is_ok_and(|kept| kept == boot) {
        return Ok(());
    }
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::create_dir_all(folder)?;
    std::fs::write(marker, boot)
}

impl Tree {
    fn bytes(&self) -> u64 {
        if let Some(bytes) = self.bytes.get() {
            return *bytes;
        }
        let Some(place) = self.place.get() else { return 0 };
        let bytes = bytes_below(place);
        // Whoever counted at the same time found the same.
        let _ = self.bytes.set(bytes);
        bytes
    }
}

/// What the files below a folder take on the disk; what cannot be read counts nothing.
fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
        Err(_) => 0,
    };
    entries.map(size).sum()
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

#[cfg(test)]
mod tests {
    use faena_domain::DigestKind;
    use faena_test_support::zip;

    use super::*;

    async fn store(most: u64) -> (CodeStore, [BlobKey; 2], tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let blobs = BlobStore::local(&folder.path().join("blobs")).unwrap();
        let mut keys = Vec::new();
        for name in ["a", "b"] {
            keys.push(blobs.put_bytes(DigestKind::Sha256, zip(&[(name, &[7; 8192])]).into()).await.unwrap());
        }
        let code = CodeStore::open(folder.path().join("code"), blobs, ByteSize(most)).unwrap();
        (code, [keys[0], keys[1]], folder)
    }

    #[tokio::test]
    async fn code_that_was_used_longest_ago_goes_first() {
        let (store, [a, b], _folder) = store(10_000).await;
        let first = store.get(&a).await.unwrap().path().to_owned();
        let second = store.get(&b).await.unwrap();
        store.make_room();
        assert!(!first.exists());
        assert!(second.path().join("b").exists());
        assert!(store.get(&a).await.unwrap().path().join("a").exists());
    }

    #[tokio::test]
    async fn code_that_is_used_stays() {
        let (store, [a, b], _folder) = store(1).await;
        let leases = [store.get(&a).await.unwrap(), store.get(&b).await.unwrap()];
        store.make_room();
        assert!(leases.iter().all(|lease| lease.path().is_dir()));
    }
}
