//! Blobs in an object store: a folder of this machine, or whatever else `object_store` speaks to; or, on a node, behind the
//! platform that it belongs to ([`RemoteBlobs`]).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use faena_domain::{BlobKey, DigestKind, Namespace, Payload, payload::MAX_INLINE};
use futures_util::{StreamExt, TryStreamExt};
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

use crate::archive::{ArchiveError, Flattened, flatten};
use crate::error::BlobError;
use crate::remote::{BlobStream, RemoteBlobs, download};
use crate::spool::{CHUNK, Spool, Spooled, hashed};

#[derive(Clone, Debug)]
enum Backend {
    Objects(Arc<dyn ObjectStore>),
    Remote(Arc<dyn RemoteBlobs>),
}

/// Where blobs are.
#[derive(Clone, Debug)]
pub struct BlobStore {
    backend: Backend,
    spool: PathBuf,
}

/// After this time a blob that is put again is written again: unreferenced blobs are removed by their age.
pub const REFRESHED_AFTER: Duration = Duration::from_secs(3600);

fn is_older(meta: &ObjectMeta, age: Duration) -> bool {
    let written = std::time::SystemTime::from(meta.last_modified);
    written.elapsed().is_ok_and(|elapsed| elapsed > age)
}

/// What the digest of every blob of a namespace begins with: equal bytes of two namespaces are two blobs.
fn seed(namespace: &Namespace) -> Vec<u8> {
    [namespace.key().as_bytes(), b"\0"].concat()
}

fn key(digest: DigestKind, namespace: &Namespace, bytes: &[u8]) -> BlobKey {
    let seed = seed(namespace);
    let value = match digest {
        DigestKind::Sha256 => Sha256::new_with_prefix(&seed).chain_update(bytes).finalize().into(),
        DigestKind::Blake3 => blake3::Hasher::new().update(&seed).update(bytes).finalize().into(),
    };
    BlobKey::new(digest, value)
}

fn missing(key: &BlobKey, error: object_store::Error) -> BlobError {
    match error {
        object_store::Error::NotFound { .. } => BlobError::NotFound(*key),
        error => error.into(),
    }
}

/// The key of what lies there, where it is a blob.
fn key_at(location: &ObjectPath) -> Option<BlobKey> {
    let digits: String = location.parts().skip(1).map(|part| part.as_ref().to_owned()).collect();
    let keys = [digits.parse(), format!("blake3-{digits}").parse()];
    keys.into_iter().flatten().find(|key| self::location(key) == *location)
}

fn location(key: &BlobKey) -> ObjectPath {
    let digits = key.digits();
    ObjectPath::from_iter([key.digest().as_str(), &digits[..2], &digits[2..]])
}

