//! What makes instances.
//!
//! An [`Engine`] turns an [`InstanceSpec`] into an [`Instance`]: an isolated place in which an agent is PID 1, and
//! the socket that leads to it. Docker and the sandbox keep the same promises (docs/reference/safety.md); one
//! conformance suite holds both to them.

mod agent;
mod cgroup;
mod docker;
mod host;
mod meter;
mod network;
mod sandbox;
mod spawner;
mod uids;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use faena_domain::{BlobKey, EngineKind, Limits};
use faena_instance_protocol::Run;

pub use agent::{AgentError, AgentSocket, FrameSender, FrameSocket, install_agent, install_shims, install_zygote};
pub use docker::{CodeBy, Docker, DockerConfig};
pub use network::InstanceNetwork;
pub use sandbox::{Layer, Sandbox, SandboxConfig, SandboxError, Unpack};
pub use uids::Uids;

/// Which platform, worker and run of it an instance belongs to; only an exact match of the first two with another
/// third is an orphan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Belonging {
    /// The platform's random id.
    pub platform: String,
    /// The worker's name.
    pub worker: String,
    /// This run of the worker.
    pub incarnation: String,
}

/// One instance to be made.
#[derive(Clone, Debug)]
pub struct InstanceSpec {
    /// Its name, unique among the live ones of this worker; letters, digits and `-`.
    pub name: String,
    /// The image, as [`Engine::resolve`] answered it.
    pub image: ImageId,
    /// The unpacked code, which is never written to; none where it is mounted later.
    pub code: Option<PathBuf>,
    /// Where the code appears.
    pub path: String,
    /// What it may use.
    pub limits: Limits,
    /// Whether it has egress: an agent that listens for the proxy, and a network device where the engine can make one.
    pub egress: bool,
    /// A bundle of certificate authorities to mount at [`CA_BUNDLE`].
    pub ca_bundle: Option<PathBuf>,
    /// A process that it may be born with, where the engine holds an interpreter ready for it.
    pub resident: Option<Arc<PreloadedProcess>>,
}

/// A process that answers many calls, known before its instance is made.
#[derive(Debug)]
pub struct PreloadedProcess {
    /// What is run.
    pub run: Run,
    /// Who may know what of it: interpreters are shared within a domain alone.
    pub domain: String,
    /// Its standard input.
    pub input: OwnedFd,
    /// What takes its output.
    pub output: OwnedFd,
    /// What takes its answers, where it speaks frames.
    pub answers: Option<OwnedFd>,
}

pub use faena_launcher::CA_BUNDLE;

/// What identifies an image or root file system, and is recorded with a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageId(pub String);

/// An image of the platform, on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalImage {
    /// Which.
    pub key: BlobKey,
    /// What it takes of the disk.
    pub bytes: u64,
}

/// A made instance; its agent has said that it is ready.
#[derive(Debug)]
pub struct Instance {
    /// The way to its agent.
    pub agent: AgentSocket,
    /// The listener of the egress proxy, where one was asked for.
    pub listener: Option<std::net::TcpListener>,
    /// Its network device, where it has one: who holds this reads what the instance sends, and writes what it receives.
    pub device: Option<OwnedFd>,
    /// Whether its [`PreloadedProcess`] runs already.
    pub is_inhabited: bool,
    /// What destroys it.
    pub guard: Box<dyn InstanceHandle>,
}

/// Holds an instance. Dropping it without [`InstanceHandle::destroy`] closes the agent's socket, which ends the instance too,
/// but leaves what lies on the host to the next start.
#[async_trait]
pub trait InstanceHandle: Send + Sync + std::fmt::Debug {
    /// Kills everything in the instance and removes what it left on the host.
    async fn destroy(self: Box<Self>);

    /// Mounts code at `path`, as if nothing had ever been written there. No process of the user's may run.
    ///
    /// # Errors
    /// [`EngineError`]; the instance has to be destroyed.
    async fn mount_code(&mut self, code: &Path) -> Result<(), EngineError>;

    /// Stops every process of the instance where it stands, until [`InstanceHandle::thaw`]. Takes no CPU meanwhile.
    ///
    /// # Errors
    /// A control group that cannot be written to, or none that freezes.
    fn freeze(&self) -> io::Result<()>;

