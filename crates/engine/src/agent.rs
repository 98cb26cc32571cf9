//! The way to an agent.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use faena_instance_protocol::{Decoder, FrameError, Outgoing, ToAgent, ToMiniworker};
use sha2::{Digest, Sha256};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The agent's program, built from this tree.
const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/faena-agent"));

/// Why an agent is not listened to any longer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its socket ended: the instance is gone.
    #[error("the instance is gone")]
    Gone,
    /// Its socket failed.
    #[error("the socket of the instance failed")]
    Socket(#[from] io::Error),
    /// It sent what no agent sends.
    #[error("the instance sent what no agent sends")]
    Frame(#[from] FrameError),
}

/// A stream of frames to and from one agent.
#[derive(Debug)]
pub struct AgentSocket {
    stream: UnixStream,
    decoder: Decoder,
}

impl AgentSocket {
    /// Takes over our end of a socket.
    ///
    /// # Errors
    /// A socket that cannot be registered with the runtime.
    pub fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(stream)?, decoder: Decoder::default() })
    }

    pub(crate) fn from_stream(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::default() }
    }

    /// The next frame; cancel-safe.
    ///
    /// # Errors
    /// [`AgentError`]; the instance has to be destroyed.
    pub async fn receive(&mut self) -> Result<(ToMiniworker, Vec<OwnedFd>), AgentError> {
        loop {
            if let Some(frame) = self.decoder.decode()? {
                return Ok(frame);
            }
            let Self { stream, decoder } = self;
            let read = stream.async_io(Interest::READABLE, || decoder.read(&*stream)).await?;
            if read == 0 {
                return Err(AgentError::Gone);
            }
        }
    }

    /// Sends a frame whole.
    ///
    /// # Errors
    /// [`AgentError`]; the instance has to be destroyed.
    pub async fn send(&self, message: &ToAgent, fds: &[BorrowedFd<'_>]) -> Result<(), AgentError> {
        let mut outgoing = Outgoing::new(message, fds)?;
        while !self.stream.async_io(Interest::WRITABLE, || outgoing.write(self.stream.as_fd())).await? {}
        Ok(())
    }
}

/// Writes the agent's program below a folder, named by its hash; returns where it lies.
///
/// # Errors
/// A folder that cannot be written to.
pub fn install_agent(folder: &Path) -> io::Result<PathBuf> {
    let digest = Sha256::digest(AGENT);
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let path = folder.join(format!("agent-{name}"));
    if std::fs::read(&path).is_ok_and(|bytes| bytes == AGENT) {
        return Ok(path);
    }
    let passing = folder.join(format!("agent-{name}.{}", uuid::Uuid::new_v4().simple()));
    std::fs::write(&passing, AGENT)?;
    std::fs::set_permissions(&passing, std::fs::Permissions::from_mode(0o555))?;
    std::fs::rename(&passing, &path)?;
    Ok(path)
}
