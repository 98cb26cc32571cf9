//! Names of HTTP/1 headers in the case in which they were written.
//!
//! Names are case-insensitive (RFC 9110, 5.1), and the `http` crate holds them in lower case. hyper can keep the case, but in
//! a type that nobody else can read or make. Some programs look at the case all the same, so a connection is read and
//! written through a [`HeadStream`]: it keeps a copy of the head that was read last, and puts names into the next head that
//! is written. Whatever is in doubt (requests that were sent without waiting for an answer, a head beyond the bound) has
//! its names in canonical form, `X-Request-Id`: a name's case never decides anything.
//!
//! hyper's server can send no interim answer (RFC 9110, 15.2) but 100. A [`HeadStream`] writes one before the next head.

mod head;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use head::{Head, canonical};

/// The longest head whose names are known, in bytes.
const MAX_HEAD: usize = 64 * 1024;
/// What is kept of a connection's buffer for heads between them, in bytes.
const ORDINARY_HEAD: usize = 1024;
/// The longest beginning of a message that is copied to replace names in its head, in bytes. The rest is written after it.
const MAX_COPY: usize = MAX_HEAD;

/// A stream that knows the names of the heads that pass through it. It expects hyper on top of it, which writes a head in
/// one piece, and with `title_case_headers`.
#[derive(Debug)]
pub struct HeadStream<S> {
    stream: S,
    names: HeadNames,
}

/// The names of the headers on one connection; clones share them.
#[derive(Clone, Debug, Default)]
pub struct HeadNames(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// The bytes that were read since the last write, up to the end of a head.
    read: Vec<u8>,
    has_head: bool,
    has_written: bool,
    /// All that was written is flushed: what is written next begins a message.
    is_flushed: bool,
    /// The names for the next head.
    next: Vec<String>,
    renamed: Option<Renamed>,
    /// An interim answer that is to be written before the next head.
    interim: Vec<u8>,
    /// Who reads, to be woken when there is one.
    reader: Option<Waker>,
}

/// The beginning of a message with its names replaced, as long as the original.
#[derive(Debug)]
struct Renamed {
    bytes: Vec<u8>,
    written: usize,
}

impl Default for State {
    fn default() -> Self {
        Self {
            read: Vec::new(),
            has_head: false,
            has_written: true,
            is_flushed: true,
            next: Vec::new(),
            renamed: None,
            interim: Vec::new(),
            reader: None,
        }
    }
}

impl HeadNames {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// The head that was read last, once.
    pub fn take_head(&self) -> Option<Head> {
        let mut state = self.state();
        state.has_head.then(|| Head(std::mem::take(&mut state.read)))
    }

