//! What an instance writes, read as it comes and kept up to a bound.

use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// Bytes up to a bound.
#[derive(Debug, Default)]
pub(crate) struct Captured {
    pub(crate) bytes: Vec<u8>,
    /// Whether there was more.
    pub(crate) cut: bool,
}

impl Captured {
    /// The text for people, with a mark where it was cut.
    pub(crate) fn into_log(self) -> String {
        let mut text = String::from_utf8(self.bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        if self.cut {
            text.push_str("\n[the rest was cut]\n");
        }
        text
    }
}

/// What happens to what comes after the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    /// It is read and dropped, so that the writer goes on.
    Drop,
    /// Reading ends; whoever waits is told by [`Captured::cut`].
    Stop,
}

/// A pipe whose reading end is ours and whose writing end is the instance's.
pub(crate) fn pipe() -> io::Result<(Receiver, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((Receiver::from_owned_fd(read)?, write))
}

/// Lets the instance's user open its streams by their names in /dev, as programs do.
pub(crate) fn share(pipe: &OwnedFd) {
    // Whoever made it may.
    let _ = rustix::fs::fchmod(pipe, rustix::fs::Mode::from_raw_mode(0o666));
}

/// Reads to the end, or as the bound says.
pub(crate) async fn read(mut from: Receiver, most: u64, beyond: Beyond) -> io::Result<Captured> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut captured = Captured::default();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut chunk).await?;
        if read == 0 {
            return Ok(captured);
        }
        let room = (most - captured.bytes.len()).min(read);
        captured.bytes.extend_from_slice(&chunk[..room]);
        captured.cut |= room < read;
        if captured.cut && beyond == Beyond::Stop {
            return Ok(captured);
        }
    }
}
