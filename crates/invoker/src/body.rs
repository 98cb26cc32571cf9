//! Bodies that travel while they are made.
//!
//! A [`pipe`] carries one direction of a stream between two tasks. It holds [`WINDOW`] bytes at most: a reader that is slow
//! slows the writer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::mpsc;

/// The most bytes that a pipe holds.
pub const WINDOW: usize = 64 * 1024;
/// The largest piece that travels at once, in bytes.
pub const PIECE: usize = 16 * 1024;

/// How many bytes a record keeps of a stream that is longer than [`WINDOW`].
pub const EXCERPT: usize = 4 * 1024;

/// Why a body has no end.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body as it comes.
pub type BodyStream = UnsyncBoxBody<Bytes, BodyError>;

/// What a client sends with its request.
#[derive(Debug, Default)]
pub enum RequestBody {
    /// The params are the body, or there is none.
    #[default]
    None,
    /// All of it.
    Whole(Bytes),
    /// As it comes.
    Stream(BodyStream),
    /// The request asks for a WebSocket; the bytes that its client sends after the handshake.
    Upgrade(BodyStream),
}

impl RequestBody {
    /// The bytes, where all of them are here.
    pub fn whole(&self) -> Option<&Bytes> {
        match self {
            Self::Whole(bytes) => Some(bytes),
            Self::None | Self::Stream(_) | Self::Upgrade(_) => None,
        }
    }

    /// Whether it comes while the call runs.
    pub fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(_) | Self::Upgrade(_))
    }
}

/// The other side of a pipe has ended before the body had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream was broken off")]
pub struct BrokenOff;

enum Piece {
    Frame(Frame<Bytes>),
    End,
}

/// The side of a pipe that is written to. Dropping it breaks the body off.
#[derive(Debug)]
pub struct PipeSender(mpsc::Sender<Piece>);

/// The side of a pipe that is read.
#[derive(Debug)]
pub struct PipeReceiver {
    pieces: mpsc::Receiver<Piece>,
    left: Option<u64>,
}

/// A pipe for a body, whose length may be known.
pub fn pipe(length: Option<u64>) -> (PipeSender, PipeReceiver) {
    let (sender, pieces) = mpsc::channel(WINDOW / PIECE);
    (PipeSender(sender), PipeReceiver { pieces, left: length })
}

impl PipeSender {
    /// Sends a frame, as soon as there is room for it.
    ///
    /// # Errors
    /// The reader is gone.
    pub async fn send(&self, frame: Frame<Bytes>) -> Result<(), BrokenOff> {
        let put = async |frame| self.0.send(Piece::Frame(frame)).await.map_err(|_| BrokenOff);
        match frame.into_data() {
            Ok(mut data) => {
                while data.len() > PIECE {
                    put(Frame::data(data.split_to(PIECE))).await?;
                }
                put(Frame::data(data)).await
            }
            Err(other) => put(other).await,
        }
    }

    /// Ends the body.
    pub async fn finish(self) {
        // A reader that has gone needs no end.
        let _ = self.0.send(Piece::End).await;
    }

