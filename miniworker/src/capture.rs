//! What an instance writes, read as it comes and kept up to a bound.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use faena_domain::Timestamp;
use faena_domain::log::LogBuffer;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::live::SharedBuffer;

/// What happens to what comes after the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    /// It is read and dropped, so that the writer goes on.
    Drop,
    /// Reading ends, and [`LogBuffer::is_cut`] tells why.
    Stop,
}

/// A pipe whose reading end is ours and whose writing end is the instance's.
pub(crate) fn pipe() -> io::Result<(Receiver, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((Receiver::from_owned_fd(read)?, write))
}

/// Lets the instance's user open its streams by their names in /dev, as programs do.
pub(crate) fn share(pipe: &OwnedFd) {
    // The owner of a pipe may change its mode.
    let _ = rustix::fs::fchmod(pipe, rustix::fs::Mode::from_raw_mode(0o666));
}

/// Wall time: what lines of a log are stamped with.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Reads to the end, or as the bound says, and takes out what was read.
pub(crate) async fn read(mut from: Receiver, to: SharedBuffer, beyond: Beyond) -> io::Result<LogBuffer> {
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut chunk).await?;
        let mut buffer = to.lock();
        buffer.push(now(), &chunk[..read]);
        if read == 0 || (buffer.is_cut() && beyond == Beyond::Stop) {
            return Ok(buffer.take());
        }
    }
}
