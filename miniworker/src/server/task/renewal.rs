//! Instances in which each call has a process of its own: what a call leaves is gone before the next one begins.
//!
//! The process that has loaded the version forks for each call and tells how the fork ended. When a call has ended,
//! however that was, the agent kills whatever is there beside that process and itself, and removes what was left outside
//! `path`; then the code is mounted again.

use std::io;

use bytes::Buf;
use faena_domain::Layer;
use faena_gateway::Counters;
use faena_instance_protocol::Exit;
use faena_instance_protocol::handler::{HEADER, Header, Kind};
use tokio::net::unix::pipe::Receiver;

use super::{EndReason, Task};
use crate::egress::Connections;
use crate::instance::{self, CLEAN, Unclean};
use crate::server::InFlight;
use crate::{capture, result};

/// The bytes that tell how a process ended.
const EXIT: u32 = 4;

/// What a call was in an instance that is to be made as new.
pub(in crate::server) struct Used {
    /// The number of the call in this instance.
    id: u64,
    /// How its process ended, where that has been told.
    exit: Option<Exit>,
}

impl Used {
    pub(super) fn of(flight: &InFlight) -> Self {
        Self { id: flight.id, exit: None }
    }
}

/// How a process ended (wait(2), as Linux encodes it).
fn exit_of(body: &[u8]) -> Option<Exit> {
    let status = i32::from_le_bytes(body.try_into().ok()?);
    Some(match status & 0x7f {
        0 => Exit::Code((status >> 8) & 0xff),
        signal => Exit::Signal(signal),
    })
}

/// Takes all that a pipe holds, as the kernel knows it; whether there was anything. Every process that could write to it is dead.
fn rest_of(pipe: &Receiver, into: &mut impl Extend<u8>) -> Result<bool, EndReason> {
    let (mut chunk, mut has_come) = ([0; 4096], false);
    loop {
        match rustix::io::read(pipe, &mut chunk) {
            Ok(0) | Err(rustix::io::Errno::WOULDBLOCK) => return Ok(has_come),
            Ok(read) => {
                into.extend(chunk[..read].iter().copied());
                has_come = true;
            }
            Err(error) => return Err(EndReason::Lost(error.to_string())),
        }
    }
}

impl Task {
    /// A fork has ended: that of the call under way, or of the one that was answered just now. Earlier ones are of no
    /// interest any more.
    pub(super) fn own_process_ended(&mut self, id: u64, body: &[u8]) -> Result<(), EndReason> {
        let exit =
            exit_of(body).ok_or_else(|| EndReason::Lost("its process sent bytes that are no frame".to_owned()))?;
        let flight = self.server.traffic().in_flight.iter().find(|flight| flight.id == id).map(Used::of);
        if let Some(used) = self.used.as_mut().filter(|used| used.id == id) {
            used.exit = Some(exit);
        } else if let Some(used) = flight {
            self.used = Some(Used { exit: Some(exit), ..used });
        }
        Ok(())
    }

    /// Takes what is left of its answers: that the fork has ended, and nothing else. Every process that could have written
    /// to it is dead by now, but for the process that forks, which waits for the next call.
    async fn last_frames(&mut self, used: &mut Used) -> Result<(), EndReason> {
        let lost = |why: &str| EndReason::Lost(why.to_owned());
        let end = tokio::time::Instant::now() + CLEAN;
        loop {
            while let Some(head) = self.incoming.first_chunk::<HEADER>() {
                let header = Header::decode(head).ok_or_else(|| lost("its process sent bytes that are no frame"))?;
                if header.kind != Kind::Ended || header.length != EXIT {
                    return Err(lost("a call's process left an answer behind"));
                }
                if self.incoming.len() < HEADER + EXIT as usize {
                    break;
                }
                self.incoming.advance(HEADER);
                let exit = exit_of(&self.incoming.split_to(EXIT as usize));
                if header.id == used.id {
                    used.exit = exit;
                }
            }
            let Some(answers) = &mut self.answers else {
                return Err(lost("its process closed the pipe of its answers"));
            };
            match answers.try_read_buf(&mut self.incoming) {
                Ok(0) => return Err(lost("its process closed what it answers on")),
                Ok(_) => {}
                // It may be that the runtime has not heard yet of what the pipe holds: only the kernel knows.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && rest_of(answers, &mut self.incoming)? => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if used.exit.is_some() {
                        let is_whole = self.incoming.is_empty();
                        return if is_whole { Ok(()) } else { Err(lost("a call's process left half a frame behind")) };
                    }
                    // One that was not forked before the others were killed would run now.
                    match tokio::time::timeout_at(end, answers.readable()).await {
                        Ok(Ok(())) => {}
                        _ => return Err(lost("its process does not tell that the call's own has ended")),
                    }
                }
                Err(error) => return Err(EndReason::Lost(error.to_string())),
            }
        }
    }

    /// Makes the instance as new, and tells the pool.
    pub(super) async fn renew(&mut self, mut used: Used) -> Result<(), EndReason> {
        let lost = |error: &dyn std::fmt::Display| EndReason::Lost(error.to_string());
        let oom_kills = instance::clean(&mut self.agent).await.map_err(|error| match error {
            Unclean::Ended(ended) => EndReason::Ended(ended),
            Unclean::Lost(error) => EndReason::Lost(error),
        })?;
        self.last_frames(&mut used).await?;
        self.drain_output();
        if let Some(output) = &self.output {
            let mut rest = Vec::new();
            rest_of(output, &mut rest)?;
            self.server.log().push(capture::now(), &rest);
        }
        if let (Some(exit), Some(flight)) = (used.exit, self.take(used.id)) {
            let when = (Layer::Run, " before it answered");
            let error = result::fallen(exit, oom_kills, self.server.code.limits.memory, when);
            let end = flight.call.failed(flight.began, error);
            self.end(flight, end);
        }
        // What came after the answer is nobody's.
        drop(self.server.log().take());
        if let Some(egress) = &self.egress {
            egress.end_call(Counters::default(), Connections::Reset);
        }
        if oom_kills > 0 {
            // What the process that forks has of memory may be what was missing.
            return Err(EndReason::Retired);
        }
        let guard = self.server.guard.lock().take();
        let Some(mut guard) = guard else { return Err(lost(&"the instance is gone")) };
        let mounted = guard.mount_code(self.tree.path()).await;
        *self.server.guard.lock() = Some(guard);
        mounted.map_err(|error| lost(&error))?;
        // No process of a call is left that could say something.
        self.given_up.clear();
        self.server.traffic().is_renewing = false;
        self.server.owner.finished();
        Ok(())
    }
}
