//! Images of the platform in the daemon, as `faena/DIGEST`.

use std::collections::HashMap;
use std::fs::File;

use bollard::errors::Error as DockerError;
use bollard::query_parameters::{CreateImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder};
use bytes::{Bytes, BytesMut};
use faena_domain::BlobKey;
use futures_util::{Stream, StreamExt, stream};
use tokio::io::AsyncReadExt;
use tracing::warn;

use super::container::{LABEL_PLATFORM, LABEL_WORKER};
use super::{Docker, PULL, unavailable};
use crate::{EngineError, ImageId, LocalImage};

/// Before the digest, in an image's name.
const REPOSITORY: &str = "faena/";
/// What is sent to the daemon at once.
const PART: usize = 256 * 1024;

pub(super) fn id_of(image: &BlobKey) -> ImageId {
    ImageId(format!("{REPOSITORY}{}", image.digits()))
}

/// A file from its position on.
fn parts(file: File) -> impl Stream<Item = std::io::Result<Bytes>> {
    stream::try_unfold(tokio::fs::File::from_std(file), |mut file| async move {
        let mut part = BytesMut::with_capacity(PART);
        let read = file.read_buf(&mut part).await?;
        Ok((read > 0).then(|| (part.freeze(), file)))
    })
}

impl Docker {
    pub(super) async fn import(&self, image: &BlobKey, archive: File) -> Result<(), EngineError> {
        let failed = |error: &dyn std::fmt::Display| EngineError::lost("importing its image into Docker", error);
        let changes = self.labels().iter().map(|(name, value)| format!("LABEL {name}={value}")).collect();
        let options = CreateImageOptionsBuilder::default().from_src("-").repo(&id_of(image).0).changes(changes).build();
        // The daemon replies when it has unpacked all of it.
        let docker = self.docker.clone().with_timeout(PULL);
        let mut steps =
            std::pin::pin!(docker.create_image(Some(options), Some(bollard::body_try_stream(parts(archive))), None));
        while let Some(step) = steps.next().await {
            step.map_err(|error| failed(&error))?;
        }
        match self.inspect(&id_of(image).0).await? {
            Some(_) => Ok(()),
            None => Err(failed(&"it took the archive, and does not have the image")),
        }
    }

    /// What marks an image as imported by this worker: another one on the same daemon removes its own alone.
    fn labels(&self) -> [(&'static str, &str); 2] {
        let ours = &self.config.belonging;
        [(LABEL_PLATFORM, ours.platform.as_str()), (LABEL_WORKER, ours.worker.as_str())]
    }

    pub(super) async fn local_images(&self) -> Result<Vec<LocalImage>, EngineError> {
        let labels = self.labels().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let ours = HashMap::from([("reference", vec![format!("{REPOSITORY}*")]), ("label", labels)]);
        let options = ListImagesOptionsBuilder::default().filters(&ours).build();
        let found = self.docker.list_images(Some(options)).await.map_err(unavailable)?;
        let of_tag = |tag: &String| tag.strip_prefix(REPOSITORY)?.strip_suffix(":latest")?.parse::<BlobKey>().ok();
        let images = found.iter().flat_map(|image| image.repo_tags.iter().map(move |tag| (tag, image.size)));
        let images = images.filter_map(|(tag, bytes)| Some((of_tag(tag)?, bytes)));
        Ok(images.map(|(key, bytes)| LocalImage { key, bytes: u64::try_from(bytes).unwrap_or(0) }).collect())
    }

    /// The daemon itself refuses to remove what a container has.
    pub(super) async fn remove_local(&self, image: &BlobKey) {
        let options = RemoveImageOptionsBuilder::default().build();
        match self.docker.remove_image(&id_of(image).0, Some(options), None).await {
            Ok(_) | Err(DockerError::DockerResponseServerError { status_code: 404 | 409, .. }) => {}
            Err(error) => warn!(%error, %image, "Docker could not remove an image"),
        }
    }
}
