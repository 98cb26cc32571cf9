//! Streamed answers of handlers.
//!
//! Pieces come as frames, against credit that a process gets back when its client has room. If the call is queued, or its client
//! waits for the whole result (`POST /invokeFunction`), the pieces are joined.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use faena_domain::limits::MAX_RESULT;
use faena_instance_protocol::handler::{Kind, LEAST_COST, STREAM_CREDIT};
use faena_invoker::{Direction, Kept, Meter, PipeSender, WINDOW, pipe};
use faena_protocol::direct::{HttpHead, InvocationEnd};
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::answers::result_too_large;
use super::{EndReason, Task};
use crate::call::InstanceCall;
use crate::server::answer::{ServerResponse, StreamEnd, is_passed_on};
use crate::server::stream::{StreamFailure, overdue};
use crate::server::{InFlight, Order, ServerInstance};

/// How long a handler may take to end an answer whose reader is gone.
const STOPPING: Duration = Duration::from_secs(10);
/// Shorter pieces are copied.
const COPIED: usize = 16 * 1024;
/// The most pieces that credit permits.
const PIECES: usize = WINDOW / LEAST_COST as usize + 2;

/// An answer that is being made.
pub(in crate::server) struct HandlerStream {
    head: HttpHead,
    to: Destination,
}

enum Destination {
    /// To the caller, while it comes.
    Caller(Passing),
    /// Into the result.
    Result(BytesMut),
}

/// An answer that passes to the caller.
struct Passing {
    pieces: mpsc::Sender<Option<Bytes>>,
    kept: Kept,
    meter: Meter,
    /// Credit that was used and not given back, in bytes.
    used: Arc<AtomicU32>,
    /// Whether the reader is there, or the process was told to stop.
    reading: Reading,
}

enum Reading {
    On,
    /// A client may leave a stream of events, which has no end of its own.
    Stopped(Option<StreamFailure>),
}

fn cost(piece: &[u8]) -> u32 {
    u32::try_from(piece.len()).unwrap_or(u32::MAX).max(LEAST_COST)
}

impl HandlerStream {
    /// How its call ended; with why its process did not end the answer.
    fn end(self, call: &InstanceCall, began: Instant, failure: Option<StreamFailure>) -> InvocationEnd {
        let Self { head, to } = self;
        match (to, failure) {
            (Destination::Caller(passing), failure) => {
                let failure = match passing.reading {
                    Reading::On => failure,
                    Reading::Stopped(why) => why,
                };
                StreamEnd::new(head, passing.kept, &passing.meter, failure).end(call, began)
            }
            (Destination::Result(body), None) => ServerResponse { head, body: body.freeze() }.end(call, began),
            (Destination::Result(_), Some(failure)) => {
                StreamEnd::new(head, Kept::default(), &Meter::default(), Some(failure)).end(call, began)
            }
        }
    }
}

impl InFlight {
    /// How the call ended whose process has not ended its answer, where that had begun.
    pub(super) fn broken_stream(&mut self, why: impl FnOnce() -> String) -> Option<InvocationEnd> {
        let stream = self.stream.take()?;
        Some(stream.end(&self.call, self.began, Some(StreamFailure::Broken(why()))))
    }
}

impl Task {
    /// An answer begins.
    pub(super) fn stream_begins(&mut self, id: u64, head: &[u8]) -> Result<(), EndReason> {
        let lost = |why: &str| EndReason::Lost(format!("it began an answer {why}"));
        let head: HttpHead = serde_json::from_slice(head).map_err(|_| lost("with a head that cannot be read"))?;
        if !is_passed_on(head.status) {
            return Err(lost("with a status that cannot be passed on"));
        }
        let takes_stream = {
            let traffic = self.server.traffic();
            let flight = traffic.in_flight.iter().find(|flight| flight.id == id && flight.stream.is_none());
            flight.ok_or_else(|| lost("of a call that is not in flight"))?.call.takes_stream()
        };
        let to = if takes_stream {
            let (to, receiver) = pipe(None);
            self.server.begin_stream(id, head.clone(), receiver);
            let (pieces, coming) = mpsc::channel(PIECES);
            let (meter, used) = (Meter::default(), Arc::new(AtomicU32::new(0)));
            let may_leave = head.is_event_stream();
            let pump = Pump { server: Arc::clone(&self.server), id, meter: meter.clone(), used: Arc::clone(&used) };
            tokio::spawn(pump.run(coming, to, may_leave));
            Destination::Caller(Passing { pieces, kept: Kept::default(), meter, used, reading: Reading::On })
        } else {
            Destination::Result(BytesMut::new())
        };
        if let Some(flight) = self.server.traffic().in_flight.iter_mut().find(|flight| flight.id == id) {
            flight.stream = Some(HandlerStream { head, to });
        }
        Ok(())
    }

