//! Code, unpacked once per node and never written to again.
//!
//! What has not been used for longest goes first when all of it together is larger than the operator allows; code that
//! an instance holds stays.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use faena_blob::archive::{ArchiveError, Bounds, Disk, unpack};
use faena_blob::{BlobError, BlobStore};
use faena_domain::limits::INODE;
use faena_domain::program::Tree as CodeTree;
use faena_domain::units::ByteSize;
use faena_domain::{BlobKey, FunctionId, Namespace};
use faena_protocol::records::Code;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use tokio::sync::OnceCell;
use tracing::{info, warn};

use crate::names;

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
    /// Functions that have used it since this process began, and are not deleted.
    users: HashSet<FunctionId>,
    /// Every function that used it was deleted.
    is_forgotten: bool,
}

impl Known {
    fn new(tree: Tree) -> Self {
        Self { tree: Arc::new(tree), used: Instant::now(), users: HashSet::new(), is_forgotten: false }
    }
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

    /// Whether anything stands at a path below the folder. The code is a stranger's: no link of it is followed, so what
    /// lies behind one counts as there.
    pub fn may_have(&self, path: &str) -> bool {
        !matches!(self.look(path), Err(Errno::NOENT | Errno::NOTDIR))
    }

    fn look(&self, path: &str) -> Result<OwnedFd, Errno> {
        let top = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = openat2(CWD, &self.path, top, Mode::empty(), ResolveFlags::empty())?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat2(&top, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
    }
}

impl CodeTree for CodeLease {
    fn has_file(&self, path: &str) -> bool {
        let kind = self.look(path).and_then(fstat).map(|stat| FileType::from_raw_mode(stat.st_mode));
        matches!(kind, Ok(FileType::RegularFile | FileType::Symlink))
    }

    fn top_files(&self) -> Vec<String> {
        const MOST: usize = 10;
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()));
        let mut names: Vec<String> = files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names.truncate(MOST);
        names
    }
}

/// The unpacked code of one node.
#[derive(Clone, Debug)]
pub struct CodeStore {
    folder: PathBuf,
    blobs: BlobStore,
    /// How much may be kept.
    most: ByteSize,
    /// What must stay free on the disk.
    reserve: ByteSize,
    known: Arc<Mutex<HashMap<BlobKey, Known>>>,
    /// Held while space is made.
    sweeping: Arc<Mutex<()>>,
}

impl CodeStore {
    /// Keeps code below a folder, `most` bytes of it, and leaves `reserve` bytes of the disk free; what an interrupted
    /// unpacking left there is removed.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn open(folder: PathBuf, blobs: BlobStore, most: ByteSize, reserve: ByteSize) -> std::io::Result<Self> {
        forget_other_boots(&folder)?;
        std::fs::create_dir_all(&folder)?;
        let mut known = HashMap::new();
        for entry in std::fs::read_dir(&folder)?.flatten() {
            match entry.file_name().to_string_lossy().parse::<BlobKey>() {
                Ok(key) => {
                    let tree = Tree { place: OnceCell::new_with(Some(entry.path())), bytes: OnceCell::new() };
                    known.insert(key, Known::new(tree));
                }
                Err(_) => std::fs::remove_dir_all(entry.path())?,
            }
        }
        Ok(Self { folder, blobs, most, reserve, known: Arc::new(Mutex::new(known)), sweeping: Arc::default() })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<BlobKey, Known>> {
        self.known.lock()
    }

    /// The folder with the code of a version; requests that come meanwhile wait for the same unpacking.
    ///
    /// # Errors
    /// [`CodeError`]; the next request tries again.
    pub async fn get(&self, code: &Code) -> Result<CodeLease, CodeError> {
        let key = &code.archive;
        let tree = {
            let mut known = self.known();
            let found = known.entry(*key).or_insert_with(|| Known::new(Tree::default()));
            found.used = Instant::now();
            found.is_forgotten = false;
            found.users.insert(code.function_id());
            Arc::clone(&found.tree)
        };
        let was_there = tree.place.initialized();
        let path = tree.place.get_or_try_init(|| self.prepare(&code.namespace, key)).await?.clone();
        if !was_there {
            let store = self.clone();
            tokio::task::spawn_blocking(move || store.make_room());
        }
        let path = if code.root.is_empty() { path } else { path.join(&code.root) };
        Ok(CodeLease { path, _tree: tree })
    }