    /// Names for the next head that is written. They replace those that differ in case alone.
    pub fn write_next<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let names: Vec<String> = names.filter(|name| !head::is_canonical(name)).map(str::to_owned).collect();
        if !names.is_empty() {
            self.state().next = names;
        }
    }

    /// Writes an interim answer, as soon as the connection is read from, which is at once, and before the head that is written
    /// next. Only while a request waits for its answer; a client of HTTP/1.0 understands none.
    pub fn write_interim(&self, answer: &[u8]) {
        let mut state = self.state();
        // An earlier answer that has not gone out yet is not written into.
        if state.is_flushed && state.interim.len() + answer.len() <= MAX_HEAD {
            state.interim.extend_from_slice(answer);
        }
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl State {
    /// Bytes that were read.
    fn keep(&mut self, bytes: &[u8]) {
        if std::mem::take(&mut self.has_written) {
            self.read.clear();
            // A connection that is idle most of the time should not hold what one large head took.
            self.read.shrink_to(ORDINARY_HEAD);
            self.has_head = false;
        }
        if self.has_head {
            return;
        }
        let (mut begin, mut from) = (0, self.read.len().saturating_sub(3));
        let room = MAX_HEAD - self.read.len();
        self.read.extend_from_slice(&bytes[..bytes.len().min(room)]);
        while let Some(end) = head::end(&self.read, from) {
            if !head::is_interim(&self.read[begin..]) {
                self.read.truncate(end);
                self.has_head = true;
                break;
            }
            // Another head follows.
            (begin, from) = (end, end);
        }
        self.read.drain(..begin);
    }

    /// What is to be written in place of these bytes, where names are to be replaced.
    fn replaced(&mut self, bytes: &[IoSlice<'_>]) -> Option<&[u8]> {
        let given = bytes.iter().map(|part| part.len()).sum::<usize>();
        if self.renamed.is_none() && !self.next.is_empty() {
            let names = std::mem::take(&mut self.next);
            if self.is_flushed {
                let mut message = Vec::with_capacity(given.min(MAX_COPY));
                for part in bytes {
                    message.extend_from_slice(&part[..part.len().min(MAX_COPY - message.len())]);
                }
                self.renamed = head::rename(&mut message, &names).then_some(Renamed { bytes: message, written: 0 });
            }
        }
        // A message that is not written yet stands before the next one, so the next write may not begin a head.
        self.is_flushed = false;
        let renamed = self.renamed.as_ref()?;
        Some(&renamed.bytes[renamed.written..renamed.bytes.len().min(renamed.written + given)])
    }

    /// So many bytes were written.
    fn wrote(&mut self, count: usize) {
        self.has_written = true;
        if let Some(renamed) = &mut self.renamed {
            renamed.written += count;
            if renamed.written >= renamed.bytes.len() {
                self.renamed = None;
            }
        }
    }
}

impl State {
    /// Remembers who reads.
    fn read_by(&mut self, cx: &Context<'_>) {
        if !self.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
            self.reader = Some(cx.waker().clone());
        }
    }

    /// Writes a waiting interim answer, between two messages. Bytes that cannot be written now are written later.
    fn poll_interim<S: AsyncWrite + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_flushed {
            // Its time is over.
            self.interim.clear();
        }
        while !self.interim.is_empty() {
            let written = ready!(Pin::new(&mut *stream).poll_write(cx, &self.interim))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.interim.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S> HeadStream<S> {
    /// Wraps a stream at the beginning of a connection.
    pub fn new(stream: S) -> Self {
        Self { stream, names: HeadNames::default() }
    }

    /// The names on this connection.
    pub fn names(&self) -> HeadNames {
        self.names.clone()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for HeadStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        {
            let mut state = this.names.state();
            state.read_by(cx);
            // A failure to write shows when the answer is written.
            let _ = state.poll_interim(&mut this.stream, cx);
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        this.names.state().keep(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut state = this.names.state();
        ready!(state.poll_interim(&mut this.stream, cx))?;
        let stream = Pin::new(&mut this.stream);
        let count = ready!(match state.replaced(bytes) {
            Some(copy) => stream.poll_write(cx, copy),
            None => stream.poll_write_vectored(cx, bytes),
        })?;
        state.wrote(count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        this.names.state().is_flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn sent(stream: &mut (impl AsyncRead + Unpin), most: usize) -> String {
        let mut bytes = vec![0; most];
        let count = stream.read(&mut bytes).await.expect("bytes");
        String::from_utf8(bytes[..count].to_vec()).expect("text")
    }

    #[tokio::test]
    async fn a_head_is_known_as_it_was_written() {
        let (mut client, server) = tokio::io::duplex(4096);
        let mut server = HeadStream::new(server);
        client.write_all(b"POST /a HTTP/1.1\r\nX-REQUEST-ID: 7\r\ncontent-type: a/B\r\n").await.expect("sent");
        sent(&mut server, 4096).await;
        assert!(server.names().take_head().is_none(), "the head is not whole");
        client.write_all(b"\r\nX-Body: 1\r\n\r\n").await.expect("sent");
        sent(&mut server, 4096).await;
        let head = server.names().take_head().expect("a head");
        assert_eq!(head.name("x-request-id"), Some("X-REQUEST-ID"));
        assert_eq!(head.name("content-type"), Some("content-type"));
        assert_eq!(head.name("x-body"), None);
        assert!(head.is_request("POST", "/a") && !head.is_request("GET", "/a") && !head.is_request("POST", "/"));
    }

    #[tokio::test]
    async fn the_next_head_is_written_with_the_names_given() {
        let (mut client, server) = tokio::io::duplex(4096);
        let mut server = HeadStream::new(server);
        server.names().write_next(["X-REQUEST-ID", "eTag", "Content-Type"].into_iter());
        let message =
            b"HTTP/1.1 200 OK\r\nX-Request-Id: etag\r\nEtag: 1\r\nContent-Length: 12\r\n\r\n\r\nEtag: 2\r\n\r";
        // Nothing depends on how much is taken at once.
        for part in [&message[..30], &message[30..]] {
            assert!(server.write(part).await.is_ok());
        }
        let (mut whole, parts) = (HeadStream::new(tokio::io::sink()), [&message[..20], &message[20..]]);
        assert_eq!(whole.write_vectored(&parts.map(IoSlice::new)).await.expect("written"), message.len());
        assert!(sent(&mut client, 4096).await.starts_with("HTTP/1.1 200 OK\r\nX-Request-Id"), "no head in one piece");

        server.flush().await.expect("flushed");
        server.names().write_next(["X-REQUEST-ID", "eTag"].into_iter());
        server.write_all(message).await.expect("written");
        let expected =
            "HTTP/1.1 200 OK\r\nX-REQUEST-ID: etag\r\neTag: 1\r\nContent-Length: 12\r\n\r\n\r\nEtag: 2\r\n\r";
        let received = sent(&mut client, 4096).await;
        assert!(received.ends_with(expected), "{received}");
    }

    #[tokio::test]
    async fn short_writes_change_nothing() {
        let (mut client, server) = tokio::io::duplex(7);
        let mut server = HeadStream::new(server);
        server.names().write_next(["ETAG"].into_iter());
        let writing = tokio::spawn(async move {
            server.write_all(b"HTTP/1.1 204 No Content\r\nEtag: 1\r\n\r\n").await.expect("written");
        });
        let mut received = String::new();
        client.read_to_string(&mut received).await.expect("all of it");
        writing.await.expect("a task");
        assert_eq!(received, "HTTP/1.1 204 No Content\r\nETAG: 1\r\n\r\n");
    }

    #[tokio::test]
    async fn an_interim_answer_is_followed_by_the_real_one() {
        let (mut server, client) = tokio::io::duplex(4096);
        let mut client = HeadStream::new(client);
        server
            .write_all(b"HTTP/1.1 103 Early Hints\r\nLINK: x\r\n\r\nHTTP/1.1 200 OK\r\nETAG: 1\r\n\r\n")
            .await
            .expect("sent");
        sent(&mut client, 4096).await;
        let head = client.names().take_head().expect("a head");
        assert_eq!((head.name("link"), head.name("etag")), (None, Some("ETAG")));
    }

    #[tokio::test]
    async fn an_interim_answer_is_written_while_the_connection_is_read() {
        const HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\n\r\n";
        let (mut client, server) = tokio::io::duplex(4096);
        let mut server = HeadStream::new(server);
        let names = server.names();
        let reading = tokio::spawn(async move {
            let read = sent(&mut server, 4096).await;
            (server, read)
        });
        tokio::task::yield_now().await;
        names.write_interim(HINTS);
        assert_eq!(sent(&mut client, 4096).await.as_bytes(), HINTS);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
        let (mut server, _) = reading.await.expect("a task");
        // If nothing was read, it is written before the next head.
        names.write_interim(HINTS);
        server.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("written");
        assert_eq!(sent(&mut client, 4096).await, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n");
    }

    #[tokio::test]
    async fn what_is_read_after_a_write_is_another_head() {
        let (mut client, server) = tokio::io::duplex(4096);
        let mut server = HeadStream::new(server);
        for name in ["X-A", "x-a"] {
            client.write_all(format!("GET / HTTP/1.1\r\n{name}: 1\r\n\r\n").as_bytes()).await.expect("sent");
            sent(&mut server, 4096).await;
            assert_eq!(server.names().take_head().expect("a head").name("X-A"), Some(name));
            server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("answered");
        }
    }
}
