//! Bodies that pass through while they come.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderMap, Response};
use bytes::Bytes;
use faena_invoker::{BodyStream, BrokenOff, Direction, Meter, PipeReceiver, StreamedAnswer, WINDOW};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::drain::Drain;
use super::reply;
use super::websocket::Handshake;
use super::{Waiting, revoked};
use crate::admission;
use crate::app::App;
use crate::entrance::Entrance;
use crate::shares::Share;

/// Whether a server gets a body while it comes: its length is not known, or is more than is held of a stream.
pub(super) fn is_streamed(headers: &HeaderMap) -> bool {
    admission::declared(headers).is_none_or(|length| length > WINDOW as u64)
}

/// A request's body as a stream.
pub(super) fn of_request(body: Incoming) -> BodyStream {
    body.map_err(Into::into).boxed_unsync()
}

/// The reply whose body is still being made.
pub(super) fn respond(
    app: &App,
    entrance: Entrance,
    answer: StreamedAnswer,
    meter: &Meter,
    (waiting, handshake): (Waiting, Option<Handshake>),
) -> Response<Body> {
    let StreamedAnswer { head, body, draining, .. } = answer;
    let drain = Drain { api: app.draining().clone(), worker: draining };
    if let (101, Some(handshake)) = (head.status, handshake) {
        return handshake.accept(app, (head, entrance), body, meter, (drain, waiting));
    }
    let ends = head.is_event_stream().then(|| Box::pin(drain.begun()) as Pin<Box<dyn Future<Output = ()> + Send>>);
    let revoked = Box::pin(revoked(app.clone(), waiting.grant));
    let body = Outgoing { body, meter: meter.clone(), ends, revoked, is_broken: false, _place: waiting.place };
    reply::streamed(head, entrance, Body::new(body))
}

/// The body of a reply.
struct Outgoing {
    body: PipeReceiver,
    meter: Meter,
    /// When an event stream ends, which has no end of its own: its client connects again, elsewhere.
    ends: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// When its request would not be admitted any longer.
    revoked: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Its function has broken it off.
    is_broken: bool,
    /// A client that reads a stream counts as one that waits.
    _place: Share,
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if self.revoked.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(BrokenOff)));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.meter.add(Direction::Response, frame.data_ref().map_or(0, Bytes::len));
        }
        if matches!(frame, Poll::Ready(Some(Err(_)))) && !std::mem::replace(&mut self.is_broken, true) {
            // hyper closes the connection on an error, so it must write the earlier frames first.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if frame.is_pending()
            && let Some(ends) = &mut self.ends
            && ends.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(None);
        }
        frame
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
