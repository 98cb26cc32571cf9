//! Blobs of a platform on another machine.

use std::time::Duration;

use bytes::Bytes;
use faena_domain::{BlobKey, Namespace};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use crate::error::BlobError;

/// How often a download from another machine is resumed that got nowhere.
const RESUMPTIONS: u32 = 5;
/// The pause before that.
const RESUMED_AFTER: Duration = Duration::from_millis(500);

/// The bytes of a blob from an offset on, as they come.
pub type BlobStream = BoxStream<'static, Result<Bytes, BlobError>>;

/// Blobs of a platform on another machine.
#[async_trait::async_trait]
pub trait RemoteBlobs: std::fmt::Debug + Send + Sync {
    /// How many bytes a blob has, and those from an offset on.
    async fn get(&self, namespace: &Namespace, key: &BlobKey, offset: u64) -> Result<(u64, BlobStream), BlobError>;

    /// Stores a blob of so many bytes. The platform verifies that they have this key.
    async fn put(&self, namespace: &Namespace, key: &BlobKey, bytes: u64, content: BlobStream)
    -> Result<(), BlobError>;
}

/// Hands over the parts of a blob of another machine. A connection that breaks is replaced by one that goes on where it was.
pub(crate) async fn download(
    remote: &dyn RemoteBlobs,
    (namespace, key): (&Namespace, &BlobKey),
    most: u64,
    mut part: impl FnMut(&[u8]) -> Result<(), BlobError>,
) -> Result<(), BlobError> {
    let (mut offset, mut failures) = (0, 0);
    loop {
        let before = offset;
        let failed = match remote.get(namespace, key, offset).await {
            Ok((length, _)) if length > most => return Err(BlobError::TooLarge(*key, most)),
            Ok((length, mut stream)) => loop {
                match stream.next().await {
                    Some(Ok(bytes)) => {
                        offset += bytes.len() as u64;
                        if offset > length {
                            return Err(BlobError::Damaged(*key));
                        }
                        part(&bytes)?;
                    }
                    Some(Err(error)) => break error,
                    None if offset == length => return Ok(()),
                    None => break BlobError::Remote("the connection ended".to_owned()),
                }
            },
            Err(error) => error,
        };
        if offset > before {
            failures = 0;
        }
        failures += 1;
        if failures > RESUMPTIONS || !matches!(failed, BlobError::Remote(_)) {
            return Err(failed);
        }
        tokio::time::sleep(RESUMED_AFTER).await;
    }
}
