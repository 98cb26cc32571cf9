//! WebSockets: the handshake, and the tunnel after it (RFC 6455).

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use faena_invoker::{BodyStream, Direction, Meter, PIECE, PipeReceiver, PipeSender, pipe};
use faena_protocol::direct::HttpHead;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tracing::debug;

use super::drain::Drain;
use super::reply;
use super::{Waiting, revoked};
use crate::app::App;
use crate::entrance::Entrance;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::versions::Current;

/// How long a client may take to close a WebSocket that is closed on our side.
const CLOSING: Duration = Duration::from_secs(5);
/// A close frame with the status 1001, going away (RFC 6455, 5.5.1 and 7.4.1).
const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xe9];

/// A client that asks for a WebSocket.
pub(super) struct Handshake {
    client: OnUpgrade,
    to_function: PipeSender,
}

/// Whether a request asks for a WebSocket.
///
/// # Errors
/// It does, and not as RFC 6455 (4.1) says.
fn is_asked(method: &Method, version: Version, headers: &HeaderMap) -> Reply<bool> {
    let has = |name, wanted: &str| {
        let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(wanted)))
    };
    if !has(header::UPGRADE, "websocket") || !has(header::CONNECTION, "upgrade") {
        return Ok(false);
    }
    let refused = |why: &str| Err(Problem::new(ErrorCode::InvalidHandshake, format!("the WebSocket handshake {why}")));
    if *method != Method::GET || version != Version::HTTP_11 {
        return refused("is no GET of HTTP/1.1");
    }
    let keys: Vec<_> = headers.get_all(header::SEC_WEBSOCKET_KEY).iter().collect();
    let is_key = |key: &&HeaderValue| STANDARD.decode(key.as_bytes()).is_ok_and(|bytes| bytes.len() == 16);
    match keys.as_slice() {
        [key] if is_key(key) => Ok(true),
        [] => refused("has no Sec-WebSocket-Key"),
        _ => refused("has a Sec-WebSocket-Key that is not 16 bytes in base64"),
    }
}

/// The handshake that a request asks for, and a stream of the bytes that its client sends after it.
pub(super) fn asked<B>(request: &mut Request<B>) -> Reply<Option<(Handshake, BodyStream)>> {
    if !is_asked(request.method(), request.version(), request.headers())? {
        return Ok(None);
    }
    let (to_function, body) = pipe(None);
    let client = hyper::upgrade::on(request);
    Ok(Some((Handshake { client, to_function }, body.map_err(Into::into).boxed_unsync())))
}

/// Why a version takes no WebSockets now.
pub(super) fn not_now(current: &Current, has_key: bool) -> Problem {
    let function = &current.code.function;
    if has_key {
        let detail = "a WebSocket cannot be repeated, so it has no Idempotency-Key";
        return Problem::new(ErrorCode::InvalidHandshake, detail).hint("leave the header out");
    }
    if current.code.concurrency.is_some() {
        let detail =
            format!("the function {function} has a concurrency limit, so its calls are queued; a WebSocket cannot be");
        return Problem::new(ErrorCode::InvalidHandshake, detail).hint("leave concurrency out of faena.toml");
    }
    let detail = format!("no worker can take a WebSocket for the function {function} yet");
    Problem::new(ErrorCode::Unavailable, detail).retry_after(1)
}

impl Handshake {
    /// Sends the function's 101 to the client, and starts the tunnel between them.
    pub(super) fn accept(
        self,
        app: &App,
        (head, entrance): (HttpHead, Entrance),
        answer: PipeReceiver,
        meter: &Meter,
        (drain, waiting): (Drain, Waiting),
    ) -> Response<Body> {
        let Self { client, to_function } = self;
        let meter = meter.clone();
        let Waiting { place, grant } = waiting;
        let revoked = revoked(app.clone(), grant);
        app.tunnels().spawn(async move {
            match client.await {
                Ok(upgraded) => tokio::select! {
                    () = tunnel(TokioIo::new(upgraded), to_function, answer, &meter, drain) => {}
                    () = revoked => debug!("a WebSocket has ended: its request would not be admitted any longer"),
                },
                Err(error) => debug!(%error, "a client of a WebSocket has gone"),
            }
            drop(place);
        });
        let mut response = reply::streamed(head, entrance, Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        response
    }
}

/// Passes bytes on in both directions until one side has closed.
async fn tunnel(
    client: impl AsyncRead + AsyncWrite + Send,
    to_function: PipeSender,
    answer: PipeReceiver,
    meter: &Meter,
    drain: Drain,
) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let up = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            match from_client.read_buf(&mut buffer).await {
                Ok(0) => return to_function.finish().await,
                // Dropped without an end: the client is gone.
                Err(_) => return,
                Ok(_) => {}
            }
            if to_function.send(Frame::data(buffer.split().freeze())).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let is_whole = pass_down(answer, &mut to_client, meter, drain).await;
        if is_whole {
            // The client closes its side next.
            let _ = to_client.shutdown().await;
        }
        is_whole
    };
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut up => {
            // The function may still answer the close.
            let _ = tokio::time::timeout(CLOSING, down).await;
        }
        is_whole = &mut down => {
            if is_whole {
                let _ = tokio::time::timeout(CLOSING, up).await;
            }
        }
    }
}

