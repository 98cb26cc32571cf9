//! The calls of an instance, and the bytes that wait for its process.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use bytes::{Buf, Bytes};
use tokio::net::unix::pipe::Sender;
use tokio_util::task::AbortOnDropHandle;

use super::task::HandlerStream;
use crate::call::InstanceCall;
use crate::egress::EgressCall;

/// What a pipe holds through which large frames have come (pipe(7): the most that an ordinary user may have).
const WIDE: usize = 1024 * 1024;

/// A call that an instance works at.
pub(super) struct InFlight {
    pub(super) id: u64,
    pub(super) began: Instant,
    pub(super) call: Box<InstanceCall>,
    /// The answer of a server has begun, and is a stream.
    pub(super) is_streaming: bool,
    /// The streamed answer of a handler.
    pub(super) stream: Option<HandlerStream>,
    /// What it is to the egress of its instance, where that has some.
    pub(super) egress: Option<EgressCall>,
    /// The exchange with a process that speaks HTTP. Dropping it closes the connection.
    pub(super) _exchange: Option<AbortOnDropHandle<()>>,
}

impl InFlight {
    /// A call whose answer has not begun.
    pub(super) fn new(
        id: u64,
        began: Instant,
        call: Box<InstanceCall>,
        egress: Option<EgressCall>,
        exchange: Option<AbortOnDropHandle<()>>,
    ) -> Self {
        Self { id, began, call, is_streaming: false, stream: None, egress, _exchange: exchange }
    }
}

/// The calls of an instance: what those that hand calls over share with its task.
#[derive(Default)]
pub(super) struct Traffic {
    pub(super) in_flight: Vec<InFlight>,
    /// What the pipe did not take at once.
    pub(super) unsent: VecDeque<Bytes>,
    pub(super) next: u64,
    pub(super) frozen: bool,
    /// A call had a process of its own, of which the instance is being cleaned.
    pub(super) is_renewing: bool,
    /// Its pipe holds more than a pipe does at first.
    pub(super) is_widened: bool,
    /// It takes no more calls.
    pub(super) closed: bool,
    /// Its process reads no more: what is under way will not be answered.
    pub(super) has_closed_input: bool,
    /// The earliest deadline that its task waits for.
    pub(super) armed: Option<Instant>,
}

/// Has a pipe hold more, so that large frames travel in fewer pieces. A kernel that permits no more leaves it as it is.
pub(super) fn widen(pipe: &impl std::os::fd::AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, WIDE);
}

/// Writes the waiting bytes; true if none are left.
pub(super) fn flush(calls: &Sender, traffic: &mut Traffic) -> bool {
    while let Some(first) = traffic.unsent.front_mut() {
        match calls.try_write(first) {
            Ok(written) => {
                first.advance(written);
                if first.is_empty() {
                    traffic.unsent.pop_front();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            // It listens no more. Its end says why; nothing is ever written to it again.
            Err(_) => {
                traffic.unsent.clear();
                traffic.closed = true;
                traffic.has_closed_input = true;
            }
        }
    }
    true
}
