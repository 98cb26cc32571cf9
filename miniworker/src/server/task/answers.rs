//! Answers of a process that speaks frames.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use faena_domain::limits::{MAX_RESULT, STDERR_TAIL};
use faena_domain::{CallError, CallStatus, ErrorKind, Layer, Reuse};
use faena_instance_protocol::handler::{HEADER, Header, Kind, split};
use faena_invoker::WINDOW;
use faena_protocol::direct::InvocationEnd;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::{EndReason, Task};
use crate::result;
use crate::server::answer::ServerResponse;
use crate::server::{CHUNK, InFlight, widen};

impl Task {
    /// Takes the answers that have come apart.
    pub(super) fn take_answers(&mut self) -> Result<(), EndReason> {
        let lost = |why: &str| EndReason::Lost(why.to_owned());
        loop {
            let Some(head) = self.incoming.first_chunk::<HEADER>() else { return Ok(()) };
            let header = Header::decode(head).ok_or_else(|| lost("its process sent bytes that are no frame"))?;
            let length = header.length as usize;
            if matches!(header.kind, Kind::Call | Kind::Begin | Kind::Credit | Kind::Stop | Kind::Ready) {
                return Err(lost("its process sent a frame that is not expected now"));
            }
            if header.kind == Kind::Piece && length > WINDOW {
                return Err(lost("it sent a piece of an answer that is larger than its credit"));
            }
            if u64::from(header.length) > MAX_RESULT {
                self.too_large(header.id);
                return Err(EndReason::Retired);
            }
            if self.incoming.len() < HEADER + length {
                self.incoming.reserve(HEADER + length - self.incoming.len());
                if length > CHUNK
                    && !std::mem::replace(&mut self.is_widened, true)
                    && let Some(answers) = &self.answers
                {
                    widen(answers);
                }
                return Ok(());
            }
            self.incoming.advance(HEADER);
            let body = self.incoming.split_to(length).freeze();
            if header.kind == Kind::Ended && self.server.code.serving.reuse == Reuse::Fork {
                self.own_process_ended(header.id, &body)?;
                continue;
            }
            if self.is_given_up(header) {
                continue;
            }
            match header.kind {
                // A fork hears of no credit, so it has nothing to be told of.
                Kind::Stream if self.server.code.serving.reuse == Reuse::Fork => {
                    return Err(lost("a fork began a stream"));
                }
                Kind::Stream => self.stream_begins(header.id, &body)?,
                Kind::Piece => self.stream_piece(header.id, body)?,
                Kind::Done => self.stream_done(header.id)?,
                kind => self.take_answer(kind, header.id, body)?,
            }
        }
    }

    /// Whether a frame is of a call that was given up. Its last frame is the last that is not looked at.
    fn is_given_up(&mut self, header: Header) -> bool {
        match header.kind {
            Kind::Stream | Kind::Piece => self.given_up.contains(&header.id),
            _ => self.given_up.remove(&header.id),
        }
    }

    /// An answer that is here whole.
    fn take_answer(&mut self, kind: Kind, id: u64, body: Bytes) -> Result<(), EndReason> {
        let lost = |why: &str| EndReason::Lost(why.to_owned());
        let mut flight = self.take(id).ok_or_else(|| lost("it answered a call that is not in flight"))?;
        let end = match (kind, flight.broken_stream(String::new)) {
            (Kind::Exception, None) => exception(&flight, &body),
            (Kind::Exception, Some(broken)) if broken.status == CallStatus::Failed => {
                let InvocationEnd { error, .. } = exception(&flight, &body);
                InvocationEnd { error, ..broken }
            }
            // It was told to stop.
            (Kind::Exception, Some(stopped)) => stopped,
            (Kind::Reply, None) => reply(&flight, &body),
            (Kind::Result, None) => flight.call.succeeded(flight.began, body),
            _ => return Err(lost("its process sent a frame that is not expected now")),
        };
        self.finish(flight, end);
        Ok(())
    }

    fn too_large(&mut self, id: u64) {
        // Its next bytes belong to no known frame, so it takes no other call.
        self.server.traffic().closed = true;
        if let Some(flight) = self.take(id) {
            let end = result_too_large(&flight);
            self.finish(flight, end);
        }
    }
}

/// The end of a call whose result is over the limit.
pub(super) fn result_too_large(flight: &InFlight) -> InvocationEnd {
    let message = format!("the result is over the limit of {MAX_RESULT} bytes");
    flight.call.failed(flight.began, CallError::new(ErrorKind::Output, Layer::Run, message))
}

/// Reads what there is of frames.
pub(super) async fn read_frames(answers: &mut Option<Receiver>, incoming: &mut BytesMut) -> io::Result<usize> {
    match answers {
        Some(answers) => {
            // Answers that were handed out still hold the memory before it; more is allocated only where little is left.
            if incoming.capacity() - incoming.len() < CHUNK / 8 {
                incoming.reserve(CHUNK);
            }
            answers.read_buf(incoming).await
        }
        None => std::future::pending().await,
    }
}

/// A handler's answer with a head of its own.
fn reply(flight: &InFlight, frame: &Bytes) -> InvocationEnd {
    let invalid = |why: &str| {
        let error = CallError::new(ErrorKind::Output, Layer::Run, format!("the handler's reply has {why}"));
        flight.call.failed(flight.began, error)
    };
    let Some((head, body)) = split(frame) else { return invalid("no head") };
    match serde_json::from_slice(head) {
        Ok(head) => ServerResponse { head, body: frame.slice_ref(body) }.end(&flight.call, flight.began),
        Err(error) => invalid(&format!("a head that cannot be read: {error}")),
    }
}

/// A handler's exception: its message, and where it came from as the end of its standard error.
fn exception(flight: &InFlight, body: &[u8]) -> InvocationEnd {
    let (message, origin) = split(body).unwrap_or((body, &[]));
    let mut error =
        CallError::new(ErrorKind::Exception, Layer::Run, result::tail(&String::from_utf8_lossy(message), STDERR_TAIL));
    error.stderr_tail = result::tail(&String::from_utf8_lossy(origin), STDERR_TAIL).to_owned();
    flight.call.failed(flight.began, error)
}
