//! Answers that pass while they are made: how long they may be, and why they end early.

use std::time::{Duration, Instant};

use faena_domain::{CallStatus, ErrorKind};
use faena_invoker::Meter;

/// How often a stream is looked at for bytes that have passed.
const LOOK: Duration = Duration::from_secs(1);

/// How long a stream may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamBounds {
    /// Without a byte in either direction.
    pub idle: Duration,
    /// Altogether.
    pub max: Duration,
}

impl Default for StreamBounds {
    fn default() -> Self {
        Self { idle: Duration::from_secs(60), max: Duration::from_secs(3600) }
    }
}

/// Why a stream ended before its function had ended it.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamFailure {
    #[error("the client left while the function answered")]
    ClientLeft,
    #[error("the stream had no byte for {} ms, the setting stream_idle", .0.as_millis())]
    Idle(Duration),
    #[error("the stream was open for {} ms, the setting stream_max", .0.as_millis())]
    TooLong(Duration),
    #[error("the function broke its answer off: {0}")]
    Broken(String),
}

impl StreamFailure {
    /// The status and the kind that a call ends with.
    pub(super) fn told(&self) -> (CallStatus, ErrorKind) {
        match self {
            Self::ClientLeft => (CallStatus::Cancelled, ErrorKind::Cancelled),
            Self::Idle(_) | Self::TooLong(_) => (CallStatus::Timeout, ErrorKind::Timeout),
            Self::Broken(_) => (CallStatus::Failed, ErrorKind::Exception),
        }
    }
}

/// Returns when a stream has been open, or without a byte, for too long.
pub(super) async fn overdue(meter: &Meter, bounds: StreamBounds) -> StreamFailure {
    let end = tokio::time::Instant::now() + bounds.max;
    let (mut passed, mut since) = (meter.total(), Instant::now());
    loop {
        // A byte that passes early in a span is noticed at its end: no stream ends before it was idle for so long.
        let left = bounds.idle.saturating_sub(since.elapsed());
        tokio::select! {
            () = tokio::time::sleep(left.max(Duration::from_millis(1)).min(LOOK)) => {}
            () = tokio::time::sleep_until(end) => return StreamFailure::TooLong(bounds.max),
        }
        if meter.total() != passed {
            (passed, since) = (meter.total(), Instant::now());
        } else if since.elapsed() >= bounds.idle {
            return StreamFailure::Idle(bounds.idle);
        }
    }
}
