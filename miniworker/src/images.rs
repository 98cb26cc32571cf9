//! Images of the platform on this node: each is fetched when something needs it, once however many wait, and goes when room
//! is needed and it has not been used for longest.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use faena_blob::archive::{ArchiveError, Bounds, Disk, unpack};
use faena_blob::{BlobError, BlobStore};
use faena_domain::units::ByteSize;
use faena_domain::{BlobKey, EngineKind, Namespace};
use faena_engine::{Engine, EngineError, ImageId};
use faena_protocol::records::{Code, ImageContent};
use parking_lot::Mutex;
use tracing::info;

use crate::Node;

/// An image that was asked for within this stays: its instance may not be there yet.
const RECENT: Duration = Duration::from_secs(60);

/// One image in one engine.
#[derive(Debug)]
struct Known {
    /// Held while it is fetched.
    fetching: Arc<tokio::sync::Mutex<()>>,
    used: Instant,
}

/// Fetches the image of a version, where the platform keeps it and the node does not have it. That may take longer than a call:
/// who makes an instance waits for it before anything is timed.
///
/// # Errors
/// As [`ImageStore::get`].
pub async fn fetch_image(node: &Node, code: &Code) -> Result<(), EngineError> {
    let engine = code.engine.and_then(|engine| node.engines.get(&engine));
    match (engine, &code.image_content) {
        (Some(engine), Some(image)) => node.images.get(engine, image).await.map(drop),
        _ => Ok(()),
    }
}

/// The platform's images on one node.
#[derive(Clone, Debug)]
pub struct ImageStore {
    blobs: BlobStore,
    /// How much may be kept in each engine.
    most: ByteSize,
    /// What must stay free on the disk.
    reserve: ByteSize,
    known: Arc<Mutex<HashMap<(EngineKind, BlobKey), Known>>>,
    changes: Arc<AtomicU64>,
}

fn lost(error: impl std::fmt::Display) -> EngineError {
    EngineError::Lost { step: "fetching its image".to_owned(), message: error.to_string() }
}

/// Writes the files of an image below a folder, and leaves `reserve` bytes of its disk free: what the sandbox unpacks by.
///
/// # Errors
/// An archive that is no root file system, or a disk that is full.
pub fn unpack_image(archive: &mut File, folder: &Path, reserve: u64) -> std::io::Result<()> {
    unpack(archive, folder, &Bounds::IMAGE, Disk { owner: None, reserve }).map_err(|error| match error {
        ArchiveError::Write(error) => error,
        error => std::io::Error::other(error),
    })
}

impl ImageStore {
    /// Fetches images from these blobs, keeps `most` bytes of them in each engine, and leaves `reserve` bytes of the disk free.
    pub fn new(blobs: BlobStore, most: ByteSize, reserve: ByteSize) -> Self {
        Self { blobs, most, reserve, known: Arc::default(), changes: Arc::default() }
    }

    /// Rises when an image was fetched or removed.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// What an engine calls an image, which it has now.
    ///
    /// # Errors
    /// [`EngineError`]: the image is gone, or cannot be had at the moment.
    pub async fn get(&self, engine: &Arc<dyn Engine>, image: &ImageContent) -> Result<ImageId, EngineError> {
        let fetching = {
            let mut known = self.known.lock();
            let entry = known.entry((engine.kind(), image.key));
            let found = entry.or_insert_with(|| Known { fetching: Arc::default(), used: Instant::now() });
            found.used = Instant::now();
            Arc::clone(&found.fetching)
        };
        let id = engine.id_of(&image.key);
        if engine.has_image(&image.key).await? {
            return Ok(id);
        }
        let (store, engine, image) = (self.clone(), Arc::clone(engine), image.clone());
        // Who waits may give up; the next one then finds what was begun for this one.
        let fetched = tokio::spawn(async move {
            let _alone = fetching.lock_owned().await;
            if engine.has_image(&image.key).await? { Ok(()) } else { store.fetch(engine.as_ref(), &image).await }
        });
        fetched.await.map_err(lost)?.map(|()| id)
    }

    async fn fetch(&self, engine: &dyn Engine, image: &ImageContent) -> Result<(), EngineError> {
        let (begun, key) = (Instant::now(), &image.key);
        self.make_room(engine, image.bytes).await?;
        let archive = self.blobs.of(&Namespace::default()).open(key).await.map_err(|error| match error {
            BlobError::NotFound(_) | BlobError::Damaged(_) => EngineError::Image(error.to_string()),
            error => lost(error),
        })?;
        let downloaded = begun.elapsed();
        engine.import_image(key, archive).await?;
        self.changes.fetch_add(1, Ordering::Relaxed);
        let (downloaded_ms, took_ms) = (downloaded.as_millis(), begun.elapsed().as_millis());
        info!(image = %key, engine = %engine.kind(), downloaded_ms, took_ms, "fetched an image of the platform");
        Ok(())
    }

    /// Removes what has not been used for longest until the rest is no larger than it may be with another image of so many bytes,
    /// and the disk has room for that: packed and unpacked, for a while.
    async fn make_room(&self, engine: &dyn Engine, bytes: u64) -> Result<(), EngineError> {
        let mut images = engine.images().await?;
        let mut total: u64 = images.iter().map(|image| image.bytes).sum();
        let used = |key: BlobKey| self.known.lock().get(&(engine.kind(), key)).map(|known| known.used);
        let needed = self.reserve.0.saturating_add(bytes.saturating_mul(2));
        let is_short = || self.blobs.free_bytes().is_ok_and(|free| free < needed);
        images.sort_by_cached_key(|image| used(image.key));
        for image in images {
            let is_recent = used(image.key).is_some_and(|used| used.elapsed() < RECENT);
            if is_recent || (total.saturating_add(bytes) <= self.most.0 && !is_short()) {
                break;
            }
            engine.remove_image(&image.key).await;
            if !engine.has_image(&image.key).await? {
                info!(image = %image.key, bytes = image.bytes, "removed an image that had not been used for longest");
                total -= image.bytes;
                self.changes.fetch_add(1, Ordering::Relaxed);
            }
        }
        if is_short() {
            return Err(lost(format!("the node's disk has no room for its {bytes} bytes, packed and unpacked")));
        }
        Ok(())
    }
}
