//! Uploads: an archive becomes a version of a function.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use faena_blob::{NamespaceBlobs, Spooled};
use faena_domain::limits::MAX_ARCHIVE;
use faena_domain::{FunctionName, Namespace, RuntimeName};
use faena_protocol::db::RuntimeGet;
use futures_util::StreamExt;
use http_body_util::Limited;

use super::functions::FunctionView;
use crate::actions::uploads::{self, Deployed, Held, Target};
use crate::app::App;
use crate::authorize::Authenticated;
use crate::body::{PATIENCE, too_slow};
use crate::guard::MULTIPART_FRAME;
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};

/// The one field of an upload.
const FIELD: &str = "module";

fn broken(error: &MultipartError) -> Problem {
    Problem::new(ErrorCode::BrokenUpload, format!("the multipart body did not arrive whole: {}", error.body_text()))
}

/// The form of an upload.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "it describes what is read as a stream")]
struct UploadForm {
    /// A zip, tar.gz or tar, told by its bytes.
    #[schema(value_type = String, format = Binary)]
    module: Vec<u8>,
}

/// Takes an archive in, checks it before anything is kept, and makes it the function's newest version.
#[utoipa::path(post, path = "/registerFunction/{runtime}/{funcName}", tag = "functions", params(("runtime" = String, Path,), ("funcName" = String, Path,)),
    request_body(content = UploadForm, content_type = "multipart/form-data", description = "The field `module`: a zip, tar.gz or tar, told by its bytes"),
    responses((status = 201, description = "The new function"), (status = 200, description = "The function with its new version"), (status = 400, description = "What is wrong with the archive", body = Problem), (status = 404, description = "There is no such runtime", body = Problem), (status = 413, description = "Too large", body = Problem)))]
pub(crate) async fn register(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path((runtime, function)): Path<(String, String)>,
    request: Request,
) -> Reply<(StatusCode, Json<FunctionView>)> {
    let namespace = principal.namespace.clone();
    let (runtime, function): (RuntimeName, FunctionName) = (runtime.parse()?, function.parse()?);
    let spec = app.db().ask(&RuntimeGet { namespace: namespace.clone(), name: runtime.clone() }).await?.spec;
    let held = hold(&app, request.headers(), MAX_ARCHIVE)?;
    let spooled = in_time(receive(&app, &namespace, request)).await?;
    let target = Target { principal: &principal, runtime, function };
    let Deployed { put, secret } = uploads::deploy(&app, target, &spec, (spooled, held)).await?;
    let status = if put.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(FunctionView::registered(put.record, secret))))
}

/// How long an upload may take altogether: it holds one of few places.
const UPLOAD: Duration = Duration::from_secs(3600);

/// Receives an upload within the time that one may take.
pub(super) async fn in_time<T>(receiving: impl Future<Output = Reply<T>>) -> Reply<T> {
    let late = |_| Problem::new(ErrorCode::TooSlow, format!("the upload did not arrive within {UPLOAD:?}"));
    tokio::time::timeout(UPLOAD, receiving).await.map_err(late)?
}

/// Takes a place among the uploads, and disk for at most `most` bytes.
pub(super) fn hold(app: &App, headers: &HeaderMap, most: u64) -> Reply<Held> {
    let place = Arc::clone(app.uploads())
        .try_acquire_owned()
        .map_err(|_| Problem::new(ErrorCode::Busy, "too many uploads at once").retry_after(1))?;
    Ok((place, app.admission().upload(headers, most)?))
}

