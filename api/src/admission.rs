//! What requests may hold between them: memory for their bodies, disk for what they bring.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use faena_blob::BlobStore;
use faena_domain::units::{ByteSize, MB};
use faena_domain::{FunctionName, Namespace};

use crate::problem::{ErrorCode, Problem, Reply, disk_low};
use crate::shares::{Share, Shares};

/// Memory for bodies that are being read or handed over.
const BODIES: u64 = 256 * MB;

/// How long a body waits for its memory, and how often it looks: what others carried has to be written first.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The bounds of one api.
#[derive(Debug)]
pub(crate) struct AdmissionControl {
    /// Bytes of bodies.
    bodies: Shares,
    blobs: BlobStore,
    /// What must stay free on the disk.
    reserve: ByteSize,
    /// What uploads under way may still write.
    uploading: Arc<AtomicU64>,
    /// When the disk was last seen to have room for new work, in milliseconds since we began; 0 is never.
    roomy_at: AtomicU64,
    born: Instant,
}

/// How long a disk that had room is taken to have it: calls come far more often than disks fill.
const LOOK_MS: u64 = 250;

/// Disk that an upload may fill; free again when it is over.
#[derive(Debug)]
pub(crate) struct UploadRoom {
    bytes: u64,
    uploading: Arc<AtomicU64>,
}

impl Drop for UploadRoom {
    fn drop(&mut self) {
        self.uploading.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a request says its body has; none where that shows only when it comes. Without either header it has none (RFC
/// 9112, 6.3).
pub(crate) fn declared(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let comes_in_chunks = headers.contains_key(header::TRANSFER_ENCODING);
    length.or(if comes_in_chunks { None } else { Some(0) })
}

fn too_many_bodies() -> Problem {
    let busy = "too many large bodies at once; all bodies of one function may hold a quarter of the memory for bodies";
    Problem::new(ErrorCode::Busy, busy).retry_after(1)
}

impl AdmissionControl {
    pub(crate) fn new(blobs: BlobStore, reserve: ByteSize) -> Self {
        Self {
            bodies: Shares::new(BODIES),
            blobs,
            reserve,
            uploading: Arc::default(),
            roomy_at: AtomicU64::new(0),
            born: Instant::now(),
        }
    }

    /// Memory for so many bytes of a body, of which the function that it is for may hold a part; where there is none, it is
    /// waited for a moment.
    pub(crate) async fn body(&self, of: Option<(&Namespace, &FunctionName)>, bytes: u64) -> Reply<Share> {
        let begun = Instant::now();
        loop {
            // No line is formed: a large body that waits would take what is free from every small one.
            if let Some(held) = self.bodies.take(of, bytes) {
                return Ok(held);
            }
            if begun.elapsed() > PATIENCE {
                return Err(too_many_bodies());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Counts the memory of a body as a function's, once it is known which function that is.
    pub(crate) fn assign(&self, held: &mut Share, namespace: &Namespace, function: &FunctionName) -> Reply<()> {
        if held.assign(&self.bodies, namespace, function) { Ok(()) } else { Err(too_many_bodies()) }
    }

    /// Whether the disk has room for new work.
    pub(crate) fn disk(&self) -> Reply<()> {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let seen = self.roomy_at.load(Ordering::Relaxed);
        if seen > 0 && now.saturating_sub(seen) < LOOK_MS {
            return Ok(());
        }
        let fits = self.fits(0);
        self.roomy_at.store(if fits.is_ok() { now } else { 0 }, Ordering::Relaxed);
        fits
    }

    /// Disk for an upload of at most `most` bytes.
    pub(crate) fn upload(&self, headers: &HeaderMap, most: u64) -> Reply<UploadRoom> {
        let bytes = declared(headers).unwrap_or(most).min(most);
        self.uploading.fetch_add(bytes, Ordering::Relaxed);
        let room = UploadRoom { bytes, uploading: Arc::clone(&self.uploading) };
        self.fits(self.uploading.load(Ordering::Relaxed))?;
        Ok(room)
    }

    /// Whether the disk has room for what an archive unpacks to: code that no worker could unpack is refused.
    pub(crate) fn unpacked(&self, bytes: u64) -> Reply<()> {
        self.fits(bytes)
    }

    /// What must stay free on the disk, in bytes.
    pub(crate) fn reserve(&self) -> u64 {
        self.reserve.0
    }

    fn fits(&self, more: u64) -> Reply<()> {
        match self.blobs.free_bytes() {
            Ok(free) if free < self.reserve.0.saturating_add(more) => Err(disk_low()),
            Ok(_) => Ok(()),
            Err(error) => Err(Problem::internal("looking at the disk", &error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(reserve: u64) -> (AdmissionControl, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (AdmissionControl::new(BlobStore::local(folder.path()).unwrap(), ByteSize(reserve)), folder)
    }

    fn length(bytes: u64) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_LENGTH, bytes.into())])
    }

    #[tokio::test]
    async fn bodies_share_their_memory() {
        let (room, _folder) = control(0);
        let mut held = Vec::new();
        for _ in 0..256 {
            held.push(room.body(None, MB).await.unwrap());
        }
        assert!(room.body(None, 0).await.is_ok(), "a request without a body needs none");
        let no_time = tokio::time::timeout(Duration::ZERO, room.body(None, 1));
        assert!(no_time.await.is_err(), "it does not wait");
        let (waited, ()) = tokio::join!(room.body(None, 6 * MB), async { drop(held.split_off(250)) });
        assert!(waited.is_ok());
    }

    #[tokio::test]
    async fn the_bodies_of_one_function_hold_a_quarter() {
        let ((room, _folder), namespace) = (control(0), Namespace::default());
        let (busy, other) = ("busy".parse().unwrap(), "other".parse().unwrap());
        let quarter = room.body(Some((&namespace, &busy)), 64 * MB).await.unwrap();
        let one_more = tokio::time::timeout(Duration::ZERO, room.body(Some((&namespace, &busy)), 1)).await;
        assert!(one_more.is_err(), "it has its part");
        assert!(room.body(Some((&namespace, &other)), MB).await.is_ok());
        let mut unknown = room.body(None, MB).await.unwrap();
        assert!(room.assign(&mut unknown, &namespace, &busy).is_err());
        drop(quarter);
        assert!(room.assign(&mut unknown, &namespace, &busy).is_ok());
    }

    #[test]
    fn a_request_that_declares_no_body_has_none() {
        assert_eq!(declared(&HeaderMap::new()), Some(0));
        assert_eq!(declared(&length(7)), Some(7));
        let chunked = HeaderMap::from_iter([(header::TRANSFER_ENCODING, "chunked".parse().unwrap())]);
        assert_eq!(declared(&chunked), None);
    }

    #[test]
    fn uploads_that_would_not_fit_together_are_refused() {
        let (room, _folder) = control(0);
        let free = room.blobs.free_bytes().unwrap();
        let first = room.upload(&length(free / 3 * 2), u64::MAX).unwrap();
        assert!(room.upload(&length(free / 3 * 2), u64::MAX).is_err());
        drop(first);
        assert_eq!(room.uploading.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_disk_that_is_nearly_full_takes_no_work() {
        assert!(control(u64::MAX).0.disk().is_err());
        assert!(control(0).0.disk().is_ok());
        assert!(control(0).0.unpacked(u64::MAX / 2).is_err());
    }
}
