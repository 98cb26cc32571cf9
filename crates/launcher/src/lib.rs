//! The sandbox's spawner: instances of Linux namespaces around an agent, without a daemon.
//!
//! `faena` runs itself again as this program, once, because a process of many threads must not fork and go on. It has
//! one thread and takes [`Order`]s over one socket ([`spawner`]). An instance is one clone into new user, pid, mount,
//! ipc, uts and cgroup namespaces, into a network namespace that was made in advance. The child builds its own root,
//! throws away what it could do, and becomes the agent; meanwhile other orders are served.
//!
//! ```text
//! worker ── order ───▶ spawner ── clone3 ──▶ child: joins its control groups, waits
//!                       │  uid map, idmapped code  │
//!                       └──────── go ─────────────▶│ mounts, pivot_root, limits, capabilities, landlock, exec
//! worker ◀── reply ──── spawner ◀─ end of pipe ────┘ (or the step that failed)
//! ```

mod bases;
mod child;
mod clone;
mod device;
mod idmap;
mod mounts;
mod network;
mod overlay;
mod preloaded;
mod relay;
mod restrict;
mod root;
pub mod spawner;
pub mod zygote;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use faena_instance_protocol::Run;
use serde::{Deserialize, Serialize};

/// The word after the program's name that makes `faena` a spawner of instances.
pub const SPAWNER: &str = "spawn-instances";
/// The word after the program's name that makes `faena` an interpreter which spawns instances; its words follow.
pub const ZYGOTE: &str = "hold-interpreter";
/// The word after the program's name that makes `faena` mount the code of a container.
pub const OVERLAY: &str = "mount-overlay";

/// Who user code is inside: on every node, in every engine.
pub const INSIDE_ID: u32 = 1000;

pub use overlay::{Before, OverlaySpec};

/// One instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The agent's program on the host.
    pub agent: PathBuf,
    /// The root file system of an imported image; none takes the host's own `/usr`.
    pub root: Option<PathBuf>,
    /// The `/etc` of ours, where the host's `/usr` is taken.
    pub etc: PathBuf,
    /// The unpacked code, owned by [`INSIDE_ID`] on disk where we are root; none yet, where it is laid later.
    pub code: Option<PathBuf>,
    /// Programs of ours that keep a user's handler alive.
    pub shims: PathBuf,
    /// A folder over which a spawner may mount the roots that it prepares, for nobody else to see.
    pub roots: PathBuf,
    /// Where the code appears.
    pub path: String,
    /// What may be written in `path`, in bytes.
    pub disk: u64,
    /// `/tmp`, in bytes.
    pub tmp: u64,
    /// `/dev/shm`, in bytes.
    pub shm: u64,
    /// Open files of a process.
    pub files: u64,
    /// A bundle of certificate authorities to mount.
    pub ca_bundle: Option<PathBuf>,
    /// Who user code is on the host.
    pub host_id: u32,
    /// Whether we are root, and can map any user and any mount.
    pub privileged: bool,
    /// The group of the v2 tree that the agent is born in.
    pub birth_group: Option<PathBuf>,
    /// Files of control groups that the agent enters.
    pub agent_groups: Vec<PathBuf>,
    /// Files of control groups that the user's processes enter.
    pub user_groups: Vec<PathBuf>,
    /// What tells how often memory ran out.
    pub oom: Option<PathBuf>,
    /// What tells the most memory that was held.
    pub peak: Option<PathBuf>,
    /// Whether the agent listens for the egress proxy.
    pub egress: bool,
    /// Whether it has a network device; its descriptor comes with the reply, after that of the first process.
    pub device: bool,
    /// Whether Landlock may be missing.
    pub without_landlock: bool,
    /// What the interpreter goes on with, where the instance is a clone of one ([`zygote`]); its standard input, what takes
    /// its output and what takes its answers come with the order, after the agent's socket.
    pub process: Option<Run>,
}

/// Where a bundle of certificate authorities is found inside.
pub const CA_BUNDLE: &str = "/.faena/ca.pem";

/// Code that is laid in an instance which stands already, over what lay there before.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remount {
    /// The unpacked code.
    pub code: PathBuf,
    /// Where it appears.
    pub path: String,
    /// What may be written there, in bytes.
    pub disk: u64,
    /// See [`Spec::privileged`].
    pub privileged: bool,
}

/// What a spawner is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Make an instance; its agent's end of a socket comes with this, and the streams of its process where it has one.
    Launch(Box<Spec>),
    /// Mount code again; the instance's descriptor comes with this.
    Remount(Remount),
    /// Make a network device in the namespace whose descriptor comes with this; that of the device comes with the reply.
    MakeDevice,
}