    /// Lets a frozen instance go on.
    ///
    /// # Errors
    /// A control group that cannot be written to.
    fn thaw(&self) -> io::Result<()>;

    /// What the user's processes hold of memory, in bytes.
    fn memory(&self) -> Option<u64>;

    /// What the user's processes have used since the instance was made.
    fn usage(&self) -> Usage;

    /// What the kernel tells of its network; none where that cannot be seen from here.
    fn network(&self) -> Option<InstanceNetwork> {
        None
    }
}

/// What processes have used; none where the kernel does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The most memory that they held at once, in bytes.
    pub peak_memory: Option<u64>,
    /// CPU time, in microseconds.
    pub cpu_us: Option<u64>,
}

/// Why an engine could not do it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The image is not there and cannot be had.
    #[error("{0}")]
    Image(String),
    /// The engine does not answer, or cannot make anything at the moment.
    #[error("the engine {engine} is not available: {message}")]
    Unavailable {
        /// Which.
        engine: EngineKind,
        /// What it said.
        message: String,
    },
    /// Something of it was killed, or failed, while it was made; the next one may well be made.
    #[error("the instance was lost while it was made, {step}: {message}")]
    Lost {
        /// What was being done.
        step: String,
        /// What went wrong.
        message: String,
    },
    /// The instance could not be made.
    #[error("{step}: {message}")]
    Create {
        /// What was being done.
        step: String,
        /// What went wrong.
        message: String,
    },
}

impl EngineError {
    pub(crate) fn lost(step: impl Into<String>, error: impl std::fmt::Display) -> Self {
        Self::Lost { step: step.into(), message: error.to_string() }
    }

    pub(crate) fn create(step: impl Into<String>, error: impl std::fmt::Display) -> Self {
        Self::Create { step: step.into(), message: error.to_string() }
    }
}

/// Whether an image that is not on the node may be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// Only what is there.
    Never,
    /// From wherever the engine finds it.
    Missing,
}

/// What makes instances.
#[async_trait]
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// Which it is.
    fn kind(&self) -> EngineKind;

    /// What it says of itself, for people.
    fn version(&self) -> String;

    /// Layers of safety that it was told to do without.
    fn missing_layers(&self) -> Vec<String>;

    /// Finds an image by its name.
    ///
    /// # Errors
    /// [`EngineError::Image`] names the image and says what was tried.
    async fn resolve(&self, image: &str, pull: Pull) -> Result<ImageId, EngineError>;

    /// What an image of the platform is called here, whether or not it is on the node.
    fn id_of(&self, image: &BlobKey) -> ImageId;

    /// Whether an image of the platform is on the node.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`].
    async fn has_image(&self, image: &BlobKey) -> Result<bool, EngineError>;

    /// Takes in an image of the platform: a tar with its root file system.
    ///
    /// # Errors
    /// [`EngineError`]; the node then does not have it.
    async fn import_image(&self, image: &BlobKey, archive: File) -> Result<(), EngineError>;

    /// The images of the platform that are on the node.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`].
    async fn images(&self) -> Result<Vec<LocalImage>, EngineError>;

    /// Removes an image of the platform from the node, unless an instance has it.
    async fn remove_image(&self, image: &BlobKey);

    /// Makes an instance. Dropping the future leaves nothing running.
    ///
    /// # Errors
    /// [`EngineError`]; nothing is left of an instance that could not be made.
    async fn create(&self, spec: InstanceSpec) -> Result<Instance, EngineError>;

    /// Whether making an instance takes so long that one is worth having before its code is known.
    fn is_slow_to_make(&self) -> bool {
        false
    }

    /// An interpreter may soon be needed in this domain: one is held ready, where the engine can do that.
    async fn hold_interpreter(&self, _domain: &str) {}

    /// Ends interpreters that were not used for a while.
    fn forget_interpreters(&self, _unused_for: Duration) {}

    /// How many interpreters are held ready.
    fn interpreters(&self) -> u64 {
        0
    }

    /// Whether it can make instances at the moment.
    async fn is_available(&self) -> bool {
        true
    }

    /// Why instances with egress have no network device, where they have none: the proxy is their only way out.
    fn no_device(&self) -> Option<&str>;

    /// Removes what dead incarnations of this very worker left, and nothing else.
    async fn remove_orphans(&self);
}