    /// Returns when the reader is gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

impl Body for PipeReceiver {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        Poll::Ready(match ready!(self.pieces.poll_recv(cx)) {
            Some(Piece::Frame(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.left = self.left.map(|left| left.saturating_sub(length));
                Some(Ok(frame))
            }
            Some(Piece::End) => None,
            None => Some(Err(BrokenOff)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}

/// The part of a stream that a record keeps: the whole if it has at most [`WINDOW`] bytes, else the first [`EXCERPT`] bytes.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    bytes: BytesMut,
    is_cut: bool,
}

impl Kept {
    /// Bytes that pass.
    pub fn add(&mut self, data: &[u8]) {
        if self.is_cut {
            return;
        }
        if self.bytes.len() + data.len() <= WINDOW {
            return self.bytes.extend_from_slice(data);
        }
        self.is_cut = true;
        let room = EXCERPT.saturating_sub(self.bytes.len());
        self.bytes.truncate(EXCERPT);
        self.bytes.extend_from_slice(&data[..data.len().min(room)]);
        // The memory for the whole is freed.
        self.bytes = BytesMut::from(&self.bytes[..]);
    }

    /// The bytes that are kept until now.
    pub fn bytes(&self) -> Bytes {
        self.bytes.clone().freeze()
    }
}

/// How many bytes of a call have passed, in both directions; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Passed>);

#[derive(Debug, Default)]
struct Passed {
    request: AtomicU64,
    response: AtomicU64,
}

/// A direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the function.
    Request,
    /// From the function to the client.
    Response,
}

impl Meter {
    fn counter(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Request => &self.0.request,
            Direction::Response => &self.0.response,
        }
    }

    /// So many bytes have passed.
    pub fn add(&self, direction: Direction, bytes: usize) {
        self.counter(direction).fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// How many bytes have passed.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.counter(direction).load(Ordering::Relaxed)
    }

    /// How many bytes have passed in both directions.
    pub fn total(&self) -> u64 {
        self.passed(Direction::Request) + self.passed(Direction::Response)
    }
}

/// An event of a body that passes.
#[derive(Debug)]
pub enum Seen<'a> {
    /// Bytes.
    Data(&'a Bytes),
    /// It is whole. May be seen twice.
    End,
    /// It was broken off.
    Broken,
}

/// A body that is shown to a closure while it passes.
pub struct Observed<B, F> {
    body: B,
    observe: F,
}

impl<B, F> Observed<B, F> {
    /// Shows a body to a closure.
    pub fn new(body: B, observe: F) -> Self {
        Self { body, observe }
    }
}

impl<B: Body<Data = Bytes> + Unpin, F: FnMut(Seen<'_>) + Unpin> Body for Observed<B, F> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            None => (this.observe)(Seen::End),
            Some(Err(_)) => (this.observe)(Seen::Broken),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    (this.observe)(Seen::Data(data));
                }
                // Nothing follows trailers, and a reader that knows the length asks no further.
                if frame.is_trailers() || this.body.is_end_stream() {
                    (this.observe)(Seen::End);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;

    use super::*;

    fn data(length: usize) -> Frame<Bytes> {
        Frame::data(Bytes::from(vec![7; length]))
    }

    #[tokio::test]
    async fn a_pipe_holds_its_window_and_no_more() {
        let (sender, mut receiver) = pipe(None);
        sender.send(data(WINDOW)).await.expect("it is read");
        let full = tokio::time::timeout(Duration::ZERO, sender.send(data(1))).await;
        assert!(full.is_err(), "there is no room");
        let first = receiver.frame().await.expect("a frame").expect("not broken");
        assert_eq!(first.into_data().expect("data").len(), PIECE);
        sender.send(data(1)).await.expect("there is room again");
    }

    #[tokio::test]
    async fn a_body_ends_only_where_its_sender_says_so() {
        let (sender, receiver) = pipe(Some(5));
        assert_eq!(receiver.size_hint().exact(), Some(5));
        sender.send(data(5)).await.expect("it is read");
        sender.finish().await;
        assert_eq!(receiver.collect().await.expect("whole").to_bytes().len(), 5);

        let (sender, receiver) = pipe(None);
        sender.send(data(5)).await.expect("it is read");
        drop(sender);
        assert_eq!(receiver.collect().await.err(), Some(BrokenOff));
    }

    #[tokio::test]
    async fn a_sender_learns_that_nobody_reads() {
        let (sender, receiver) = pipe(None);
        drop(receiver);
        sender.closed().await;
        assert_eq!(sender.send(data(1)).await, Err(BrokenOff));
    }

    #[test]
    fn a_record_keeps_all_of_a_short_stream_and_the_beginning_of_a_long_one() {
        let kept = |pieces: &[usize]| {
            let mut kept = Kept::default();
            pieces.iter().for_each(|length| kept.add(&vec![7; *length]));
            kept.bytes().len()
        };
        assert_eq!(kept(&[1000, WINDOW - 1000]), WINDOW);
        assert_eq!(kept(&[1000, WINDOW - 999]), EXCERPT);
        assert_eq!(kept(&[WINDOW, 1, WINDOW]), EXCERPT);
        assert_eq!(kept(&[WINDOW + 1]), EXCERPT);
    }

    #[tokio::test]
    async fn a_meter_counts_each_direction() {
        let meter = Meter::default();
        let (shared, mut has_ended) = (meter.clone(), false);
        let observe = |seen: Seen<'_>| match seen {
            Seen::Data(data) => shared.add(Direction::Request, data.len()),
            Seen::End => has_ended = true,
            Seen::Broken => panic!("it is whole"),
        };
        let body = Observed::new(http_body_util::Full::new(Bytes::from_static(b"seven!!")), observe);
        body.collect().await.expect("whole");
        assert!(has_ended);
        assert_eq!((meter.passed(Direction::Request), meter.passed(Direction::Response), meter.total()), (7, 0, 7));
    }
}