/// Passes the function's bytes to the client, and sends a close frame at a drain. False if the function broke the stream off.
async fn pass_down(
    mut answer: PipeReceiver,
    to_client: &mut (impl AsyncWrite + Unpin),
    meter: &Meter,
    drain: Drain,
) -> bool {
    let mut border = FrameBorder::default();
    let mut is_leaving = false;
    let leaving = drain.begun();
    tokio::pin!(leaving);
    loop {
        if is_leaving && border.is_here() {
            return to_client.write_all(&GOING_AWAY).await.is_ok() && to_client.flush().await.is_ok();
        }
        let frame = tokio::select! {
            frame = answer.frame() => frame,
            () = &mut leaving, if !is_leaving => {
                is_leaving = true;
                continue;
            }
        };
        let Some(Ok(frame)) = frame else { return frame.is_none() };
        let Ok(data) = frame.into_data() else { continue };
        meter.add(Direction::Response, data.len());
        let now = if is_leaving { border.up_to_border(&data) } else { border.pass(&data) };
        if to_client.write_all(&data[..now]).await.is_err() || to_client.flush().await.is_err() {
            return false;
        }
    }
}

/// Follows the frames of one direction, to know where one ends (RFC 6455, 5.2).
#[derive(Debug, Default)]
struct FrameBorder {
    /// The head of the frame that is being read, as far as it is known.
    head: Vec<u8>,
    /// What is left of its payload.
    left: u64,
}

impl FrameBorder {
    /// Whether the next byte begins a frame.
    fn is_here(&self) -> bool {
        self.head.is_empty() && self.left == 0
    }

    /// How long a head is that begins like this, and the payload behind it, once both are known.
    fn lengths(head: &[u8]) -> Option<(usize, u64)> {
        let second = *head.get(1)?;
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        match second & 0x7f {
            126 => {
                let length: [u8; 2] = head.get(2..4)?.try_into().ok()?;
                Some((4 + mask, u64::from(u16::from_be_bytes(length))))
            }
            127 => {
                let length: [u8; 8] = head.get(2..10)?.try_into().ok()?;
                Some((10 + mask, u64::from_be_bytes(length)))
            }
            length => Some((2 + mask, u64::from(length))),
        }
    }

    /// Takes one more piece; how many bytes of it were taken.
    fn step(&mut self, bytes: &[u8]) -> usize {
        if self.left > 0 {
            let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            self.left -= taken as u64;
            return taken;
        }
        self.head.push(bytes[0]);
        if let Some((length, payload)) = Self::lengths(&self.head)
            && self.head.len() >= length
        {
            self.head.clear();
            self.left = payload;
        }
        1
    }

    /// Follows bytes that pass, all of them.
    fn pass(&mut self, bytes: &Bytes) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            taken += self.step(&bytes[taken..]);
        }
        taken
    }

    /// Follows bytes up to the end of the frame under way.
    fn up_to_border(&mut self, bytes: &Bytes) -> usize {
        let mut taken = 0;
        while taken < bytes.len() && !self.is_here() {
            taken += self.step(&bytes[taken..]);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: usize) -> Vec<u8> {
        let mut frame = vec![0x82];
        match length {
            0..=125 => frame.push(u8::try_from(length).expect("small")),
            126..=65_535 => {
                frame.push(126);
                frame.extend(u16::try_from(length).expect("small").to_be_bytes());
            }
            _ => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(vec![0x88; length]);
        frame
    }

    #[test]
    fn borders_are_found_however_the_bytes_are_cut() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let bytes = frame(length);
            for piece in [1, 3, 7, bytes.len()] {
                let mut border = FrameBorder::default();
                let mut borders = 0;
                for part in bytes.chunks(piece) {
                    border.pass(&Bytes::copy_from_slice(part));
                    borders += usize::from(border.is_here());
                }
                assert_eq!(borders, 1, "{length} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn nothing_passes_after_the_border() {
        let mut border = FrameBorder::default();
        let bytes: Bytes = [frame(5), frame(9)].concat().into();
        border.pass(&bytes.slice(..3));
        assert_eq!(border.up_to_border(&bytes.slice(3..)), 4);
        assert_eq!(border.up_to_border(&bytes.slice(7..)), 0);
    }

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let parsed = list.iter().map(|(name, value)| {
            (header::HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"))
        });
        parsed.collect()
    }

    #[test]
    fn a_handshake_needs_what_the_rfc_says() {
        const UPGRADE: [(&str, &str); 2] = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];
        let asked = |method: &Method, version, more: &[(&str, &str)]| {
            is_asked(method, version, &headers(&[&UPGRADE, more].concat())).ok()
        };
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(asked(&Method::GET, Version::HTTP_11, &[key]), Some(true));
        assert_eq!(asked(&Method::GET, Version::HTTP_11, &[]), None);
        assert_eq!(asked(&Method::GET, Version::HTTP_11, &[key, key]), None);
        assert_eq!(asked(&Method::GET, Version::HTTP_11, &[("sec-websocket-key", "c2hvcnQ=")]), None);
        assert_eq!(asked(&Method::POST, Version::HTTP_11, &[key]), None);
        assert_eq!(asked(&Method::GET, Version::HTTP_10, &[key]), None);
        assert_eq!(is_asked(&Method::GET, Version::HTTP_11, &headers(&[("upgrade", "h2c")])).ok(), Some(false));
        assert_eq!(is_asked(&Method::GET, Version::HTTP_11, &headers(&UPGRADE[1..])).ok(), Some(false));
    }
}
