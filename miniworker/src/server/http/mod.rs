//! Calls of a process that speaks HTTP on its own loopback, over connections that its agent makes and hands out.

mod connections;
mod error;
mod exchange;
mod passage;

use std::time::Instant;

use faena_domain::{CallStatus, ErrorKind};
use faena_protocol::direct::InvocationEnd;

use super::answer::{ServerResponse, StreamEnd};
use crate::call::InstanceCall;

pub(crate) use connections::Client;
pub(super) use connections::wanted;
pub(super) use error::ExchangeError;
pub(super) use exchange::Exchange;

/// Where the process listens: `$PORT`.
pub(crate) const PORT: u16 = 8080;

/// What the process answered.
pub(super) enum Answer {
    /// All of it.
    Whole(ServerResponse),
    /// It went to the client while it came.
    Streamed(StreamEnd),
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

/// How a call over HTTP ended.
pub(super) fn end(call: &InstanceCall, began: Instant, answer: Result<Answer, ExchangeError>) -> InvocationEnd {
    match answer {
        Ok(Answer::Whole(response)) => response.end(call, began),
        Ok(Answer::Streamed(end)) => end.end(call, began),
        Err(error) => {
            let error = error.into_call_error();
            let status = if error.kind == ErrorKind::Cancelled { CallStatus::Cancelled } else { CallStatus::Failed };
            InvocationEnd { error: Some(error), ..call.ended(began, status) }
        }
    }
}
