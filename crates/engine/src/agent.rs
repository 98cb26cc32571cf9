//! The way to an agent.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use faena_instance_protocol::{Decoder, FrameError, Outgoing, ToAgent, ToMiniworker};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::host::host_program;

/// The agent's program, built from this tree.
const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/faena-agent"));
/// What makes an interpreter of this host a spawner; empty where it could not be built.
const ZYGOTE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/zygote.so"));

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

/// A stream of frames, with the descriptors that come with them.
#[derive(Debug)]
pub struct FrameSocket {
    stream: Arc<UnixStream>,
    decoder: Decoder,
}

/// Sends through a [`FrameSocket`].
#[derive(Clone, Debug)]
pub struct FrameSender(Arc<UnixStream>);

impl FrameSender {
    /// Sends a frame whole. If this is cancelled, the socket has to be closed.
    ///
    /// # Errors
    /// [`AgentError`]; the socket has to be closed.
    pub async fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), AgentError> {
        let mut outgoing = Outgoing::new(message, fds)?;
        while !self.0.async_io(Interest::WRITABLE, || outgoing.write(self.0.as_fd())).await? {}
        Ok(())
    }
}

impl FrameSocket {
    /// Takes over our end of a socket.
    ///
    /// # Errors
    /// A socket that cannot be registered with the runtime.
    pub fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream: Arc::new(UnixStream::from_std(stream)?), decoder: Decoder::default() })
    }

    /// The sending half, beside the receiving one.
    pub fn sender(&self) -> FrameSender {
        FrameSender(Arc::clone(&self.stream))
    }

    /// The next frame; cancel-safe.
    ///
    /// # Errors
    /// [`AgentError`]; the socket has to be closed.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<OwnedFd>), AgentError> {
        loop {
            if let Some(frame) = self.decoder.decode()? {
                return Ok(frame);
            }
            let Self { stream, decoder } = self;
            let read = stream.async_io(Interest::READABLE, || decoder.read(&**stream)).await?;
            if read == 0 {
                return Err(AgentError::Gone);
            }
        }
    }
}

/// A stream of frames to and from one agent.
#[derive(Debug)]
pub struct AgentSocket(FrameSocket);

impl AgentSocket {
    /// Takes over our end of a socket.
    ///
    /// # Errors
    /// A socket that cannot be registered with the runtime.
    pub fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        FrameSocket::new(stream).map(Self)
    }

    pub(crate) fn from_stream(stream: UnixStream) -> Self {
        Self(FrameSocket { stream: Arc::new(stream), decoder: Decoder::default() })
    }

    /// The next frame; cancel-safe.
    ///
    /// # Errors
    /// [`AgentError`]; the instance has to be destroyed.
    pub async fn receive(&mut self) -> Result<(ToMiniworker, Vec<OwnedFd>), AgentError> {
        self.0.receive().await
    }

    /// Sends a frame whole.
    ///
    /// # Errors
    /// [`AgentError`]; the instance has to be destroyed.
    pub async fn send(&self, message: &ToAgent, fds: &[BorrowedFd<'_>]) -> Result<(), AgentError> {
        self.0.sender().send(message, fds).await
    }
}

/// Programs of ours that keep a user's handler alive, by the names that they have in an instance.
const SHIMS: [(&str, &[u8]); 6] = [
    ("python.py", include_bytes!("../../../runtimes/python/start.py")),
    ("_faena.py", include_bytes!("../../../runtimes/python/_faena.py")),
    ("_faena_parallel.py", include_bytes!("../../../runtimes/python/_faena_parallel.py")),
    ("_faena_stream.py", include_bytes!("../../../runtimes/python/_faena_stream.py")),
    ("_faena_zygote.py", include_bytes!("../../../runtimes/python/_faena_zygote.py")),
    ("node.mjs", include_bytes!("../../../runtimes/node/shim.mjs")),
];
/// Keeps the bytecode of modules that never change where they lie (docs.python.org, `py_compile`).
const COMPILE: &str = r"
import os, py_compile, sys

os.umask(0o022)
never = py_compile.PycInvalidationMode.UNCHECKED_HASH
for file in sys.argv[2:]:
    py_compile.compile(file, dfile=os.path.join(sys.argv[1], os.path.basename(file)), doraise=True, invalidation_mode=never)
";

/// Writes the shims below a folder; returns the folder that they lie in, named by their hash. Python's are compiled
/// meanwhile: a start does not wait for it.
///
/// # Errors
/// A folder that cannot be written to.
pub fn install_shims(folder: &Path) -> io::Result<PathBuf> {
    let mut hash = Sha256::new();
    SHIMS.iter().for_each(|(_, bytes)| hash.update(bytes));
    let place = folder.join(format!("shims-{}", hex::encode(&hash.finalize()[..8])));
    if !place.is_dir() {
        write_shims(folder, &place)?;
    }
    if !place.join("__pycache__").is_dir() {
        let place = place.clone();
        std::thread::spawn(move || compile(&place));
    }
    Ok(place)
}

/// Writes the shims beside their folder, and moves them there whole.
fn write_shims(folder: &Path, place: &Path) -> io::Result<()> {
    let passing = folder.join(format!("shims.{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir(&passing)?;
    for (name, bytes) in SHIMS {
        std::fs::write(passing.join(name), bytes)?;
        std::fs::set_permissions(passing.join(name), std::fs::Permissions::from_mode(0o444))?;
    }
    std::fs::set_permissions(&passing, std::fs::Permissions::from_mode(0o755))?;
    std::fs::rename(&passing, place)
}

/// Has this host's Python compile its shim once, rather than at each start. It is the Python that instances find, not one
/// of the worker's own PATH; another version compiles the shim itself.
fn compile(folder: &Path) {
    let Some(python) = host_program("python3") else { return };
    let modules = SHIMS.iter().map(|(name, _)| *name).filter(|name| name.starts_with('_'));
    let compiled = std::process::Command::new(python)
        .env_clear()
        .args(["-I", "-S", "-c", COMPILE, faena_instance_protocol::SHIMS])
        .args(modules.map(|name| folder.join(name)))
        .stdin(std::process::Stdio::null())
        .output();
    if !compiled.as_ref().is_ok_and(|output| output.status.success()) {
        tracing::debug!(?compiled, "the shim of Python is compiled at each start");
    }
}

/// Writes the agent's program below a folder, named by its hash; returns where it lies.
///
/// # Errors
/// A folder that cannot be written to.
pub fn install_agent(folder: &Path) -> io::Result<PathBuf> {
    install(folder, "agent", AGENT)
}

/// Writes the zygote's library below a folder, named by its hash; returns where it lies, where there is one.
///
/// # Errors
/// A folder that cannot be written to.
pub fn install_zygote(folder: &Path) -> io::Result<Option<PathBuf>> {
    if ZYGOTE.is_empty() { Ok(None) } else { install(folder, "zygote", ZYGOTE).map(Some) }
}

fn install(folder: &Path, kind: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let name = hex::encode(&Sha256::digest(bytes)[..8]);
    let path = folder.join(format!("{kind}-{name}"));
    if std::fs::read(&path).is_ok_and(|found| found == bytes) {
        return Ok(path);
    }
    let passing = folder.join(format!("{kind}-{name}.{}", uuid::Uuid::new_v4().simple()));
    std::fs::write(&passing, bytes)?;
    std::fs::set_permissions(&passing, std::fs::Permissions::from_mode(0o555))?;
    std::fs::rename(&passing, &path)?;
    Ok(path)
}
