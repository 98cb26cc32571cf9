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

/// The images of one node. A link that is named by an image's digest leads to its files. Their folder has another name each time
/// that they are unpacked: the launcher keeps roots by the path of their image.
#[derive(Clone, Debug)]
pub(super) struct Images {
    folder: PathBuf,
    unpack: Unpack,
    /// What must stay free on the disk.
    reserve: u64,
    /// Images that instances have. Locked while a link is made or removed.
    used: Arc<Mutex<HashMap<BlobKey, Weak<()>>>>,
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
        let folder = worker.join("images");
        std::fs::create_dir_all(&folder)?;
        let images = Self { folder, unpack, reserve, used: Arc::default(), sizes: Arc::default() };
        let here: Vec<PathBuf> = images.keys().iter().filter_map(|key| images.files(key)).collect();
        for entry in std::fs::read_dir(&images.folder)?.flatten() {
            let path = entry.path();
            let is_link = key_of(&entry.file_name().to_string_lossy()).is_some_and(|key| images.files(&key).is_some());
            if is_link || here.contains(&path) {
                continue;
            }
            if entry.file_type()?.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
        Ok(images)
    }

    fn link(&self, image: &BlobKey) -> PathBuf {
        self.folder.join(image.digits())
    }

    /// Where the files of an image are, if it is here.
    fn files(&self, image: &BlobKey) -> Option<PathBuf> {
        let files = self.folder.join(std::fs::read_link(self.link(image)).ok()?);
        files.is_dir().then_some(files)
    }

    fn keys(&self) -> Vec<BlobKey> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| key_of(&entry.file_name().to_string_lossy())).collect()
    }

    pub(super) fn has(&self, image: &BlobKey) -> bool {
        self.files(image).is_some()
    }

    /// Unpacks an image. It is on the disk before it has its link, so that no power cut leaves half of one.
    pub(super) fn import(&self, image: &BlobKey, mut archive: File) -> io::Result<()> {
        let name = format!("files-{}", uuid::Uuid::new_v4().simple());
        let files = self.folder.join(&name);
        std::fs::create_dir_all(&files)?;
        let imported = (self.unpack)(&mut archive, &files, self.reserve)
            .and_then(|()| name_resolver(&files))
            .and_then(|()| Ok(rustix::fs::syncfs(File::open(&files)?)?))
            .and_then(|()| self.publish(image, &name));
        if !matches!(imported, Ok(true)) {
            // The error is reported; what stays is removed at the next start.
            let _ = std::fs::remove_dir_all(&files);
        }
        imported.map(drop)
    }

    /// Makes the link of an image; false where it is here already.
    fn publish(&self, image: &BlobKey, name: &str) -> io::Result<bool> {
        let _locked = self.used.lock();
        if self.has(image) {
            return Ok(false);
        }
        let passing = self.folder.join(format!("{name}.link"));
        std::os::unix::fs::symlink(name, &passing)?;
        std::fs::rename(passing, self.link(image))?;
        Ok(true)
    }

    /// What is here.
    pub(super) fn list(&self) -> Vec<LocalImage> {
        let found = self.keys().into_iter().filter_map(|key| {
            let files = self.files(&key)?;
            let known = self.sizes.lock().get(&key).copied();
            let bytes = known.unwrap_or_else(|| bytes_below(&files));
            self.sizes.lock().insert(key, bytes);
            Some(LocalImage { key, bytes })
        });
        found.collect()
    }

    /// Removes an image that no instance has.
    pub(super) fn remove(&self, image: &BlobKey) -> io::Result<()> {
        let files = {
            // No instance takes it while this is locked.
            let mut used = self.used.lock();
            if used.get(image).is_some_and(|held| held.strong_count() > 0) {
                return Ok(());
            }
            used.remove(image);
            let Some(files) = self.files(image) else { return Ok(()) };
            std::fs::remove_file(self.link(image))?;
            files
        };
        self.sizes.lock().remove(image);
        std::fs::remove_dir_all(files)
    }

    /// The root file system of an image; none for the host's own.
    pub(super) fn root(&self, image: &ImageId) -> Result<Option<Root>, EngineError> {
        let Some(digits) = image.0.strip_prefix(SCHEME) else { return Ok(None) };
        let missing = || EngineError::Image(format!("the image {} is not on this node", image.0));
        let key = key_of(digits).ok_or_else(missing)?;
        let mut used = self.used.lock();
        let path = self.files(&key).ok_or_else(missing)?;
        let held = used.get(&key).and_then(Weak::upgrade).unwrap_or_default();
        used.insert(key, Arc::downgrade(&held));
        Ok(Some(Root { path, _use: held }))
    }
}

/// The image that a link is named for.
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
        let before = root.path.clone();
        drop(root);
        images.remove(&key(1)).unwrap();
        assert!(!images.has(&key(1)) && images.list().is_empty() && !before.exists());
        // The launcher knows roots by their paths.
        images.import(&key(1), nothing()).unwrap();
        images.import(&key(1), nothing()).unwrap();
        assert_ne!(images.root(&id_of(&key(1))).unwrap().unwrap().path, before);
        assert_eq!(std::fs::read_dir(folder.path().join("images")).unwrap().count(), 2, "a link and its files");
        let again = self::images(folder.path());
        assert!(again.has(&key(1)), "it is there after a restart");
    }

    #[test]
    fn an_import_that_fails_or_was_interrupted_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("images/files-1");
        std::fs::create_dir_all(&left).unwrap();
        std::fs::write(folder.path().join("images/names.json"), "{}").unwrap();
        let images = Images { unpack: |_, _, _| Err(io::ErrorKind::StorageFull.into()), ..images(folder.path()) };
        assert!(!left.exists());
        assert_eq!(images.import(&key(1), nothing()).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read_dir(folder.path().join("images")).unwrap().count(), 0);
    }
}
