//! Root file systems of the platform's images on this node.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use faena_domain::BlobKey;
use parking_lot::Mutex;

use crate::host::RESOLV_CONF;
use crate::{EngineError, ImageId, LocalImage};

/// Before the digest, in an image's id.
const SCHEME: &str = "rootfs:";

/// Writes the files of an archive below an empty folder, and leaves so many bytes of its disk free.
pub type Unpack = fn(&mut File, &Path, u64) -> io::Result<()>;

/// The images of one node: a folder for each, named by its digest.
#[derive(Clone, Debug)]
pub(super) struct Images {
    folder: PathBuf,
    unpack: Unpack,
    /// What must stay free on the disk.
    reserve: u64,
    used: Arc<Mutex<HashMap<String, Weak<()>>>>,
    /// What each takes of the disk, once that was counted.
    sizes: Arc<Mutex<HashMap<BlobKey, u64>>>,
}

/// A root file system that an instance has; it is not removed before this is dropped.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    pub(super) _use: Arc<()>,
}

pub(super) fn id_of(image: &BlobKey) -> ImageId {
    ImageId(format!("{SCHEME}{}", image.digits()))
}

impl Images {
    /// The images of the worker with this folder; what an interrupted import left is removed.
    pub(super) fn open(worker: &Path, unpack: Unpack, reserve: u64) -> io::Result<Self> {
        let images =
            Self { folder: worker.join("images"), unpack, reserve, used: Arc::default(), sizes: Arc::default() };
        std::fs::create_dir_all(&images.folder)?;
        for entry in std::fs::read_dir(&images.folder)?.flatten() {
            if key_of(&entry.file_name().to_string_lossy()).is_none() {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(images)
    }

    fn place(&self, image: &BlobKey) -> PathBuf {
        self.folder.join(image.digits())
    }

    fn passing(&self) -> PathBuf {
        self.folder.join(format!("passing-{}", uuid::Uuid::new_v4().simple()))
    }

    pub(super) fn has(&self, image: &BlobKey) -> bool {
        self.place(image).is_dir()
    }

    /// Unpacks an image. It is on the disk before it has its name, so that no power cut leaves half of one.
    pub(super) fn import(&self, image: &BlobKey, mut archive: File) -> io::Result<()> {
        let passing = self.passing();
        std::fs::create_dir_all(&passing)?;
        let imported = (self.unpack)(&mut archive, &passing, self.reserve)
            .and_then(|()| name_resolver(&passing))
            .and_then(|()| Ok(rustix::fs::syncfs(File::open(&passing)?)?))
            .and_then(|()| std::fs::rename(&passing, self.place(image)));
        if passing.exists() {
            // The error is reported; what stays is removed at the next start.
            let _ = std::fs::remove_dir_all(&passing);
        }
        imported
    }

    /// What is here.
    pub(super) fn list(&self) -> Vec<LocalImage> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let found = entries.filter_map(|entry| {
            let key = key_of(&entry.file_name().to_string_lossy())?;
            let known = self.sizes.lock().get(&key).copied();
            let bytes = known.unwrap_or_else(|| bytes_below(&entry.path()));
            self.sizes.lock().insert(key, bytes);
            Some(LocalImage { key, bytes })
        });
        found.collect()
    }

    /// Removes an image that no instance has.
    pub(super) fn remove(&self, image: &BlobKey) -> io::Result<()> {
        let passing = self.passing();
        {
            // Nobody takes it while this is locked.
            let mut used = self.used.lock();
            if used.get(&image.digits()).is_some_and(|held| held.strong_count() > 0) {
                return Ok(());
            }
            used.remove(&image.digits());
            std::fs::rename(self.place(image), &passing)?;
        }
        std::fs::remove_dir_all(passing)
    }

    /// The root file system of an image; none for the host's own.
    pub(super) fn root(&self, image: &ImageId) -> Result<Option<Root>, EngineError> {
        let Some(digits) = image.0.strip_prefix(SCHEME) else { return Ok(None) };
        let mut used = self.used.lock();
        let path = self.folder.join(digits);
        if !path.is_dir() {
            return Err(EngineError::Image(format!("the image {} is not on this node", image.0)));
        }
        let held = used.get(digits).and_then(Weak::upgrade).unwrap_or_default();
        used.insert(digits.to_owned(), Arc::downgrade(&held));
        Ok(Some(Root { path, _use: held }))
    }
}

/// The image that a folder is named for.
fn key_of(name: &str) -> Option<BlobKey> {
    name.parse().ok().filter(|key: &BlobKey| key.digits() == name)
}

/// What a folder takes on the disk; what cannot be read counts nothing.
fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// Gives an image the `/etc/resolv.conf` of every instance. An `/etc` that is a link stays as it is.
fn name_resolver(root: &Path) -> io::Result<()> {
    let etc = root.join("etc");
    match std::fs::symlink_metadata(&etc) {
        Ok(metadata) if !metadata.is_dir() => return Ok(()),
        Ok(_) => {}
        Err(_) => std::fs::create_dir(&etc)?,
    }
    let file = etc.join("resolv.conf");
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::write(file, RESOLV_CONF)
}

#[cfg(test)]
mod tests {
    use faena_domain::DigestKind;

    use super::*;

    fn key(byte: u8) -> BlobKey {
        BlobKey::new(DigestKind::Sha256, [byte; 32])
    }

    fn images(folder: &Path) -> Images {
        let unpack: Unpack = |_, at, _| std::fs::write(at.join("text"), "one");
        Images::open(folder, unpack, 0).unwrap()
    }

    fn nothing() -> File {
        File::open("/dev/null").unwrap()
    }

    #[test]
    fn an_image_that_an_instance_has_stays() {
        let folder = tempfile::tempdir().unwrap();
        let images = images(folder.path());
        assert!(images.root(&id_of(&key(1))).is_err() && images.root(&ImageId("host:1".into())).unwrap().is_none());
        images.import(&key(1), nothing()).unwrap();
        let root = images.root(&id_of(&key(1))).unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(root.path.join("text")).unwrap(), "one");
        assert_eq!(std::fs::read_to_string(root.path.join("etc/resolv.conf")).unwrap(), RESOLV_CONF);
        assert_eq!(images.list().iter().map(|image| image.key).collect::<Vec<_>>(), [key(1)]);
        images.remove(&key(1)).unwrap();
        assert!(images.has(&key(1)));
        drop(root);
        images.remove(&key(1)).unwrap();
        assert!(!images.has(&key(1)) && images.list().is_empty());
    }

    #[test]
    fn an_import_that_fails_or_was_interrupted_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("images/passing-1");
        std::fs::create_dir_all(&left).unwrap();
        let images = Images { unpack: |_, _, _| Err(io::ErrorKind::StorageFull.into()), ..images(folder.path()) };
        assert!(!left.exists());
        assert_eq!(images.import(&key(1), nothing()).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read_dir(folder.path().join("images")).unwrap().count(), 0);
    }
}
