//! Errors as people get them: RFC 9457 problem documents with a stable code (docs/errors/).

mod code;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use faena_protocol::DbError;
use faena_protocol::db::Resource;
use serde::Serialize;
use tracing::error;

pub(crate) use code::ErrorCode;

/// Where the pages of all codes are (docs/errors/).
const PAGES: &str = "https://github.com/faena-dev/faena/blob/main/docs/errors";

/// A problem document.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Problem {
    /// Names the code's page.
    #[serde(rename = "type")]
    kind: String,
    /// Stable, for programs.
    #[schema(value_type = String)]
    code: ErrorCode,
    /// The HTTP status.
    status: u16,
    /// The kind of problem in words.
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
    Problem::new(ErrorCode::DiskLow, detail)
        .hint("free space on the disk of the data folder; the setting disk_reserve says how much must stay free")
        .retry_after(10)
}

/// 503: as many clients wait for calls to end as may.
pub(crate) fn busy() -> Problem {
    Problem::new(ErrorCode::Busy, "too many clients wait for calls to end").retry_after(1)
}

/// 503: nothing new is begun.
pub(crate) fn stopping() -> Problem {
    Problem::new(ErrorCode::Stopping, "the platform is stopping").retry_after(1)
}

/// What a handler answers.
pub(crate) type Reply<T> = Result<T, Problem>;

impl Problem {
    /// A problem of this kind; the detail is a sentence that names the thing.
    pub(crate) fn new(code: ErrorCode, detail: impl ToString) -> Self {
        Self {
            kind: format!("{PAGES}/{}.md", code.as_str()),
            code,
            status: code.status().as_u16(),
            title: code.title(),
            detail: detail.to_string(),
            hint: None,
            retry_after: None,
        }
    }

    pub(crate) fn too_large(detail: impl ToString) -> Self {
        Self::new(ErrorCode::TooLarge, detail)
    }

    /// The status of its reply.
    pub(crate) fn status(&self) -> StatusCode {
        self.code.status()
    }

    /// Whether it is of this kind.
    pub(crate) fn is(&self, code: ErrorCode) -> bool {
        self.code == code
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
        Self::new(ErrorCode::Internal, format!("{doing} failed; the platform's log says why"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (retry_after, status) = (self.retry_after, self.code.status());
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110, 11.6.1: a reply with this status says what is accepted.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
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
                let code = match what {
                    Resource::Runtime => ErrorCode::UnknownRuntime,
                    Resource::Function => ErrorCode::UnknownFunction,
                    Resource::Version => ErrorCode::UnknownVersion,
                    Resource::Call => ErrorCode::UnknownCall,
                    Resource::DeadLetter => ErrorCode::UnknownDeadLetter,
                    Resource::Namespace => ErrorCode::UnknownNamespace,
                    Resource::Account => ErrorCode::UnknownAccount,
                    Resource::Credential => ErrorCode::Unauthenticated,
                    Resource::Key => ErrorCode::UnknownApiKey,
                    Resource::Rule => ErrorCode::UnknownRule,
                    Resource::Config => ErrorCode::UnknownConfig,
                    Resource::Provider => ErrorCode::UnknownProvider,
                    Resource::Node => ErrorCode::UnknownNode,
                    Resource::Image => ErrorCode::UnknownImage,
                };
                Self::new(code, format!("there is no {what} {name}"))
            }
            DbError::Conflict { message } | DbError::NotAdmitted { message } => {
                Self::new(ErrorCode::Conflict, message.clone())
            }
            DbError::OverQuota { message } => Self::new(ErrorCode::QuotaExceeded, message.clone()),
            DbError::TooMuch { message } => Self::new(ErrorCode::LimitExceeded, message.clone()),
            DbError::AdministratorNeeded { message } => Self::new(ErrorCode::AdministratorNeeded, message.clone()),
            DbError::Stale => Self::new(ErrorCode::Conflict, error.to_string()),
            DbError::Full => Self::new(ErrorCode::Busy, error.to_string()).retry_after(1),
            DbError::QueueFull { .. } => Self::new(ErrorCode::QueueFull, error.to_string()).retry_after(1),
            DbError::DiskLow => disk_low(),
            DbError::KeyReused { .. } => Self::new(ErrorCode::KeyReused, error)
                .hint("the same key means the same request; take a new key for another one"),
            DbError::Ended { .. } => Self::new(ErrorCode::AlreadyEnded, error.to_string()),
            DbError::Unavailable => Self::new(ErrorCode::DatabaseUnavailable, error.to_string()).retry_after(1),
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
    Problem::new(ErrorCode::Internal, detail).into_response()
}

/// For paths that lead nowhere.
pub(crate) async fn not_found(uri: axum::http::Uri) -> Problem {
    unknown_route(&uri)
}

/// There is no such path.
pub(crate) fn unknown_route(uri: &axum::http::Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    Problem::new(ErrorCode::UnknownRoute, format!("there is nothing at {path}"))
        .hint("GET /openapi.json lists every route")
}

/// For methods that a path does not have; the router adds `Allow`.
pub(crate) async fn method_not_allowed(method: axum::http::Method) -> Problem {
    let detail = format!("{method} is not among the methods of this path, which Allow lists");
    Problem::new(ErrorCode::MethodNotAllowed, detail)
}
