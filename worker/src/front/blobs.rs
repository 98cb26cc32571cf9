//! The platform's blobs, through its front.

use async_trait::async_trait;
use bytes::Bytes;
use faena_blob::{BlobError, BlobStream, RemoteBlobs};
use faena_domain::{BlobKey, Namespace};
use faena_protocol::front::{Channel, MAX_BLOB_PART, Opened, Refusal};
use faena_transport::front::{DialError, FrameError, FrameStream, FrontDialer};
use futures_util::{StreamExt, stream};
use tokio::time::{Duration, timeout};

/// How long a transfer may stand still.
const STALL: Duration = Duration::from_secs(30);

/// The blobs of the platform that this node belongs to.
#[derive(Debug)]
pub struct FrontBlobs(FrontDialer);

fn failed(error: impl std::fmt::Display) -> BlobError {
    BlobError::Remote(error.to_string())
}

impl FrontBlobs {
    /// Blobs behind a front.
    pub fn new(dialer: FrontDialer) -> Self {
        Self(dialer)
    }

    async fn open(&self, key: &BlobKey, channel: Channel) -> Result<(FrameStream, Opened), BlobError> {
        self.0.open(channel).await.map_err(|error| match error {
            DialError::Refused { reason: Refusal::NotFound, .. } => BlobError::NotFound(*key),
            DialError::Refused { reason: Refusal::NotPermitted, message } => BlobError::NotPermitted(message),
            error => failed(error),
        })
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, FrameError>>) -> Result<T, BlobError> {
    timeout(STALL, work).await.map_err(|_| failed("the transfer stands still"))?.map_err(failed)
}

#[async_trait]
impl RemoteBlobs for FrontBlobs {
    async fn get(&self, namespace: &Namespace, key: &BlobKey, offset: u64) -> Result<(u64, BlobStream), BlobError> {
        let channel = Channel::BlobGet { namespace: namespace.clone(), key: *key, offset };
        let (frames, opened) = self.open(key, channel).await?;
        let Opened::Blob { bytes } = opened else { return Err(failed("the platform sends no blob")) };
        let parts = stream::unfold((frames, offset), move |(mut frames, at)| async move {
            if at >= bytes {
                return None;
            }
            match in_time(frames.receive()).await {
                Ok(part) => {
                    let at = at + part.len() as u64;
                    Some((Ok(part), (frames, at)))
                }
                Err(error) => Some((Err(error), (frames, bytes))),
            }
        });
        Ok((bytes, parts.boxed()))
    }

    async fn put(
        &self,
        namespace: &Namespace,
        key: &BlobKey,
        bytes: u64,
        mut content: BlobStream,
    ) -> Result<(), BlobError> {
        let channel = Channel::BlobPut { namespace: namespace.clone(), key: *key, bytes };
        let (mut frames, _) = self.open(key, channel).await?;
        while let Some(part) = content.next().await {
            let mut part = part?;
            while !part.is_empty() {
                let next = part.split_to(part.len().min(MAX_BLOB_PART));
                in_time(frames.send(next)).await?;
            }
        }
        in_time(frames.send(Bytes::new())).await?;
        match in_time(frames.receive_json()).await? {
            Opened::Stored => Ok(()),
            Opened::Refused { message, .. } => Err(BlobError::NotPermitted(message)),
            _ => Err(failed("the platform does not say that it has the blob")),
        }
    }
}
