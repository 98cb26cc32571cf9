//! Why a call has no instance, or an attempt no process to judge.

use faena_blob::BlobError;
use faena_blob::archive::ArchiveError;
use faena_domain::units::Span;
use faena_domain::{CallError, ErrorKind, Layer};
use faena_engine::EngineError;

use crate::code::CodeError;
use crate::process::RunError;

/// Why an attempt has no process to judge.
#[derive(Debug)]
pub enum AttemptFailure {
    /// The call has failed.
    Call(CallError),
    /// The node stops.
    Stopped,
}

impl AttemptFailure {
    /// A failure of the platform.
    pub fn of_platform(layer: Layer, error: impl std::fmt::Display) -> Self {
        Self::Call(CallError::new(ErrorKind::Infrastructure, layer, error.to_string()))
    }
}

impl From<EngineError> for AttemptFailure {
    fn from(error: EngineError) -> Self {
        let kind = match error {
            EngineError::Image(_) => ErrorKind::Image,
            EngineError::Unavailable { .. } | EngineError::Lost { .. } => ErrorKind::Infrastructure,
            EngineError::Create { .. } => ErrorKind::Start,
        };
        Self::Call(CallError::new(kind, Layer::Start, error.to_string()))
    }
}

impl From<BlobError> for AttemptFailure {
    fn from(error: BlobError) -> Self {
        match error {
            // Another delivery would find the same bytes, or none.
            BlobError::Damaged(_) | BlobError::NotFound(_) => {
                Self::Call(CallError::new(ErrorKind::Start, Layer::Start, error.to_string()))
            }
            error => Self::of_platform(Layer::Start, error),
        }
    }
}

impl From<CodeError> for AttemptFailure {
    fn from(error: CodeError) -> Self {
        match error {
            CodeError::Blob(error) => error.into(),
            // Another node may have room.
            CodeError::Archive(ArchiveError::Write(_)) => Self::of_platform(Layer::Start, error),
            CodeError::Archive(_) => Self::Call(CallError::new(ErrorKind::Start, Layer::Start, error.to_string())),
            CodeError::Folder(_) => Self::of_platform(Layer::Start, error),
        }
    }
}

impl From<RunError> for AttemptFailure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Refused(message) => {
                let message = format!("the command could not be started: {message}");
                Self::Call(CallError::new(ErrorKind::Start, Layer::Start, message))
            }
            error => Self::of_platform(Layer::Run, error),
        }
    }
}

/// Why there is no instance for a call.
#[derive(Debug)]
pub enum StartError {
    /// Too many wait already.
    Full,
    /// It did not come in time.
    Late,
    /// It could not be made, or its process could not be started.
    Failed(CallError),
}

impl StartError {
    /// What the call is told.
    pub fn into_call_error(self) -> CallError {
        match self {
            Self::Full => CallError::new(ErrorKind::Unavailable, Layer::Queue, "too many calls wait for an instance"),
            Self::Late => CallError::new(ErrorKind::Timeout, Layer::Start, "no instance came in time"),
            Self::Failed(error) => error,
        }
    }

    /// Making the instance took as long as an attempt may.
    pub fn timed_out(limit: Span) -> Self {
        let message = format!("the attempt took longer than {} ms while its instance was made", limit.0);
        Self::Failed(CallError::new(ErrorKind::Timeout, Layer::Start, message))
    }

    /// The function cannot be started as it is.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::Failed(CallError::new(ErrorKind::Start, Layer::Start, message))
    }

    /// The node is short of something.
    pub(crate) fn of_node(error: &std::io::Error) -> Self {
        let message = format!("the node cannot serve the instance: {error}");
        Self::Failed(CallError::new(ErrorKind::Infrastructure, Layer::Start, message))
    }

    /// The agent is gone.
    pub(crate) fn agent_gone(error: &faena_engine::AgentError) -> Self {
        Self::lost(error.to_string())
    }

    /// The agent sent what no agent sends at this moment.
    pub(crate) fn unexpected_frame() -> Self {
        Self::lost("its agent sent a frame that is not expected now".to_owned())
    }

    fn lost(message: String) -> Self {
        EngineError::Lost { step: "starting the process".to_owned(), message }.into()
    }
}

impl<E: Into<AttemptFailure>> From<E> for StartError {
    fn from(error: E) -> Self {
        match error.into() {
            AttemptFailure::Call(error) => Self::Failed(error),
            AttemptFailure::Stopped => Self::Late,
        }
    }
}
