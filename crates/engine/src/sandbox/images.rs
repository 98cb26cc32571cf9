//! Root file systems that were imported on this node, by their names.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::host::RESOLV_CONF;
use crate::{EngineError, ImageId};

/// Before the hash, in an image's id.
const SCHEME: &str = "rootfs:";
/// The file that says which name stands for which root file system.
const NAMES: &str = "names.json";

/// The imported images of one node: `images/<hash>` beside the file of their names.
#[derive(Clone, Debug)]
pub struct Images {
    folder: PathBuf,
}

/// Why an image could not be imported.
#[derive(Debug, thiserror::Error)]
#[error("the folder of images {folder} failed")]
pub struct ImportError {
    /// Where.
    folder: PathBuf,
    /// What the operating system said.
    #[source]
    source: io::Error,
}

impl Images {
    /// The images of the worker with this folder.
    pub fn at(worker: &Path) -> Self {
        Self { folder: worker.join("images") }
    }

    fn failed(&self, source: io::Error) -> ImportError {
        ImportError { folder: self.folder.clone(), source }
    }

    /// All names, and the hashes of the archives that they stand for.
    ///
    /// # Errors
    /// A file of names that cannot be read.
    pub fn names(&self) -> Result<BTreeMap<String, String>, ImportError> {
        match std::fs::read(self.folder.join(NAMES)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| self.failed(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Imports an image: `unpack` fills an empty folder unless this very archive is there already. Then the name stands
    /// for it, whatever it stood for before.
    ///
    /// # Errors
    /// What `unpack` says, or a folder that cannot be written; the name then stands for what it did.
    pub fn import<E: From<ImportError>>(
        &self,
        name: &str,
        hash: &str,
        unpack: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<ImageId, E> {
        let place = self.folder.join(hash);
        if !place.is_dir() {
            let passing = self.folder.join(format!("{hash}.{}", uuid::Uuid::new_v4().simple()));
            std::fs::create_dir_all(&passing).map_err(|error| self.failed(error))?;
            let unpacked = unpack(&passing)
                .and_then(|()| name_resolver(&passing).map_err(|error| self.failed(error).into()))
                .and_then(|()| std::fs::rename(&passing, &place).map_err(|error| self.failed(error).into()));
            if passing.exists() {
                // The error is reported; what stays is removed when the data folder is cleaned.
                let _ = std::fs::remove_dir_all(&passing);
            }
            unpacked?;
        }
        self.name(name, hash).map_err(|error| self.failed(error))?;
        Ok(ImageId(format!("{SCHEME}{hash}")))
    }

    fn name(&self, name: &str, hash: &str) -> io::Result<()> {
        let mut names = self.names().map_err(|error| error.source)?;
        names.insert(name.to_owned(), hash.to_owned());
        let passing = self.folder.join(format!("{NAMES}.{}", uuid::Uuid::new_v4().simple()));
        std::fs::write(&passing, serde_json::to_vec_pretty(&names)?)?;
        std::fs::rename(passing, self.folder.join(NAMES))
    }

    /// What a name stands for now.
    pub(super) fn find(&self, name: &str) -> Result<Option<ImageId>, EngineError> {
        let names = self.names().map_err(|error| EngineError::Image(format!("{error}: {}", error.source)))?;
        Ok(names.get(name).map(|hash| ImageId(format!("{SCHEME}{hash}"))))
    }

    /// The root file system of an image; none for the host's own.
    pub(super) fn root(&self, image: &ImageId) -> Result<Option<PathBuf>, EngineError> {
        let Some(hash) = image.0.strip_prefix(SCHEME) else { return Ok(None) };
        let root = self.folder.join(hash);
        if root.is_dir() {
            Ok(Some(root))
        } else {
            Err(EngineError::Image(format!("the image {} is not on this node any more; import it again", image.0)))
        }
    }
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
    use super::*;

    #[test]
    fn a_name_stands_for_what_was_imported_last() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::at(folder.path());
        let fill = |text: &'static str| {
            move |at: &Path| std::fs::write(at.join("text"), text).map_err(|error| images_error(at, error))
        };
        images.import("a", "1111", fill("one")).unwrap();
        let second = images.import("a", "2222", fill("two")).unwrap();
        assert_eq!(images.find("a").unwrap(), Some(second.clone()));
        let root = images.root(&second).unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(root.join("text")).unwrap(), "two");
        assert_eq!(std::fs::read_to_string(root.join("etc/resolv.conf")).unwrap(), RESOLV_CONF);
        assert!(images.find("b").unwrap().is_none());
        assert!(images.root(&ImageId("rootfs:3333".into())).is_err());
        assert!(images.root(&ImageId("host:1".into())).unwrap().is_none());
    }

    #[test]
    fn an_import_that_fails_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::at(folder.path());
        let failed = images.import("a", "1111", |at| Err(images_error(at, io::ErrorKind::StorageFull.into())));
        assert!(failed.is_err());
        assert!(images.find("a").unwrap().is_none());
        assert_eq!(std::fs::read_dir(folder.path().join("images")).unwrap().count(), 0);
    }

    fn images_error(at: &Path, source: io::Error) -> ImportError {
        ImportError { folder: at.to_owned(), source }
    }
}