/// An order with a number of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Numbered {
    /// Returned in the reply.
    pub id: u64,
    /// What to do.
    pub order: Order,
}

/// The number of the reply that a spawner sends of itself when it takes orders; none of an order's.
pub const READY: u64 = 0;

/// How an order went. The descriptors of what was made come with it: a new instance's first process, and a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Which order.
    pub id: u64,
    /// Done, or the step that failed.
    pub result: Result<(), Refusal>,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was being done.
    pub step: String,
    /// What the kernel said.
    pub error: String,
}

/// A step that failed.
#[derive(Debug)]
pub(crate) struct SpawnFailure {
    step: String,
    error: io::Error,
}

impl From<SpawnFailure> for Refusal {
    fn from(failure: SpawnFailure) -> Self {
        Self { step: failure.step, error: failure.error.to_string() }
    }
}

pub(crate) trait Step<T> {
    /// Names what was being done.
    fn step(self, step: impl Into<String>) -> Result<T, SpawnFailure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, SpawnFailure> {
        self.map_err(|error| SpawnFailure { step: step.into(), error: error.into() })
    }
}

/// Becomes a spawner, an interpreter, or mounts code, where the command line says so. Called first in `main`, before any thread is made.
pub fn run_if_asked() -> Option<ExitCode> {
    match std::env::args().nth(1)?.as_str() {
        SPAWNER => Some(spawner::main()),
        ZYGOTE => Some(zygote::hold()),
        OVERLAY => Some(mount_overlay()),
        _ => None,
    }
}

fn mount_overlay() -> ExitCode {
    let text = std::env::args().nth(2).unwrap_or_default();
    let spec = serde_json::from_str(&text).map_err(io::Error::other).step("parsing the spec");
    let done: Result<(), Refusal> = spec.and_then(|spec| overlay::mount(&spec)).map_err(Refusal::from);
    match serde_json::to_writer(io::stdout(), &done) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What the child inherits open, besides its streams.
pub(crate) struct Inherited {
    pub(crate) socket: OwnedFd,
    pub(crate) birth_group: Option<OwnedFd>,
    pub(crate) agent_groups: Vec<OwnedFd>,
    pub(crate) oom: Option<OwnedFd>,
    pub(crate) peak: Option<OwnedFd>,
    pub(crate) user_groups: Vec<OwnedFd>,
}

impl Inherited {
    fn open(spec: &Spec, socket: OwnedFd) -> Result<Self, SpawnFailure> {
        let read =
            |path: &PathBuf| std::fs::File::open(path).map(OwnedFd::from).step(format!("opening {}", path.display()));
        let write = |path: &PathBuf| {
            OpenOptions::new().write(true).open(path).map(OwnedFd::from).step(format!("opening {}", path.display()))
        };
        Ok(Self {
            socket,
            birth_group: spec.birth_group.as_ref().map(read).transpose()?,
            agent_groups: spec.agent_groups.iter().map(write).collect::<Result<_, _>>()?,
            oom: spec.oom.as_ref().map(read).transpose()?,
            peak: spec.peak.as_ref().map(read).transpose()?,
            user_groups: spec.user_groups.iter().map(write).collect::<Result<_, _>>()?,
        })
    }

    /// Enters the agent's groups. Writing 0 into the v1 `tasks` file moves the writer alone, which needs no grace
    /// period of the kernel's: the first move of a whole process after an idle moment takes milliseconds.
    pub(crate) fn enter_groups(&self) -> io::Result<()> {
        self.agent_groups.iter().try_for_each(|group| rustix::io::write(group, b"0").map(drop).map_err(io::Error::from))
    }

    /// The agent's arguments; each descriptor named here survives exec.
    pub(crate) fn arguments(&self, spec: &Spec) -> Result<Vec<String>, SpawnFailure> {
        let mut words = vec!["faena-agent".to_owned()];
        let one = |word: &'static str, fd| std::iter::once((word, fd));
        let named = one("--socket", &self.socket)
            .chain(self.oom.iter().map(|fd| ("--oom", fd)))
            .chain(self.peak.iter().map(|fd| ("--peak", fd)));
        for (word, fd) in named.chain(self.user_groups.iter().map(|fd| ("--join", fd))) {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).step("keeping a descriptor")?;
            words.extend([word.to_owned(), fd.as_fd().as_raw_fd().to_string()]);
        }
        if spec.egress {
            words.push("--egress".to_owned());
        }
        Ok(words)
    }
}
