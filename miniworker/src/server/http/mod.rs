//! Calls of a process that speaks HTTP on its own loopback, over connections that its agent makes and hands out.

mod connections;
mod exchange;
mod stream;

use std::time::Instant;

use bytes::Bytes;
use faena_domain::{CallError, ErrorKind, Layer};
use faena_protocol::direct::HttpHead;

use crate::call::{InstanceCall, InstanceEnd};

pub(crate) use connections::Client;
pub(super) use connections::wanted;
pub(super) use exchange::{Exchange, ExchangeError};
pub use stream::StreamBounds;
use stream::StreamEnd;

/// Where the process listens: `$PORT`.
pub(crate) const PORT: u16 = 8080;

/// What the process answered.
pub(super) enum Answer {
    /// All of it.
    Whole(ServerResponse),
    /// It went to the client while it came.
    Streamed(StreamEnd),
}

/// An answer that is here whole.
pub(super) struct ServerResponse {
    pub(super) head: HttpHead,
    pub(super) body: Bytes,
}

/// Whether a server says that it failed.
pub(super) fn is_failure(answer: &Result<Answer, ExchangeError>) -> bool {
    let status = match answer {
        Ok(Answer::Whole(response)) => response.head.status,
        Ok(Answer::Streamed(end)) => end.head.status,
        Err(_) => return false,
    };
    status >= 500
}

/// How a call ended whose function answered with a head of its own: a status of 500 and above says that it failed, and is
/// passed on all the same.
pub(super) fn answered(
    call: &InstanceCall,
    began: Instant,
    ServerResponse { head, body }: ServerResponse,
) -> InstanceEnd {
    if !(200..600).contains(&head.status) {
        let message = format!("the function answered with the status {}, which cannot be passed on", head.status);
        return InstanceEnd::failed(call, began, CallError::new(ErrorKind::Output, Layer::Run, message));
    }
    if head.status < 500 {
        return InstanceEnd { head: Some(head), ..InstanceEnd::done(call, began, body) };
    }
    let message = format!("the function answered with the status {}", head.status);
    let error = CallError::new(ErrorKind::Exception, Layer::Run, message);
    InstanceEnd { head: Some(head), result: body, ..InstanceEnd::failed(call, began, error) }
}

/// How a call ended whose answer was a stream.
fn streamed(call: &InstanceCall, began: Instant, end: StreamEnd) -> InstanceEnd {
    let StreamEnd { head, kept, streamed, failure } = end;
    let ended = match failure {
        None if head.status == 101 => InstanceEnd { head: Some(head), ..InstanceEnd::done(call, began, kept) },
        None => answered(call, began, ServerResponse { head, body: kept }),
        Some(failure) => {
            let (status, kind) = failure.told();
            let error = CallError::new(kind, Layer::Run, failure.to_string());
            InstanceEnd { head: Some(head), result: kept, error: Some(error), ..InstanceEnd::of(call, began, status) }
        }
    };
    InstanceEnd { streamed: Some(streamed), ..ended }
}

/// How a call over HTTP ended.
pub(super) fn end(call: &InstanceCall, began: Instant, answer: Result<Answer, ExchangeError>) -> InstanceEnd {
    match answer {
        Ok(Answer::Whole(response)) => answered(call, began, response),
        Ok(Answer::Streamed(end)) => streamed(call, began, end),
        Err(error) => InstanceEnd::failed(call, began, error.into_call_error()),
    }
}
