//! Segments of a path; what is wrong with one is told like everything else that is wrong.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::problem::{ErrorCode, Problem};

/// [`axum::extract::Path`] with a problem document for a segment that is no text.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let found = axum::extract::Path::from_request_parts(parts, state).await;
        found
            .map(|axum::extract::Path(batches)| Self(batches))
            .map_err(|rejection| Problem::new(ErrorCode::MalformedPath, rejection.body_text()))
    }
}
