//! Errors as people get them: RFC 9457 problem documents with a stable code (docs/errors/).

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use faena_protocol::DbError;
use serde::Serialize;
use tracing::error;

/// Where the pages of all codes are (docs/errors/).
const PAGES: &str = "https://github.com/faena-dev/faena/blob/main/docs/errors";

/// A problem document.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Problem {
    /// Names the code's page.
    #[serde(rename = "type")]
    kind: String,
    /// Stable, for programs.
    code: &'static str,
    /// The HTTP status.
    status: u16,
    /// The status in words.
    title: &'static str,
    /// A sentence that names the thing.
    detail: String,
    /// What to do, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(skip)]
    retry_after: Option<u32>,
}

/// 507: there is too little room on a disk for new work.
pub(crate) fn disk_low() -> Problem {
    let detail = "the platform's disk is nearly full, and takes no new work; what runs is finished";
    Problem::new(StatusCode::INSUFFICIENT_STORAGE, "disk_low", detail)
        .hint("free space on the disk of the data folder; the setting disk_reserve says how much must stay free")
        .retry_after(10)
}

/// What a handler answers.
pub(crate) type Reply<T> = Result<T, Problem>;

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("{PAGES}/{code}.md"),
            code,
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("Error"),
            detail: detail.into(),
            hint: None,
            retry_after: None,
        }
    }

    /// 400: the request itself is wrong.
    pub(crate) fn invalid(code: &'static str, detail: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail.to_string())
    }

    /// 422: well-formed, and outside of what is permitted.
    pub(crate) fn not_permitted(code: &'static str, detail: impl ToString) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail.to_string())
    }

    pub(crate) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Seconds after which trying again makes sense.
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Something of ours failed; the log says what, the caller only that it did.
    pub(crate) fn internal(doing: &'static str, cause: &(dyn std::error::Error + 'static)) -> Self {
        error!(error = cause, doing, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", format!("{doing} failed; the platform's log says why"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        match &error {
            DbError::NotFound { what, name } => {
                let code = match what.as_str() {
                    "runtime" => "unknown_runtime",
                    "function" => "unknown_function",
                    "version" => "unknown_version",
                    "dead letter" => "unknown_dead_letter",
                    _ => "unknown_call",
                };
                Self::new(StatusCode::NOT_FOUND, code, format!("there is no {what} {name}"))
            }
            DbError::Conflict { message } => Self::new(StatusCode::CONFLICT, "conflict", message.clone()),
            DbError::Stale => Self::new(StatusCode::CONFLICT, "conflict", error.to_string()),
            DbError::Full => Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string()).retry_after(1),
            DbError::QueueFull { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", error.to_string()).retry_after(1)
            }
            DbError::DiskLow => disk_low(),
            DbError::KeyReused { .. } => Self::not_permitted("key_reused", error)
                .hint("the same key means the same request; take a new key for another one"),
            DbError::Ended { .. } => Self::new(StatusCode::CONFLICT, "already_ended", error.to_string()),
            DbError::Unavailable => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "database_unavailable", error.to_string()).retry_after(1)
            }
            DbError::Invalid { .. } | DbError::Internal { .. } => Self::internal("asking the database", &error),
        }
    }
}

impl From<faena_blob::BlobError> for Problem {
    fn from(error: faena_blob::BlobError) -> Self {
        if error.is_full() { disk_low() } else { Self::internal("using the blob store", &error) }
    }
}

/// For a handler that panicked: the log has its message, the caller a problem document.
pub(crate) fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let message = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let message = message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    error!(message, "a handler panicked; this is a bug");
    let detail = "the request hit a bug of the platform, whose log says which";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail).into_response()
}

/// For paths that lead nowhere.
pub(crate) async fn not_found(uri: axum::http::Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    Problem::new(StatusCode::NOT_FOUND, "unknown_route", format!("there is nothing at {path}"))
        .hint("GET /openapi.json lists every route")
}

/// For methods that a path does not have; the router adds `Allow`.
pub(crate) async fn method_not_allowed(method: axum::http::Method) -> Problem {
    let detail = format!("{method} is not among the methods of this path, which Allow lists");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}
