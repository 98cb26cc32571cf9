//! Answers of a server that are passed on while they come, and WebSockets.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use faena_invoker::{BodyStream, Direction, Kept, Meter, PIECE, PipeSender};
use faena_protocol::direct::HttpHead;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::answer::StreamEnd;
use crate::server::stream::{StreamBounds, StreamFailure, overdue};

/// How long a function may take to close a WebSocket whose client has closed it.
const CLOSING: Duration = Duration::from_secs(5);

/// An answer on its way to the client, and the part of it that the record keeps.
struct Passage<'a> {
    to: PipeSender,
    meter: &'a Meter,
    kept: Kept,
}

impl Passage<'_> {
    async fn send(&mut self, frame: Frame<Bytes>) -> Result<(), StreamFailure> {
        if let Some(data) = frame.data_ref() {
            self.meter.add(Direction::Response, data.len());
            self.kept.add(data);
        }
        self.to.send(frame).await.map_err(|_| StreamFailure::ClientLeft)
    }

    async fn finish(self, head: HttpHead, ended: Result<(), StreamFailure>) -> StreamEnd {
        if ended.is_ok() {
            self.to.finish().await;
        }
        StreamEnd::new(head, self.kept, self.meter, ended.err())
    }
}

/// Passes an answer on while it comes. The second of the body's pair says whether the client has left while it sent its own:
/// the function's answer breaks off then.
pub(super) async fn pass_on(
    head: HttpHead,
    (body, has_left): (Incoming, impl Fn() -> bool),
    to: PipeSender,
    meter: &Meter,
    bounds: StreamBounds,
) -> StreamEnd {
    // A client that leaves ends a stream of events as it is meant to.
    let may_leave = head.is_event_stream();
    let mut passage = Passage { to, meter, kept: Kept::default() };
    let ended = tokio::select! {
        ended = pass_frames(body, &mut passage) => match ended {
            Err(StreamFailure::Broken(_)) if has_left() => Err(StreamFailure::ClientLeft),
            ended => ended,
        },
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
    let mut passage = Passage { to, meter, kept: Kept::default() };
    let ended = tokio::select! {
        ended = pass_both(response, client, &mut passage) => ended,
        failure = overdue(meter, bounds) => Err(failure),
    };
    // A record keeps no messages of a WebSocket.
    passage.kept = Kept::default();
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
