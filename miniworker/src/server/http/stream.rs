//! Answers that are passed on while they come, and WebSockets.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use faena_domain::{CallStatus, ErrorKind};
use faena_invoker::{BodyStream, Direction, Meter, PIECE, PipeSender, WINDOW};
use faena_protocol::direct::{HttpHead, Streamed};
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a function may take to close a WebSocket whose client has closed it.
const CLOSING: Duration = Duration::from_secs(5);

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
pub(in crate::server) enum StreamFailure {
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

/// How a stream ended.
pub(in crate::server) struct StreamEnd {
    pub(super) head: HttpHead,
    pub(super) streamed: Streamed,
    /// The beginning of the answer's body, as much as a record keeps.
    pub(super) kept: Bytes,
    pub(super) failure: Option<StreamFailure>,
}

/// What is passed on of an answer, with what a record keeps of it.
struct Passage<'a> {
    to: PipeSender,
    meter: &'a Meter,
    kept: BytesMut,
}

impl Passage<'_> {
    async fn send(&mut self, frame: Frame<Bytes>) -> Result<(), StreamFailure> {
        if let Some(data) = frame.data_ref() {
            self.meter.add(Direction::Response, data.len());
            let room = WINDOW - self.kept.len();
            self.kept.extend_from_slice(&data[..data.len().min(room)]);
        }
        self.to.send(frame).await.map_err(|_| StreamFailure::ClientLeft)
    }

    async fn finish(self, head: HttpHead, ended: Result<(), StreamFailure>) -> StreamEnd {
        let streamed = Streamed {
            request_bytes: self.meter.passed(Direction::Request),
            response_bytes: self.meter.passed(Direction::Response),
        };
        if ended.is_ok() {
            self.to.finish().await;
        }
        StreamEnd { head, streamed, kept: self.kept.freeze(), failure: ended.err() }
    }
}

/// Returns when a stream has been open, or without a byte, for too long.
async fn overdue(meter: &Meter, bounds: StreamBounds) -> StreamFailure {
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

/// How often a stream is looked at for bytes that have passed.
const LOOK: Duration = Duration::from_secs(1);

/// Passes an answer on while it comes.
pub(super) async fn pass_on(
    head: HttpHead,
    body: Incoming,
    to: PipeSender,
    meter: &Meter,
    bounds: StreamBounds,
) -> StreamEnd {
    // A client that leaves ends a stream of events as it is meant to.
    let may_leave = head.is_event_stream();
    let mut passage = Passage { to, meter, kept: BytesMut::new() };
    let ended = tokio::select! {
        ended = pass_frames(body, &mut passage) => ended,
        failure = overdue(meter, bounds) => Err(failure),
    };
    let ended = match ended {
        Err(StreamFailure::ClientLeft) if may_leave => Ok(()),
        ended => ended,
    };
    passage.finish(head, ended).await
}

async fn pass_frames(mut body: Incoming, passage: &mut Passage<'_>) -> Result<(), StreamFailure> {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = passage.to.closed() => return Err(StreamFailure::ClientLeft),
        };
        match frame {
            Some(Ok(frame)) => passage.send(frame).await?,
            Some(Err(error)) => return Err(StreamFailure::Broken(error.to_string())),
            None => return Ok(()),
        }
    }
}

/// Passes bytes on in both directions, once the function has accepted a WebSocket.
pub(super) async fn tunnel(
    head: HttpHead,
    (response, client): (Response<Incoming>, BodyStream),
    to: PipeSender,
    meter: &Meter,
    bounds: StreamBounds,
) -> StreamEnd {
    let mut passage = Passage { to, meter, kept: BytesMut::new() };
    let ended = tokio::select! {
        ended = pass_both(response, client, &mut passage) => ended,
        failure = overdue(meter, bounds) => Err(failure),
    };
    // What the two say to each other is no result.
    passage.kept.clear();
    passage.finish(head, ended).await
}

async fn pass_both(
    response: Response<Incoming>,
    mut client: BodyStream,
    passage: &mut Passage<'_>,
) -> Result<(), StreamFailure> {
    let broken = |error: &dyn std::fmt::Display| StreamFailure::Broken(error.to_string());
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| broken(&error))?;
    let (mut from_function, mut to_function) = tokio::io::split(TokioIo::new(upgraded));
    let up = async {
        while let Some(Ok(frame)) = client.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            if to_function.write_all(&data).await.is_err() {
                break;
            }
        }
        // The client has closed its side, or is gone: the function is told, and closes its own.
        let _ = to_function.shutdown().await;
        tokio::time::sleep(CLOSING).await;
    };
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            let read = tokio::select! {
                read = from_function.read_buf(&mut buffer) => read.map_err(|error| broken(&error))?,
                () = passage.to.closed() => 0,
            };
            if read == 0 {
                return Ok(());
            }
            // A client that has gone ends a WebSocket as well as its function does.
            if passage.send(Frame::data(buffer.split().freeze())).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::select! {
        ended = down => ended,
        () = up => Ok(()),
    }
}
