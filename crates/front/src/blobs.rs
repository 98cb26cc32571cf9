//! Blobs to and from a node.

use std::sync::Arc;
use std::time::Duration;

use faena_blob::{BlobError, BlobStream};
use faena_domain::limits::MAX_BODY;
use faena_domain::{BlobKey, DigestKind, Namespace};
use faena_protocol::front::{MAX_BLOB_PART, Opened, Refusal};
use faena_transport::front::FrameStream;
use futures_util::{StreamExt, stream};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::Shared;
use crate::nodes::Node;
use crate::refusal::{Refused, refuse};

/// How long a transfer may stand still.
const STALL: Duration = Duration::from_secs(30);
/// The largest artifact: what no build may exceed.
const MAX_ARTIFACT: u64 = 1 << 30;

fn refused(error: &BlobError) -> Refused {
    match error {
        BlobError::NotFound(_) => Refused(Refusal::NotFound, error.to_string()),
        BlobError::Damaged(_) | BlobError::TooLarge(..) | BlobError::NotPermitted(_) => {
            Refused::not_permitted(error.to_string())
        }
        BlobError::Store(_) | BlobError::Spool(_) | BlobError::Remote(_) => {
            warn!(%error, "a blob cannot be passed on");
            Refused::busy("the platform's blob store fails at the moment")
        }
    }
}

/// Sends a blob to a node that has work for it. What breaks off later the node asks for again.
pub(crate) async fn get(
    shared: &Shared,
    node: &Node,
    frames: &mut FrameStream,
    key: &BlobKey,
    offset: u64,
) -> Result<(), Refused> {
    if !node.grants.may_read(key) {
        return Err(Refused::not_permitted(format!("the node {} has no work that needs the blob {key}", node.name)));
    }
    let (bytes, mut content) = shared.blobs.stream(key, offset).await.map_err(|error| refused(&error))?;
    let sending = async {
        frames.send_json(&Opened::Blob { bytes }).await.map_err(|error| error.to_string())?;
        while let Some(part) = content.next().await {
            let mut part = part.map_err(|error| error.to_string())?;
            while !part.is_empty() {
                let next = part.split_to(part.len().min(MAX_BLOB_PART));
                let sent = timeout(STALL, frames.send(next)).await.map_err(|_| "it stands still".to_owned())?;
                sent.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    };
    if let Err::<_, String>(error) = sending.await {
        debug!(node = %node.name, %key, error, "a blob was not sent to its end");
    }
    Ok(())
}

/// Stores what a node has made.
pub(crate) async fn put(
    shared: &Arc<Shared>,
    node: &Arc<Node>,
    mut frames: FrameStream,
    (namespace, key, bytes): (Namespace, BlobKey, u64),
) {
    let most = if key.digest() == DigestKind::Blake3 { MAX_BODY } else { MAX_ARTIFACT };
    let has_room = shared.blobs.free_bytes().is_ok_and(|free| free > shared.config.disk_reserve.0 + bytes);
    let place = Arc::clone(&node.uploads).try_acquire_owned();
    if !has_room || place.is_err() {
        return refuse(&mut frames, Refused::busy("the platform takes no more uploads of the node at the moment"))
            .await;
    }
    if !node.grants.may_write(&namespace, &shared.labels(node)) || bytes > most {
        let message = format!("the node {} may not store {bytes} bytes for the namespace {namespace}", node.name);
        warn!(message, "a node is refused what it asks for");
        return refuse(&mut frames, Refused::not_permitted(message)).await;
    }
    if frames.send_json(&Opened::Ready).await.is_err() {
        return;
    }
    let (content, returned) = received(frames);
    let stored = shared.blobs.of(&namespace).receive(&key, bytes, content).await;
    let Ok(mut frames) = returned.await else { return };
    match stored {
        Ok(()) => drop(frames.send_json(&Opened::Stored).await),
        Err(error) => refuse(&mut frames, refused(&error)).await,
    }
}

/// What comes until an empty frame; and the connection, once that is over.
fn received(frames: FrameStream) -> (BlobStream, tokio::sync::oneshot::Receiver<FrameStream>) {
    let (give_back, returned) = tokio::sync::oneshot::channel();
    let content = stream::unfold(Some(Returning(Some(frames), Some(give_back))), |state| async move {
        let mut returning = state?;
        let frames = returning.0.as_mut()?;
        match timeout(STALL, frames.receive()).await {
            Ok(Ok(part)) if part.is_empty() => None,
            Ok(Ok(part)) => Some((Ok(part), Some(returning))),
            Ok(Err(error)) => Some((Err(BlobError::Remote(error.to_string())), None)),
            Err(_) => Some((Err(BlobError::Remote("the transfer stands still".to_owned())), None)),
        }
    });
    (content.boxed(), returned)
}

/// Gives a connection back when it is dropped.
struct Returning(Option<FrameStream>, Option<tokio::sync::oneshot::Sender<FrameStream>>);

impl Drop for Returning {
    fn drop(&mut self) {
        if let (Some(frames), Some(give_back)) = (self.0.take(), self.1.take()) {
            // If the receiver has been dropped, the connection closes.
            let _ = give_back.send(frames);
        }
    }
}