    /// Whether the disk has less left than must stay free, so that no more code can come.
    pub fn is_disk_low(&self) -> bool {
        let free = rustix::fs::statvfs(&self.folder).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        free.is_ok_and(|free| free < self.reserve.0)
    }

    /// A function was deleted: code that no other function has used goes as soon as no instance holds it.
    pub fn forget(&self, function: &FunctionId) {
        for known in self.known().values_mut() {
            if known.users.remove(function) && known.users.is_empty() {
                known.is_forgotten = true;
            }
        }
    }

    /// Has code of deleted functions removed that no instance holds any more; needs a runtime.
    pub fn sweep(&self) {
        let forgotten: Vec<BlobKey> =
            self.known().iter().filter(|(_, known)| known.is_forgotten).map(|(key, _)| *key).collect();
        if !forgotten.is_empty() {
            let store = self.clone();
            tokio::task::spawn_blocking(move || forgotten.iter().filter(|key| store.remove(key)).count());
        }
    }

    fn remove(&self, key: &BlobKey) -> bool {
        let Some(passing) = self.take_away(key) else { return false };
        if let Err(error) = std::fs::remove_dir_all(&passing) {
            warn!(%error, folder = %passing.display(), "unpacked code could not be removed; it goes at the next start");
        }
        true
    }

    /// Removes what has not been used for longest until the rest is no larger than it may be.
    fn make_room(&self) {
        let _alone = self.sweeping.lock();
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
            if self.remove(&key) {
                info!(code = %key, bytes, "removed unpacked code that had not been used for longest");
                total -= bytes;
            }
        }
    }

    /// Forgets code that nobody uses; where its folder went to be removed.
    fn take_away(&self, key: &BlobKey) -> Option<PathBuf> {
        let mut known = self.known();
        // The one reference that is left is this map's: nobody can take another before the lock is free.
        let place = known.get(key).filter(|found| Arc::strong_count(&found.tree) == 1)?.tree.place.get()?.clone();
        let passing = self.folder.join(format!("{key}.{}", names::unique('r')));
        std::fs::rename(place, &passing).ok()?;
        known.remove(key);
        Some(passing)
    }

    async fn prepare(&self, namespace: &Namespace, key: &BlobKey) -> Result<PathBuf, CodeError> {
        let place = self.folder.join(key.to_string());
        let file = self.blobs.of(namespace).open(key).await?;
        // A try that was given up may still be writing under its own name.
        let passing = self.folder.join(format!("{key}.{}", names::unique('u')));
        let reserve = self.reserve;
        tokio::task::spawn_blocking(move || {
            let unpacked = unpack_into(file, &passing, reserve).and_then(|()| publish(&passing, &place));
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
        // A count at the same time finds the same.
        let _ = self.bytes.set(bytes);
        bytes
    }
}

/// What a folder takes on the disk, with a block for everything in it; what cannot be read counts nothing more.
fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => INODE + std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
        Err(_) => INODE,
    };
    INODE + entries.map(size).sum::<u64>()
}

/// Puts a whole tree into its place; one that is there already is as good.
fn publish(passing: &Path, place: &Path) -> Result<(), CodeError> {
    match std::fs::rename(passing, place) {
        Err(_) if place.is_dir() => Ok(()),
        renamed => Ok(renamed?),
    }
}

fn unpack_into(mut file: std::fs::File, folder: &Path, reserve: ByteSize) -> Result<(), CodeError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => std::fs::create_dir(folder)?,
    }
    let owner = rustix::process::geteuid().is_root().then_some(OWNER);
    // A source was judged when it was uploaded; an artifact's rules let through what both may hold.
    Ok(unpack(&mut file, folder, &Bounds::ARTIFACT, Disk { owner, reserve: reserve.0 })?)
}

