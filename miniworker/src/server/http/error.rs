//! Why a process that speaks HTTP gave no answer.

use faena_domain::{CallError, ErrorKind, Layer};
use faena_invoker::RequestBody;

/// Why there is no answer.
#[derive(Debug)]
pub(in crate::server) struct ExchangeError {
    pub(super) kind: ErrorKind,
    pub(super) message: String,
    /// Nothing of the request was written: another instance may have it.
    pub(in crate::server) is_unsent: bool,
    /// The body that was not sent, where that is a stream.
    pub(in crate::server) body: Option<RequestBody>,
}

impl ExchangeError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), is_unsent: false, body: None }
    }

    pub(super) fn unsent(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { is_unsent: true, ..Self::new(kind, message) }
    }

    pub(super) fn client_left() -> Self {
        Self::new(ErrorKind::Cancelled, "the client left while it sent its body")
    }

    pub(super) fn broken(error: &hyper::Error) -> Self {
        Self::new(ErrorKind::Exception, format!("the function's HTTP: {error}"))
    }

    /// The same for the call's record.
    pub(super) fn into_call_error(self) -> CallError {
        CallError::new(self.kind, Layer::Run, self.message)
    }
}
