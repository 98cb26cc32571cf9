//! How calls end whose function answered with a head of its own.

use std::time::Instant;

use bytes::Bytes;
use faena_domain::{CallError, ErrorKind, Layer};
use faena_invoker::{Direction, Kept, Meter};
use faena_protocol::direct::{HttpHead, InvocationEnd, Streamed};

use super::stream::StreamFailure;
use crate::call::InstanceCall;

/// An answer that is here whole.
pub(super) struct ServerResponse {
    pub(super) head: HttpHead,
    pub(super) body: Bytes,
}

impl ServerResponse {
    /// How the call ended: a status of 500 and above says that it failed, and is passed on all the same.
    pub(super) fn end(self, call: &InstanceCall, began: Instant) -> InvocationEnd {
        let Self { head, body } = self;
        if !is_passed_on(head.status) {
            let message = format!("the function answered with the status {}, which cannot be passed on", head.status);
            return call.failed(began, CallError::new(ErrorKind::Output, Layer::Run, message));
        }
        if head.status < 500 {
            return InvocationEnd { head: Some(head), ..call.succeeded(began, body) };
        }
        let message = format!("the function answered with the status {}", head.status);
        let error = CallError::new(ErrorKind::Exception, Layer::Run, message);
        InvocationEnd { head: Some(head), result: body, ..call.failed(began, error) }
    }
}

/// Whether a status can be that of an answer.
pub(super) fn is_passed_on(status: u16) -> bool {
    (200..600).contains(&status)
}

/// How an answer ended that was a stream.
pub(super) struct StreamEnd {
    pub(super) head: HttpHead,
    streamed: Streamed,
    /// The part of its body that the record keeps.
    kept: Bytes,
    pub(super) failure: Option<StreamFailure>,
}

impl StreamEnd {
    pub(super) fn new(head: HttpHead, kept: Kept, meter: &Meter, failure: Option<StreamFailure>) -> Self {
        let streamed = Streamed {
            request_bytes: meter.passed(Direction::Request),
            response_bytes: meter.passed(Direction::Response),
            // The edge knows.
            request_cut: false,
        };
        Self { head, streamed, kept: kept.bytes(), failure }
    }

    /// How the call ended.
    pub(super) fn end(self, call: &InstanceCall, began: Instant) -> InvocationEnd {
        let Self { head, streamed, kept, failure } = self;
        let ended = match failure {
            None if head.status == 101 => InvocationEnd { head: Some(head), ..call.succeeded(began, kept) },
            None => ServerResponse { head, body: kept }.end(call, began),
            Some(failure) => {
                let (status, kind) = failure.told();
                let error = CallError::new(kind, Layer::Run, failure.to_string());
                let end = call.ended(began, status);
                InvocationEnd { head: Some(head), result: kept, error: Some(error), ..end }
            }
        };
        InvocationEnd { streamed: Some(streamed), ..ended }
    }
}
