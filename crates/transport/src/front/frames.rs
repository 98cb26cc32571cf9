//! Frames over TLS: a length of four bytes, most significant first, and as many bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsStream;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::event_sink::EventSink;
use crate::{HEARTBEAT, SILENCE, boot_ms};

/// Why a frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection.
    #[error("the connection failed: {0}")]
    Connection(#[from] io::Error),
    /// It ended where a frame was expected.
    #[error("the connection ended")]
    Ended,
    /// A frame that is no message.
    #[error("a frame is no message: {0}")]
    Message(#[from] serde_json::Error),
}

/// Remembers when its peer was heard last: on a slow network a large frame takes longer than silence may.
#[derive(Debug)]
struct Heard<S> {
    stream: S,
    at_ms: Arc<AtomicU64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.at_ms.store(boot_ms(), Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

type Inner = Framed<Heard<TlsStream<TcpStream>>, LengthDelimitedCodec>;

/// A connection that carries frames.
#[derive(Debug)]
pub struct FrameStream {
    framed: Inner,
    heard_at_ms: Arc<AtomicU64>,
}

impl FrameStream {
    pub(super) fn new(stream: TlsStream<TcpStream>, most: usize) -> Self {
        let heard_at_ms = Arc::new(AtomicU64::new(boot_ms()));
        let codec = LengthDelimitedCodec::builder().max_frame_length(most).new_codec();
        let framed = Framed::new(Heard { stream, at_ms: Arc::clone(&heard_at_ms) }, codec);
        Self { framed, heard_at_ms }
    }

    /// From now on a frame may have so many bytes.
    pub fn permit_frames_of(&mut self, most: usize) {
        self.framed.codec_mut().set_max_frame_length(most);
    }

    /// The next frame; cancel-safe.
    ///
    /// # Errors
    /// A connection that failed or ended, or a frame that is larger than permitted.
    pub async fn receive(&mut self) -> Result<Bytes, FrameError> {
        Ok(self.framed.next().await.ok_or(FrameError::Ended)??.freeze())
    }

    /// Sends a frame, and waits until the kernel has it.
    ///
    /// # Errors
    /// A connection that failed.
    pub async fn send(&mut self, frame: impl Into<Bytes>) -> Result<(), FrameError> {
        Ok(self.framed.send(frame.into()).await?)
    }

    /// The next frame as a message in JSON.
    ///
    /// # Errors
    /// As [`Self::receive`], or a frame that is no such message.
    pub async fn receive_json<T: DeserializeOwned>(&mut self) -> Result<T, FrameError> {
        Ok(serde_json::from_slice(&self.receive().await?)?)
    }

    /// Sends a message as JSON.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn send_json(&mut self, message: &impl Serialize) -> Result<(), FrameError> {
        self.send(serde_json::to_vec(message)?).await
    }

    /// The connection without frames. Neither side may have sent anything behind the last frame.
    ///
    /// # Errors
    /// Bytes that have come already.
    pub fn into_bytes(self) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static, FrameError> {
        let parts = self.framed.into_parts();
        if parts.read_buf.is_empty() { Ok(parts.io) } else { Err(FrameError::Ended) }
    }

    /// Passes frames on in both directions, and sends heartbeats. It ends when the connection ends, when its peer is silent for
    /// too long, or when the queue or the receiver of frames is dropped. An empty frame is a heartbeat.
    pub(crate) async fn carry<M: Into<Bytes>>(
        self,
        queue: &mut mpsc::Receiver<M>,
        frames: &mut impl EventSink<Bytes>,
    ) -> CarryEnd {
        let (sending, receiving) = self.framed.split();
        tokio::select! {
            end = send_all(queue, sending) => end,
            end = receive_all(receiving, frames) => end,
            () = silence(&self.heard_at_ms) => CarryEnd::Connection,
        }
    }

    /// The same, to and from channels. The sending channel waits where frames are not taken.
    pub async fn exchange(self, mut queue: mpsc::Receiver<Bytes>, mut frames: mpsc::Sender<Bytes>) {
        self.carry(&mut queue, &mut frames).await;
    }

    /// The same, where frames are taken at once by a function, which says whether the connection is still wanted.
    pub async fn exchange_with(self, mut queue: mpsc::Receiver<Bytes>, take: impl FnMut(Bytes) -> bool + Send) {
        self.carry(&mut queue, &mut Taking(take)).await;
    }
}

struct Taking<F>(F);

impl<F: FnMut(Bytes) -> bool + Send> EventSink<Bytes> for Taking<F> {
    async fn hear(&mut self, frame: Bytes) -> bool {
        (self.0)(frame)
    }
}

/// Why frames are no longer carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CarryEnd {
    /// The connection is over.
    Connection,
    /// Its user has dropped it.
    Unused,
}

async fn send_all<M: Into<Bytes>>(queue: &mut mpsc::Receiver<M>, mut sending: SplitSink<Inner, Bytes>) -> CarryEnd {
    let mut tick = tokio::time::interval(HEARTBEAT);
    loop {
        let sent = tokio::select! {
            message = queue.recv() => {
                let Some(message) = message else { return CarryEnd::Unused };
                send_waiting(message, queue, &mut sending).await
            }
            _ = tick.tick() => sending.send(Bytes::new()).await,
        };
        if sent.is_err() {
            return CarryEnd::Connection;
        }
    }
}

/// Sends a message and those that wait behind it with as few calls of the kernel as they need.
async fn send_waiting<M: Into<Bytes>>(
    first: M,
    queue: &mut mpsc::Receiver<M>,
    sending: &mut SplitSink<Inner, Bytes>,
) -> io::Result<()> {
    sending.feed(first.into()).await?;
    while let Ok(message) = queue.try_recv() {
        sending.feed(message.into()).await?;
    }
    sending.flush().await
}

async fn receive_all(mut receiving: SplitStream<Inner>, frames: &mut impl EventSink<Bytes>) -> CarryEnd {
    while let Some(Ok(frame)) = receiving.next().await {
        if !frame.is_empty() && !frames.hear(frame.freeze()).await {
            return CarryEnd::Unused;
        }
    }
    CarryEnd::Connection
}

/// Returns when the peer was silent for too long, or this process was stopped for so long that the peer has given it up.
async fn silence(heard_at_ms: &AtomicU64) {
    let mut tick = tokio::time::interval(HEARTBEAT);
    let mut last_tick = Instant::now();
    loop {
        tick.tick().await;
        if last_tick.elapsed() + HEARTBEAT >= SILENCE {
            return;
        }
        if last_tick.elapsed() > 2 * HEARTBEAT {
            heard_at_ms.store(boot_ms(), Ordering::Relaxed);
        }
        last_tick = Instant::now();
        let silent_ms = boot_ms().saturating_sub(heard_at_ms.load(Ordering::Relaxed));
        if u128::from(silent_ms) > SILENCE.as_millis() {
            return;
        }
    }
}