/// Streams the field `module`, and nothing else, to a passing file.
async fn receive(app: &App, namespace: &Namespace, request: Request) -> Reply<Spooled> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !kind.trim_start().to_ascii_lowercase().starts_with("multipart/form-data") {
        let detail = "an upload must be multipart/form-data";
        return Err(Problem::new(ErrorCode::NotMultipart, detail).hint("curl -F module=@code.zip does that"));
    }
    let boundary = kind.split(';').find_map(|part| part.trim().strip_prefix("boundary="));
    let boundary = format!("--{}", boundary.unwrap_or_default().trim_matches('"')).into_bytes();
    let most = usize::try_from(MAX_ARCHIVE + MULTIPART_FRAME).unwrap_or(usize::MAX);
    let request = request.map(|body| beginning_soon(Body::new(Limited::new(body, most)), boundary));
    let refused = |_| Problem::new(ErrorCode::BrokenUpload, "the Content-Type names no boundary");
    let mut multipart = Multipart::from_request(request, &()).await.map_err(refused)?;
    let mut spooled = None;
    while let Some(field) = patient(multipart.next_field()).await? {
        match field.name() {
            Some(FIELD) if field.file_name().is_none() && field.content_type().is_none() => {
                let detail = "the field `module` is a text, not a file";
                return Err(
                    Problem::new(ErrorCode::NoFile, detail).hint("put @ before the name: curl -F module=@code.zip")
                );
            }
            Some(FIELD) if spooled.is_none() => spooled = Some(spool(&app.blobs_of(namespace), field).await?),
            Some(FIELD) => return Err(Problem::new(ErrorCode::RepeatedField, "the field `module` is there twice")),
            name => {
                let name: String = name.unwrap_or_default().chars().take(80).collect();
                return Err(Problem::new(
                    ErrorCode::UnknownField,
                    format!("unknown field `{name}`; an upload has the one field `module`"),
                ));
            }
        }
    }
    let spooled = spooled
        .ok_or_else(|| Problem::new(ErrorCode::MissingField, "the field `module` with the archive is missing"))?;
    app.metrics().upload_bytes.inc_by(spooled.bytes);
    Ok(spooled)
}

/// What may stand before the first boundary: it is held in memory until that comes.
const PREAMBLE: usize = 64 * 1024;

/// The same body, which fails where its first boundary does not come soon.
fn beginning_soon(body: Body, boundary: Vec<u8>) -> Body {
    let (mut found, mut held) = (false, Vec::new());
    let guarded = body.into_data_stream().map(move |chunk| {
        let chunk = chunk?;
        if !found {
            held.extend_from_slice(&chunk);
            found = held.windows(boundary.len()).any(|bytes| bytes == boundary);
            if found {
                held = Vec::new();
            } else if held.len() > PREAMBLE {
                return Err(axum::Error::new(std::io::Error::other("its first boundary does not come")));
            }
        }
        Ok(chunk)
    });
    Body::from_stream(guarded)
}

/// The next piece of an upload, unless the client stalls.
async fn patient<T>(piece: impl Future<Output = Result<T, MultipartError>>) -> Reply<T> {
    let arrived = tokio::time::timeout(PATIENCE, piece).await.map_err(|_| too_slow())?;
    arrived.map_err(|error| broken(&error))
}

async fn spool(blobs: &NamespaceBlobs, mut field: Field<'_>) -> Reply<Spooled> {
    let mut spool = blobs.spool()?;
    while let Some(chunk) = patient(field.chunk()).await? {
        if spool.bytes() + chunk.len() as u64 > MAX_ARCHIVE {
            return Err(Problem::too_large(format!("the archive is over the limit of {MAX_ARCHIVE} bytes")));
        }
        spool.write(&chunk)?;
    }
    Ok(spool.finish()?)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_body_whose_boundary_does_not_come_is_cut_off() {
        let whole = |bytes: Vec<u8>| async move {
            let chunks: Vec<_> = bytes.chunks(1000).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect();
            let body = Body::from_stream(futures_util::stream::iter(chunks));
            beginning_soon(body, b"--edge".to_vec()).collect().await.map(|body| body.to_bytes().len())
        };
        assert!(whole(vec![b'x'; 100_000]).await.is_err());
        let begins = [&b"before\r\n--edge\r\n"[..], &[b'x'; 100_000]].concat();
        let length = begins.len();
        assert_eq!(whole(begins).await.expect("it begins soon"), length);
    }
}
