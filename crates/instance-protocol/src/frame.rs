//! Frames as bytes and descriptors; no reader and no writer here blocks longer than one system call.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest body of a frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;
/// The most descriptors of a frame.
pub const MAX_FDS: usize = 8;
const HEADER: usize = 5;

/// Why a peer is not listened to any longer.
#[derive(Debug)]
pub enum FrameError {
    /// A frame over [`MAX_FRAME`] or with too many descriptors.
    TooLarge,
    /// A body that is no message.
    Malformed,
    /// Descriptors that were promised did not come, or others came.
    Descriptors,
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "a frame is over the limit",
            Self::Malformed => "a frame holds no message",
            Self::Descriptors => "a frame's descriptors are not those it promised",
        })
    }
}

impl std::error::Error for FrameError {}

/// A frame on its way out.
#[derive(Debug)]
pub struct Outgoing<'a> {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<BorrowedFd<'a>>,
}

impl<'a> Outgoing<'a> {
    /// Encodes a message with the descriptors that go with it.
    ///
    /// # Errors
    /// A message over the limits.
    pub fn new(message: &impl Serialize, fds: &[BorrowedFd<'a>]) -> Result<Self, FrameError> {
        let body = postcard::to_allocvec(message).map_err(|_| FrameError::Malformed)?;
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_FRAME).ok_or(FrameError::TooLarge)?;
        let count = u8::try_from(fds.len()).ok().filter(|_| fds.len() <= MAX_FDS).ok_or(FrameError::TooLarge)?;
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.push(count);
        bytes.extend_from_slice(&body);
        Ok(Self { bytes, sent: 0, fds: fds.to_vec() })
    }

    /// Writes as much as the socket takes; true when all of it is out.
    ///
    /// # Errors
    /// What sendmsg(2) says; `WouldBlock` where the socket is full.
    pub fn write(&mut self, socket: impl AsFd) -> io::Result<bool> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        // The descriptors go with the first byte.
        if self.sent == 0 && !self.fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&self.fds));
        }
        let slice = [IoSlice::new(&self.bytes[self.sent..])];
        self.sent += sendmsg(socket, &slice, &mut control, SendFlags::NOSIGNAL)?;
        Ok(self.sent == self.bytes.len())
    }
}

/// Takes frames apart; holds at most one frame and what one read brought.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Decoder {
    /// Reads once; 0 is the end of the stream.
    ///
    /// # Errors
    /// What recvmsg(2) says; `WouldBlock` where nothing is there.
    pub fn read(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut chunk = [0; 8192];
        let received = recvmsg(socket, &mut [IoSliceMut::new(&mut chunk)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        self.bytes.extend_from_slice(&chunk[..received.bytes]);
        Ok(received.bytes)
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// [`FrameError`]; nothing after it can be trusted.
    pub fn decode<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, FrameError> {
        if self.fds.len() > 2 * MAX_FDS {
            return Err(FrameError::Descriptors);
        }
        let Some((header, rest)) = self.bytes.split_at_checked(HEADER) else { return Ok(None) };
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let count = usize::from(header[4]);
        if length > MAX_FRAME || count > MAX_FDS {
            return Err(FrameError::TooLarge);
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = postcard::from_bytes(body).map_err(|_| FrameError::Malformed)?;
        if self.fds.len() < count {
            return Err(FrameError::Descriptors);
        }
        let fds = self.fds.drain(..count).collect();
        self.bytes.drain(..HEADER + length);
        Ok(Some((message, fds)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::{ToAgent, ToMiniworker};

    fn lease(until_ms: u64) -> ToAgent {
        ToAgent::Lease { until_ms }
    }

    fn decode_all(bytes: &[u8]) -> Result<Vec<ToAgent>, FrameError> {
        let mut decoder = Decoder { bytes: bytes.to_vec(), fds: VecDeque::new() };
        let mut messages = Vec::new();
        while let Some((message, _)) = decoder.decode()? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[test]
    fn frames_arrive_with_their_descriptors_however_they_are_cut() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut out, passed) = UnixStream::pair().unwrap();
        assert!(Outgoing::new(&lease(1), &[]).unwrap().write(&here).unwrap());
        let pack = ToAgent::Pack { path: "/ws".into() };
        assert!(Outgoing::new(&pack, &[passed.as_fd()]).unwrap().write(&here).unwrap());
        let mut decoder = Decoder::default();
        let mut got = Vec::new();
        while got.len() < 2 {
            decoder.read(&there).unwrap();
            while let Some(frame) = decoder.decode::<ToAgent>().unwrap() {
                got.push(frame);
            }
        }
        assert_eq!((&got[0].0, &got[1].0), (&lease(1), &pack));
        let mut received = UnixStream::from(got.remove(1).1.remove(0));
        out.write_all(b"x").unwrap();
        let mut byte = [0];
        received.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn hostile_bytes_are_errors_and_no_panic() {
        assert!(matches!(decode_all(&[255; 5]), Err(FrameError::TooLarge)));
        assert!(matches!(decode_all(&[1, 0, 0, 0, 0, 255]), Err(FrameError::Malformed)));
        let promised = Outgoing::new(&lease(1), &[]).map(|frame| {
            let mut bytes = frame.bytes;
            bytes[4] = 1;
            bytes
        });
        assert!(matches!(decode_all(&promised.unwrap()), Err(FrameError::Descriptors)));
        assert!(decode_all(&[7, 0]).unwrap().is_empty());
    }

    #[test]
    fn a_message_over_the_limit_is_not_sent() {
        let message = ToMiniworker::Packed { error: Some("x".repeat(MAX_FRAME + 1)) };
        assert!(matches!(Outgoing::new(&message, &[]), Err(FrameError::TooLarge)));
    }
}
