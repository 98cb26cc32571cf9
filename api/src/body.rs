//! Bodies of requests: bounded, and of the kind that was asked for.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use faena_domain::json::InvalidJson;
use faena_domain::{FunctionName, Namespace};
use http_body_util::{BodyExt, Collected, LengthLimitError, Limited};
use serde_json::value::RawValue;

use crate::admission::{self, AdmissionControl};
use crate::problem::{ErrorCode, Problem, Reply};
use crate::shares::Share;

/// How long a body, or a piece of an upload, may take: who stalls holds memory and a place that others need.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// 408: the client did not send what it promised.
pub(crate) fn too_slow() -> Problem {
    Problem::new(ErrorCode::TooSlow, format!("the body did not arrive within {PATIENCE:?}"))
}

/// A body that has arrived whole, and its part of the memory that there is for bodies.
#[derive(Debug)]
pub(crate) struct Whole {
    bytes: Bytes,
    held: Share,
}

impl Whole {
    /// The bytes, for callers that keep them longer than their part of the memory.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Counts its memory as a function's.
    pub(crate) fn assign(
        &mut self,
        admission: &AdmissionControl,
        namespace: &Namespace,
        function: &FunctionName,
    ) -> Reply<()> {
        admission.assign(&mut self.held, namespace, function)
    }
}

impl std::ops::Deref for Whole {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What is taken of the memory for bodies at once, for a body whose length shows only when it comes.
const PIECE: u64 = 64 * 1024;

/// The function that a body is for, where that is known before the body is read.
type Of<'a> = Option<(&'a Namespace, &'a FunctionName)>;

/// Reads a body of at most `most` bytes.
pub(crate) async fn read(
    admission: &AdmissionControl,
    headers: &HeaderMap,
    body: Body,
    of: Of<'_>,
    most: u64,
) -> Reply<Whole> {
    let declared = admission::declared(headers);
    if declared.is_some_and(|length| length > most) {
        // Nothing of it is read, so no client is told to go on with it (RFC 9110, 10.1.1).
        return Err(Problem::too_large(format!("the body is over the limit of {most} bytes")));
    }
    let mut held = admission.body(of, declared.unwrap_or(0)).await?;
    let limit = usize::try_from(most).unwrap_or(usize::MAX);
    let body = Limited::new(body, limit);
    let whole = async {
        match declared {
            Some(_) => Ok(Ok(body.collect().await.map(Collected::to_bytes)?)),
            None => counted(admission, of, &mut held, body).await,
        }
    };
    match tokio::time::timeout(PATIENCE, whole).await.map_err(|_| too_slow())? {
        Ok(bytes) => Ok(Whole { bytes: bytes?, held }),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Problem::too_large(format!("the body is over the limit of {most} bytes")))
        }
        Err(error) => Err(Problem::new(ErrorCode::BrokenBody, format!("the body did not arrive whole: {error}"))),
    }
}

/// Reads a body of unknown length, and takes memory for it as it comes.
async fn counted(
    admission: &AdmissionControl,
    of: Of<'_>,
    held: &mut Share,
    body: Limited<Body>,
) -> Result<Reply<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
    let (mut bytes, mut left, mut body) = (BytesMut::new(), 0, std::pin::pin!(body));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        while (data.len() as u64) > left {
            match admission.body(of, PIECE).await {
                Ok(more) => held.merge(more),
                Err(problem) => return Ok(Err(problem)),
            }
            left += PIECE;
        }
        left -= data.len() as u64;
        bytes.extend_from_slice(&data);
    }
    Ok(Ok(bytes.freeze()))
}

/// Whether the headers name JSON as the body's kind.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let Some((group, form)) = kind.split_once('/') else { return false };
    let has_suffix =
        form.len().checked_sub(5).and_then(|at| form.get(at..)).is_some_and(|end| end.eq_ignore_ascii_case("+json"));
    group.eq_ignore_ascii_case("application") && (form.eq_ignore_ascii_case("json") || has_suffix)
}

/// Reads a body that must be JSON.
pub(crate) async fn read_json(
    admission: &AdmissionControl,
    headers: &HeaderMap,
    body: Body,
    most: u64,
) -> Reply<Whole> {
    if !is_json(headers) {
        let detail = "the body must be JSON and say so";
        return Err(Problem::new(ErrorCode::NotJson, detail).hint("add the header Content-Type: application/json"));
    }
    read(admission, headers, body, None, most).await
}

/// Whether a body that says it is JSON is.
pub(crate) fn check_json(bytes: &[u8]) -> Reply<()> {
    if !faena_domain::json::is_shallow(bytes) {
        return Err(InvalidJson::TooDeep.into());
    }
    let checked = serde_json::from_slice::<&RawValue>(bytes);
    checked.map(drop).map_err(|error| Problem::new(ErrorCode::MalformedJson, error))
}

impl From<InvalidJson> for Problem {
    fn from(error: InvalidJson) -> Self {
        let code = match error {
            InvalidJson::TooDeep => ErrorCode::TooDeep,
            InvalidJson::Malformed(_) => ErrorCode::MalformedJson,
            InvalidJson::MissingField(_) => ErrorCode::MissingField,
            InvalidJson::UnknownField { .. } => ErrorCode::UnknownField,
        };
        Self::new(code, error)
    }
}
