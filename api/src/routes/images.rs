//! Images that the platform keeps: every node fetches them from here when a function needs them.

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use faena_blob::archive::{ArchiveError, ImageFormat};
use faena_blob::{NamespaceBlobs, Spooled};
use faena_domain::image::InvalidImage;
use faena_domain::limits::MAX_IMAGE;
use faena_domain::{ImageName, Namespace, Timestamp};
use faena_protocol::db::{ImageDelete, ImageGet, ImageList, ImagePut};
use faena_protocol::records::{ImageContent, ImageRecord};
use futures_util::StreamExt;
use serde::Serialize;

use super::upload::{hold, in_time};
use crate::app::App;
use crate::body::{PATIENCE, too_slow};
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};

/// An image.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageView {
    /// Its name, with a tag.
    #[schema(value_type = String)]
    name: ImageName,
    /// What names its root file system. Docker has it as `faena/DIGEST`.
    digest: String,
    /// The size of its root file system, in bytes.
    bytes: u64,
    /// When it was put there.
    #[schema(value_type = String)]
    created_at: Timestamp,
    /// What was uploaded, in the reply to that alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    format: Option<ImageFormat>,
}

impl From<ImageRecord> for ImageView {
    fn from(ImageRecord { name, content, created_at }: ImageRecord) -> Self {
        Self { name, digest: content.key.digits(), bytes: content.bytes, created_at, format: None }
    }
}

impl From<InvalidImage> for Problem {
    fn from(error: InvalidImage) -> Self {
        Self::new(ErrorCode::InvalidImage, error)
    }
}

/// The name of an image that the platform may keep.
fn named(name: String) -> Reply<ImageName> {
    let name = ImageName::try_from(name)?;
    if name.has_digest() {
        let detail = "an image is kept under a name and a tag, and its digest is the platform's to say";
        return Err(Problem::new(ErrorCode::InvalidImage, detail));
    }
    Ok(name)
}

/// Keeps an image, which every node then has when it needs it: the output of `docker save` or of an OCI tool, or a root
/// file system as `docker export` writes it. Names and tags in the archive are ignored.
#[utoipa::path(put, path = "/image/{image}", tag = "images", params(("image" = String, Path, description = "As a runtime's `image` names it; a slash is written %2F")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "A tar or tar.gz"),
    responses((status = 201, description = "It is there", body = ImageView), (status = 200, description = "It has replaced another, or was there", body = ImageView), (status = 400, description = "What is wrong", body = Problem), (status = 413, description = "Too large", body = Problem)))]
pub(crate) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    request: Request,
) -> Reply<(StatusCode, Json<ImageView>)> {
    let name = named(name)?;
    let held = hold(&app, request.headers(), MAX_IMAGE)?;
    let blobs = app.blobs_of(&Namespace::default());
    let archive = in_time(receive(&blobs, request.into_body())).await?;
    app.metrics().upload_bytes.inc_by(archive.bytes);
    let (reading, reserve) = (blobs.clone(), app.admission().reserve());
    // The place is taken until the image is read, even if the client goes away meanwhile.
    let flattened = tokio::task::spawn_blocking(move || reading.flatten(archive, reserve).map(|made| (made, held)));
    let flattened = flattened.await.map_err(|error| Problem::internal("reading an image", &error))?;
    let ((root, image), _held) = flattened.map_err(|error| match error {
        ArchiveError::Unknown => {
            Problem::from(error).hint("the body is the archive itself: docker save NAME | curl -T - ADDRESS/image/NAME")
        }
        error => error.into(),
    })?;
    app.admission().unpacked(root.bytes)?;
    blobs.put(&root).await?;
    let content = ImageContent { key: root.key, bytes: root.bytes, env: image.env };
    let put = app.db().ask(&ImagePut { name, content }).await?;
    let status = if put.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(ImageView { format: Some(image.format), ..put.record.into() })))
}

/// Writes a body to a passing file.
async fn receive(blobs: &NamespaceBlobs, body: Body) -> Reply<Spooled> {
    let (mut spool, mut parts) = (blobs.spool()?, body.into_data_stream());
    while let Some(part) = tokio::time::timeout(PATIENCE, parts.next()).await.map_err(|_| too_slow())? {
        let part = part.map_err(|error| {
            Problem::new(ErrorCode::BrokenUpload, format!("the archive did not arrive whole: {error}"))
        })?;
        if spool.bytes() + part.len() as u64 > MAX_IMAGE {
            return Err(Problem::too_large(format!("the archive is over the limit of {MAX_IMAGE} bytes")));
        }
        spool.write(&part)?;
    }
    Ok(spool.finish()?)
}

/// All images that the platform keeps.
#[utoipa::path(get, path = "/images", tag = "images", responses((status = 200, description = "The images, by name", body = Vec<ImageView>)))]
pub(crate) async fn list(State(app): State<App>) -> Reply<Json<Vec<ImageView>>> {
    let images = app.db().ask(&ImageList {}).await?;
    Ok(Json(images.into_iter().map(Into::into).collect()))
}

/// One image.
#[utoipa::path(get, path = "/image/{image}", tag = "images", params(("image" = String, Path,)), responses((status = 200, description = "The image", body = ImageView), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn get(State(app): State<App>, Path(name): Path<String>) -> Reply<Json<ImageView>> {
    Ok(Json(app.db().ask(&ImageGet { name: named(name)? }).await?.into()))
}

/// Forgets an image. Versions that were built with it keep it.
#[utoipa::path(delete, path = "/image/{image}", tag = "images", params(("image" = String, Path,)), responses((status = 204, description = "It is gone"), (status = 404, description = "There is none", body = Problem)))]
pub(crate) async fn delete(State(app): State<App>, Path(name): Path<String>) -> Reply<StatusCode> {
    app.db().ask(&ImageDelete { name: named(name)? }).await?;
    Ok(StatusCode::NO_CONTENT)
}
