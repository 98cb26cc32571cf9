//! The end of a connection. A client that stops reading is let go: an answer that nothing takes must not be kept for ever.
//! A client that still sends when it has been answered is read for a while, so that it comes to read the answer: closing
//! would reset the connection, and the answer with it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use faena_domain::limits::MAX_ARCHIVE;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long a client may take nothing of what is ready for it.
const STALL: Duration = Duration::from_secs(10);

/// How long a client that was answered may send nothing until its connection is closed.
const QUIET: Duration = Duration::from_millis(200);
/// How long it may go on sending, and how much of that is read and dropped: the largest archive, and some more.
const LINGER: Duration = Duration::from_secs(10);
const LINGER_BYTES: u64 = MAX_ARCHIVE + MAX_ARCHIVE / 4;

/// A stream whose writes fail once nothing has been taken for [`STALL`], and whose end is gentle.
#[derive(Debug)]
pub(crate) struct WriteTimeout<S> {
    stream: S,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    ending: Option<Ending>,
}

/// Our side is closed; what the client still sends is dropped.
#[derive(Debug)]
struct Ending {
    quiet: Pin<Box<Sleep>>,
    until: tokio::time::Instant,
    dropped: u64,
}

impl Ending {
    fn new() -> Self {
        let quiet = Box::pin(tokio::time::sleep(QUIET));
        Self { quiet, until: tokio::time::Instant::now() + LINGER, dropped: 0 }
    }

    /// Ready when the client has closed its side too, is quiet, or has had its time.
    fn poll<S: AsyncRead + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<()> {
        let mut chunk = [0; 16 * 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut chunk);
            match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.dropped += buffer.filled().len() as u64;
                    let now = tokio::time::Instant::now();
                    if self.dropped > LINGER_BYTES || now > self.until {
                        return Poll::Ready(());
                    }
                    self.quiet.as_mut().reset(now + QUIET);
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.quiet.as_mut().poll(cx),
            }
        }
    }
}

impl<S> WriteTimeout<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, patience: STALL, waiting: None, ending: None }
    }

    fn judge<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judge(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.judge(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ending.is_none() {
            let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
            ready!(self.judge(cx, polled))?;
            self.ending = Some(Ending::new());
        }
        let Self { stream, ending, .. } = &mut *self;
        if let Some(ending) = ending {
            ready!(ending.poll(stream, cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_client_that_sends_first_reads_its_answer() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let mut stream = WriteTimeout::new(ours);
        let answering = tokio::spawn(async move {
            stream.write_all(b"413").await.unwrap();
            stream.shutdown().await
        });
        theirs.write_all(&[7; 100_000]).await.expect("all of it is taken");
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "413");
        drop(theirs);
        answering.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_takes_nothing_is_let_go() {
        let (ours, theirs) = tokio::io::duplex(4);
        let mut stream = WriteTimeout { patience: Duration::from_millis(1), ..WriteTimeout::new(ours) };
        let error = stream.write_all(b"more than four").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }
}