#[cfg(test)]
mod tests {
    use faena_domain::DigestKind;
    use faena_test_support::zip;

    use super::*;

    fn code(function: &str, archive: BlobKey) -> Code {
        Code {
            namespace: faena_domain::Namespace::default(),
            function: function.parse().unwrap(),
            version: faena_domain::Version(1),
            engine: None,
            image: "fake".into(),
            image_id: None,
            image_content: None,
            path: "/ws".into(),
            run: "run".into(),
            archive,
            root: String::new(),
            env: std::collections::BTreeMap::new(),
            config: None,
            limits: faena_domain::Limits::DEFAULT,
            network: faena_domain::Network::None,
            networks: Vec::new(),
            calls: Vec::new(),
            scopes: Vec::new(),
            concurrency: None,
            serving: faena_domain::Serving::default(),
            nodes: Vec::new(),
            share: faena_domain::NamespaceShare::default(),
            since: 1,
        }
    }

    async fn store_with(most: u64, reserve: u64) -> (CodeStore, [Code; 2], tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let blobs = BlobStore::local(&folder.path().join("blobs")).unwrap();
        let of_default = blobs.of(&Namespace::default());
        let mut codes = Vec::new();
        for name in ["a", "b"] {
            let archive = zip(&[(name, &[7; 8192]), ("sub/c", b"c")]);
            codes.push(code(name, of_default.put_bytes(DigestKind::Sha256, archive.into()).await.unwrap()));
        }
        let store = CodeStore::open(folder.path().join("code"), blobs, ByteSize(most), ByteSize(reserve)).unwrap();
        (store, [codes[0].clone(), codes[1].clone()], folder)
    }

    async fn store(most: u64) -> (CodeStore, [Code; 2], tempfile::TempDir) {
        store_with(most, 0).await
    }

    #[tokio::test]
    async fn code_of_a_deleted_function_goes_when_nothing_holds_it() {
        let (store, [a, b], _folder) = store(1 << 30).await;
        let lease = store.get(&a).await.unwrap();
        let other =
            store.get(&Code { function: "other".parse().unwrap(), ..b.clone() }).await.unwrap().path().to_owned();
        drop(store.get(&b).await.unwrap());
        for code in [&a, &b] {
            store.forget(&code.function_id());
        }
        let path = lease.path().to_owned();
        store.sweep();
        assert!(path.exists(), "an instance holds it");
        drop(lease);
        // A sweep that is under way has removed it when the next one's turn has come.
        while path.exists() {
            store.sweep();
            tokio::task::yield_now().await;
        }
        assert!(other.exists(), "another function uses it");
    }

    #[tokio::test]
    async fn a_short_disk_takes_no_code() {
        let (store, [a, _], _folder) = store_with(1 << 30, u64::MAX / 2).await;
        assert!(store.is_disk_low());
        let error = store.get(&a).await.unwrap_err();
        assert!(
            matches!(error, CodeError::Archive(ArchiveError::Write(ref why)) if why.kind() == std::io::ErrorKind::StorageFull)
        );
    }

    #[tokio::test]
    async fn no_link_of_the_code_is_followed_on_the_host() {
        let (store, [a, _], folder) = store(1 << 30).await;
        let lease = store.get(&Code { root: "sub/".into(), ..a.clone() }).await.unwrap();
        assert!(lease.has_file("c") && !lease.has_file("a"));
        let lease = store.get(&a).await.unwrap();
        std::fs::write(folder.path().join("outside"), "x").unwrap();
        std::os::unix::fs::symlink(folder.path(), lease.path().join("out")).unwrap();
        assert!(lease.has_file("sub/c") && lease.has_file("out") && !lease.has_file("sub"));
        assert!(!lease.has_file("out/outside") && lease.may_have("out/outside"));
        assert!(!lease.has_file("../a") && !lease.may_have("nothing/python3"));
    }

    #[tokio::test]
    async fn code_that_was_used_longest_ago_goes_first() {
        let (store, [a, b], _folder) = store(30_000).await;
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