    /// A piece of an answer.
    pub(super) fn stream_piece(&mut self, id: u64, piece: Bytes) -> Result<(), EndReason> {
        let lost = |why: &str| EndReason::Lost(format!("it sent a piece of an answer {why}"));
        let server = Arc::clone(&self.server);
        let mut traffic = server.traffic();
        let flight = traffic.in_flight.iter_mut().find(|flight| flight.id == id);
        let stream = flight.and_then(|flight| flight.stream.as_mut()).ok_or_else(|| lost("that had not begun"))?;
        match &mut stream.to {
            Destination::Result(result) if (result.len() + piece.len()) as u64 > MAX_RESULT => {
                drop(traffic);
                if let Some(flight) = self.take(id) {
                    let end = result_too_large(&flight);
                    self.abandon(flight, end);
                }
                Ok(())
            }
            Destination::Result(result) => {
                result.extend_from_slice(&piece);
                drop(traffic);
                server.tell_of_stream(id, Kind::Credit, &cost(&piece).to_le_bytes());
                Ok(())
            }
            // Pieces after the stop are ignored.
            Destination::Caller(Passing { reading: Reading::Stopped(_), .. }) => Ok(()),
            Destination::Caller(passing) => {
                let used = passing.used.fetch_add(cost(&piece), Ordering::Relaxed).saturating_add(cost(&piece));
                passing.meter.add(Direction::Response, piece.len());
                passing.kept.add(&piece);
                // The last piece may be larger than what was left.
                let is_within = used <= 2 * STREAM_CREDIT;
                // A small piece would hold all of the buffer that it came in.
                let piece = if piece.len() < COPIED { Bytes::copy_from_slice(&piece) } else { piece };
                match passing.pieces.try_send(Some(piece)) {
                    Err(mpsc::error::TrySendError::Full(_)) => Err(lost("without credit")),
                    _ if !is_within => Err(lost("without credit")),
                    // Its reader has gone; it tells so.
                    _ => Ok(()),
                }
            }
        }
    }

    /// An answer is whole.
    pub(super) fn stream_done(&mut self, id: u64) -> Result<(), EndReason> {
        let lost = || EndReason::Lost("it ended an answer that had not begun".to_owned());
        let mut flight = self.take(id).ok_or_else(lost)?;
        let stream = flight.stream.take().ok_or_else(lost)?;
        if let Destination::Caller(passing) = &stream.to {
            // There is room for it: the end costs no credit.
            let _ = passing.pieces.try_send(None);
        }
        let end = stream.end(&flight.call, flight.began, None);
        self.finish(flight, end);
        Ok(())
    }

    /// The reader of an answer is gone, or the answer took too long: tells the process, which has a moment to end it.
    pub(super) fn stream_stopped(&mut self, id: u64, why: Option<StreamFailure>) {
        {
            let mut traffic = self.server.traffic();
            let Some(flight) = traffic.in_flight.iter_mut().find(|flight| flight.id == id) else { return };
            flight.call.deadline = Instant::now() + STOPPING;
            let Some(HandlerStream { to: Destination::Caller(passing), .. }) = &mut flight.stream else { return };
            passing.reading = Reading::Stopped(why);
        }
        self.server.tell_of_stream(id, Kind::Stop, &[]);
    }
}

/// Passes the pieces of one answer on.
struct Pump {
    server: Arc<ServerInstance>,
    id: u64,
    meter: Meter,
    used: Arc<AtomicU32>,
}

impl Pump {
    async fn run(self, mut pieces: mpsc::Receiver<Option<Bytes>>, to: PipeSender, may_leave: bool) {
        let passed = tokio::select! {
            passed = self.pass(&mut pieces, &to) => passed,
            failure = overdue(&self.meter, self.server.node.streams) => Err(failure),
        };
        let failure = match passed {
            Ok(true) => return to.finish().await,
            // The call has ended otherwise; dropping the pipe breaks the answer off.
            Ok(false) => return,
            // A client that leaves ends a stream of events as it is meant to.
            Err(StreamFailure::ClientLeft) if may_leave => None,
            Err(failure) => Some(failure),
        };
        // The task is gone only when the call has been ended.
        let _ = self.server.orders.send(Order::StreamStopped(self.id, failure)).await;
    }

    /// True where the answer is whole.
    async fn pass(&self, pieces: &mut mpsc::Receiver<Option<Bytes>>, to: &PipeSender) -> Result<bool, StreamFailure> {
        loop {
            let piece = tokio::select! {
                piece = pieces.recv() => piece,
                () = to.closed() => return Err(StreamFailure::ClientLeft),
            };
            let Some(piece) = piece else { return Ok(false) };
            let Some(piece) = piece else { return Ok(true) };
            let cost = cost(&piece);
            to.send(Frame::data(piece)).await.map_err(|_| StreamFailure::ClientLeft)?;
            self.used.fetch_sub(cost, Ordering::Relaxed);
            self.server.tell_of_stream(self.id, Kind::Credit, &cost.to_le_bytes());
        }
    }
}