impl BlobStore {
    /// The store in a folder of this machine; every write is synced before it counts.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn local(folder: &Path) -> Result<Self, BlobError> {
        let (blobs, spool) = (folder.join("objects"), folder.join("spool"));
        std::fs::create_dir_all(&blobs)?;
        // What lies in the spool belongs to a process that is gone.
        match std::fs::remove_dir_all(&spool) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => std::fs::create_dir_all(&spool)?,
        }
        let store = LocalFileSystem::new_with_prefix(&blobs)?.with_fsync(true);
        Ok(Self { backend: Backend::Objects(Arc::new(store)), spool })
    }

    /// The blobs of a platform on another machine.
    ///
    /// # Errors
    /// A folder for passing files that cannot be made.
    pub fn remote(blobs: Arc<dyn RemoteBlobs>, spool: &Path) -> Result<Self, BlobError> {
        std::fs::create_dir_all(spool)?;
        Ok(Self { backend: Backend::Remote(blobs), spool: spool.to_owned() })
    }

    /// The store itself, for what concerns blobs of all namespaces: that is the platform's own work.
    fn objects(&self) -> Result<&Arc<dyn ObjectStore>, BlobError> {
        match &self.backend {
            Backend::Objects(store) => Ok(store),
            Backend::Remote(_) => Err(BlobError::Remote("a node has no view of all blobs".to_owned())),
        }
    }

    /// How many bytes a blob has, and those from an offset on, which are not verified: who gets them does that.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn stream(&self, key: &BlobKey, offset: u64) -> Result<(u64, BlobStream), BlobError> {
        let options = GetOptions { range: Some(GetRange::Offset(offset)), ..GetOptions::default() };
        let found = self.objects()?.get_opts(&location(key), options).await.map_err(|error| missing(key, error))?;
        let bytes = found.meta.size;
        Ok((bytes, found.into_stream().map_err(BlobError::from).boxed()))
    }

    /// The store in a folder that another role on this machine has made.
    ///
    /// # Errors
    /// A folder that is not there.
    pub fn shared(folder: &Path, spool: &Path) -> Result<Self, BlobError> {
        std::fs::create_dir_all(folder.join("objects"))?;
        std::fs::create_dir_all(spool)?;
        let store = LocalFileSystem::new_with_prefix(folder.join("objects"))?.with_fsync(true);
        Ok(Self { backend: Backend::Objects(Arc::new(store)), spool: spool.to_owned() })
    }

    /// What is free on the disk that passing files, and local blobs, lie on.
    ///
    /// # Errors
    /// A folder that is gone.
    pub fn free_bytes(&self) -> std::io::Result<u64> {
        let disk = rustix::fs::statvfs(&self.spool)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// The blobs of a namespace. Equal bytes of two namespaces are two blobs, so neither can find out what the other one stores.
    pub fn of(&self, namespace: &Namespace) -> NamespaceBlobs {
        NamespaceBlobs { blobs: self.clone(), namespace: namespace.clone() }
    }

    /// The blobs that were written longer ago than this.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn older_than(&self, age: Duration) -> Result<Vec<BlobKey>, BlobError> {
        let mut listed = self.objects()?.list(None);
        let mut old = Vec::new();
        while let Some(meta) = listed.next().await {
            let meta = meta?;
            if is_older(&meta, age) {
                old.extend(key_at(&meta.location));
            }
        }
        Ok(old)
    }

    /// Removes a blob; one that is not there is removed already.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn remove(&self, key: &BlobKey) -> Result<(), BlobError> {
        match self.objects()?.delete(&location(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a blob unless it was written, or put again, within this.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn remove_older(&self, key: &BlobKey, age: Duration) -> Result<(), BlobError> {
        match self.objects()?.head(&location(key)).await {
            Ok(meta) if is_older(&meta, age) => self.remove(key).await,
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a blob is there, and so young that nobody is about to remove it.
    async fn is_fresh(&self, key: &BlobKey) -> Result<bool, BlobError> {
        match self.objects()?.head(&location(key)).await {
            Ok(meta) => Ok(!is_older(&meta, REFRESHED_AFTER)),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn get(&self, key: &BlobKey) -> Result<object_store::GetResult, BlobError> {
        self.objects()?.get(&location(key)).await.map_err(|error| missing(key, error))
    }
}

/// The blobs of one namespace.
#[derive(Clone, Debug)]
pub struct NamespaceBlobs {
    blobs: BlobStore,
    namespace: Namespace,
}

impl NamespaceBlobs {
    /// A passing file, hashed while it is written.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn spool(&self) -> Result<Spool, BlobError> {
        let hash = Sha256::new_with_prefix(seed(&self.namespace));
        Ok(Spool { file: tempfile::tempfile_in(&self.blobs.spool)?, hash, bytes: 0 })
    }

    /// The root file system of the image in a passing file, as one tar in another. `reserve` bytes of the disk stay free.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn flatten(&self, archive: Spooled, reserve: u64) -> Result<(Spooled, Flattened), ArchiveError> {
        let io = |error: BlobError| ArchiveError::Write(std::io::Error::other(error));
        let mut spool = self.spool().map_err(io)?;
        let flattened = flatten(archive.file, &self.blobs.spool, reserve, &mut spool)?;
        Ok((spool.finish().map_err(io)?, flattened))
    }

    /// Writes a spooled file, unless its bytes are there already.
    ///
    /// # Errors
    /// [`BlobError`]; nothing is then named by the key.
    pub async fn put(&self, spooled: &Spooled) -> Result<(), BlobError> {
        let mut file = tokio::fs::File::from_std(spooled.file.try_clone()?);
        tokio::io::AsyncSeekExt::rewind(&mut file).await?;
        let mut reader = tokio::io::BufReader::with_capacity(CHUNK, file);
        let store = match &self.blobs.backend {
            Backend::Objects(store) => store,
            Backend::Remote(remote) => {
                let content = ReaderStream::with_capacity(reader, CHUNK / 2).map_err(BlobError::from).boxed();
                return remote.put(&self.namespace, &spooled.key, spooled.bytes, content).await;
            }
        };
        if self.blobs.is_fresh(&spooled.key).await? {
            return Ok(());
        }
        let mut writer = BufWriter::with_capacity(Arc::clone(store), location(&spooled.key), CHUNK);
        tokio::io::copy_buf(&mut reader, &mut writer).await?;
        writer.shutdown().await?;
        Ok(())
    }

    /// Writes bytes that are in memory already.
    ///
    /// # Errors
    /// [`BlobError`]; nothing is then named by the key.
    pub async fn put_bytes(&self, digest: DigestKind, bytes: Bytes) -> Result<BlobKey, BlobError> {
        let key = key(digest, &self.namespace, &bytes);
        match &self.blobs.backend {
            Backend::Remote(remote) => {
                let length = bytes.len() as u64;
                let content = futures_util::stream::iter([Ok(bytes)]).boxed();
                remote.put(&self.namespace, &key, length, content).await?;
            }
            Backend::Objects(store) => {
                if !self.blobs.is_fresh(&key).await? {
                    store.put(&location(&key), bytes.into()).await?;
                }
            }
        }
        Ok(key)
    }

    /// The payload that carries these bytes: themselves, or their name after they were written.
    ///
    /// # Errors
    /// [`BlobError`] where they had to be written.
    pub async fn payload(&self, bytes: impl Into<Bytes>) -> Result<Payload, BlobError> {
        let bytes = bytes.into();
        let utf8 = match std::str::from_utf8(&bytes) {
            Ok(text) if text.len() <= MAX_INLINE => return Ok(Payload::Text(text.to_owned())),
            text => text.is_ok(),
        };
        let length = bytes.len() as u64;
        Ok(Payload::Blob { key: self.put_bytes(DigestKind::Blake3, bytes).await?, bytes: length, utf8 })
    }

    /// The bytes of a payload.
    ///
    /// # Errors
    /// [`BlobError`], for more than `most` bytes too.
    pub async fn bytes(&self, payload: &Payload, most: u64) -> Result<Bytes, BlobError> {
        match payload {
            Payload::Text(text) => Ok(Bytes::from(text.clone())),
            Payload::Blob { key, .. } => self.read(key, most).await,
        }
    }

    async fn read(&self, key: &BlobKey, most: u64) -> Result<Bytes, BlobError> {
        let bytes = if let Backend::Remote(remote) = &self.blobs.backend {
            let mut bytes = Vec::new();
            download(remote.as_ref(), (&self.namespace, key), most, |part| {
                bytes.extend_from_slice(part);
                Ok(())
            })
            .await?;
            bytes.into()
        } else {
            let found = self.blobs.get(key).await?;
            if found.meta.size > most {
                return Err(BlobError::TooLarge(*key, most));
            }
            found.bytes().await?
        };
        if self::key(key.digest(), &self.namespace, &bytes) == *key { Ok(bytes) } else { Err(BlobError::Damaged(*key)) }
    }

    /// Stores a blob whose key and length its sender states, if its bytes have that key.
    ///
    /// # Errors
    /// [`BlobError`]; nothing is stored then.
    pub async fn receive(&self, key: &BlobKey, bytes: u64, mut content: BlobStream) -> Result<(), BlobError> {
        let (mut spool, mut other) = (self.spool()?, blake3::Hasher::new());
        other.update(&seed(&self.namespace));
        while let Some(part) = content.next().await {
            let part = part?;
            if spool.bytes() + part.len() as u64 > bytes {
                return Err(BlobError::TooLarge(*key, bytes));
            }
            if key.digest() == DigestKind::Blake3 {
                other.update(&part);
            }
            spool.write(&part)?;
        }
        let mut spooled = spool.finish()?;
        if key.digest() == DigestKind::Blake3 {
            spooled.key = BlobKey::new(DigestKind::Blake3, other.finalize().into());
        }
        if spooled.key != *key || spooled.bytes != bytes {
            return Err(BlobError::Damaged(*key));
        }
        self.put(&spooled).await
    }

    /// A file with the bytes of a blob, verified, at its beginning.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn open(&self, key: &BlobKey) -> Result<File, BlobError> {
        if let Backend::Remote(remote) = &self.blobs.backend {
            let mut spool = self.spool()?;
            download(remote.as_ref(), (&self.namespace, key), u64::MAX, |part| spool.write(part)).await?;
            let Spooled { file, key: found, .. } = spool.finish()?;
            return if found == *key { Ok(file) } else { Err(BlobError::Damaged(*key)) };
        }
        let (file, found) = match self.blobs.get(key).await?.payload {
            GetResultPayload::File(file, _) => {
                let hash = Sha256::new_with_prefix(seed(&self.namespace));
                tokio::task::spawn_blocking(move || hashed(file, hash)).await.map_err(std::io::Error::other)??
            }
            GetResultPayload::Stream(mut stream) => {
                let mut spool = self.spool()?;
                while let Some(chunk) = stream.next().await {
                    spool.write(&chunk?)?;
                }
                let spooled = spool.finish()?;
                (spooled.file, spooled.key)
            }
        };
        if found == *key { Ok(file) } else { Err(BlobError::Damaged(*key)) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn spooled(store: &NamespaceBlobs, bytes: &[u8]) -> Spooled {
        let mut spool = store.spool().unwrap();
        spool.write(bytes).unwrap();
        spool.finish().unwrap()
    }

    #[tokio::test]
    async fn what_is_put_is_read_by_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::local(folder.path()).unwrap().of(&Namespace::default());
        let spooled = spooled(&store, &vec![7; 3_000_000]);
        store.put(&spooled).await.unwrap();
        store.put(&spooled).await.unwrap();
        let mut read = Vec::new();
        store.open(&spooled.key).await.unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, vec![7; 3_000_000]);
    }

    #[tokio::test]
    async fn old_blobs_are_listed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let all = BlobStore::local(folder.path()).unwrap();
        let store = all.of(&Namespace::default());
        let key = store.put_bytes(DigestKind::Sha256, Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(all.older_than(Duration::from_secs(60)).await.unwrap(), []);
        let name = key.to_string();
        let path = folder.path().join("objects/sha256").join(&name[..2]).join(&name[2..]);
        let set_back = |hours: u64| {
            let then = std::time::SystemTime::now() - Duration::from_secs(hours * 3600);
            File::options().write(true).open(&path).and_then(|file| file.set_modified(then)).unwrap();
        };
        set_back(3);
        assert_eq!(all.older_than(Duration::from_secs(7200)).await.unwrap(), [key]);
        store.put_bytes(DigestKind::Sha256, Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(all.older_than(Duration::from_secs(7200)).await.unwrap(), [], "what is put again is young again");
        all.remove(&key).await.unwrap();
        all.remove(&key).await.unwrap();
        assert!(!path.exists());
        let of_a_call = store.put_bytes(DigestKind::Blake3, Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(all.older_than(Duration::ZERO).await.unwrap(), [of_a_call]);
    }

    #[tokio::test]
    async fn a_damaged_blob_is_not_given_out() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::local(folder.path()).unwrap().of(&Namespace::default());
        let spooled = spooled(&store, b"hello");
        store.put(&spooled).await.unwrap();
        let name = spooled.key.to_string();
        std::fs::write(folder.path().join("objects/sha256").join(&name[..2]).join(&name[2..]), b"jello").unwrap();
        assert!(matches!(store.open(&spooled.key).await, Err(BlobError::Damaged(_))));
        let payload = Payload::Blob { key: spooled.key, bytes: 5, utf8: true };
        assert!(matches!(store.bytes(&payload, 100).await, Err(BlobError::Damaged(_))));
    }

    #[tokio::test]
    async fn large_or_binary_payloads_travel_beside_the_message() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::local(folder.path()).unwrap().of(&Namespace::default());
        assert_eq!(store.payload(b"small".to_vec()).await.unwrap(), Payload::Text("small".into()));
        let binary = store.payload(vec![0xff]).await.unwrap();
        assert!(matches!(binary, Payload::Blob { utf8: false, .. }));
        let large = store.payload(vec![b'x'; 100_000]).await.unwrap();
        assert!(matches!(large, Payload::Blob { utf8: true, bytes: 100_000, .. }));
        assert_eq!(store.bytes(&large, 200_000).await.unwrap().len(), 100_000);
        assert!(matches!(store.bytes(&large, 10).await, Err(BlobError::TooLarge(..))));
    }

    #[tokio::test]
    async fn equal_bytes_of_two_namespaces_are_two_blobs() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::local(folder.path()).unwrap();
        let (red, blue) = (store.of(&"red".parse().unwrap()), store.of(&"blue".parse().unwrap()));
        for digest in [DigestKind::Sha256, DigestKind::Blake3] {
            let keys = (
                red.put_bytes(digest, Bytes::from_static(b"hello")).await.unwrap(),
                blue.put_bytes(digest, Bytes::from_static(b"hello")).await.unwrap(),
            );
            assert_ne!(keys.0, keys.1);
            let payload = Payload::Blob { key: keys.0, bytes: 5, utf8: true };
            assert_eq!(red.bytes(&payload, 5).await.unwrap(), "hello");
            assert!(matches!(blue.bytes(&payload, 5).await, Err(BlobError::Damaged(_))), "its name is of no use there");
        }
        let spooled = spooled(&red, b"hello");
        red.put(&spooled).await.unwrap();
        assert!(red.open(&spooled.key).await.is_ok() && blue.open(&spooled.key).await.is_err());
    }
}
