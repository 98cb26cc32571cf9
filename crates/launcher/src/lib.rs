//! The sandbox's spawner: one instance of Linux namespaces around an agent, without a daemon.
//!
//! `faena` runs itself again as this program, because a process of many threads must not fork and go on. It takes
//! a [`Spec`] as its argument and the agent's socket as standard input, makes one clone into new user, pid, mount, net, ipc, uts and cgroup namespaces, and says how it
//! went in one [`Report`]. The child builds its own root, throws away what it could do, and becomes the agent.
//!
//! ```text
//! worker ── spec ──▶ launcher ── clone3 ──▶ child: waits
//!                       │  uid map, idmapped code  │
//!                       └──────── go ─────────────▶│ mounts, pivot_root, limits, capabilities, landlock, exec
//! worker ◀── report ─── launcher ◀─ end of pipe ───┘ (or the step that failed)
//! ```

mod child;
mod clone;
mod idmap;
mod mounts;
mod overlay;
mod restrict;
mod root;

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

/// The word after the program's name that makes `faena` a launcher.
pub const INSTANCE: &str = "launch-instance";
/// The word after the program's name that makes `faena` mount the code of a container.
pub const OVERLAY: &str = "mount-overlay";

/// Who user code is inside: on every node, in every engine.
pub const INSIDE_ID: u32 = 1000;

pub use overlay::OverlaySpec;

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
    /// The unpacked code, owned by [`INSIDE_ID`] on disk where we are root.
    pub code: PathBuf,
    /// Where it appears.
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
    /// Whether Landlock may be missing.
    pub without_landlock: bool,
}

/// Where a bundle of certificate authorities is found inside.
pub const CA_BUNDLE: &str = "/.faena/ca.pem";

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The agent runs, as this process of the host.
    Running(i32),
    /// It does not.
    Failed {
        /// What was being done.
        step: String,
        /// What the kernel said.
        error: String,
    },
}

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    step: String,
    error: io::Error,
}

pub(crate) trait Step<T> {
    /// Names what was being done.
    fn step(self, step: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure { step: step.into(), error: error.into() })
    }
}

/// Becomes a launcher where the command line says so. Called first in `main`, before any thread is made.
pub fn run_if_asked() -> Option<ExitCode> {
    match std::env::args().nth(1)?.as_str() {
        INSTANCE => Some(main_of(launch)),
        OVERLAY => Some(main_of(|spec: &OverlaySpec| overlay::mount(spec).map(|()| 0))),
        _ => None,
    }
}

/// How long a launcher waits to be dismissed.
const DISMISSAL: std::time::Duration = std::time::Duration::from_secs(5);

fn main_of<S: serde::de::DeserializeOwned>(run: impl FnOnce(&S) -> Result<i32, Failure>) -> ExitCode {
    let text = std::env::args().nth(2).unwrap_or_default();
    let spec = serde_json::from_str(&text).map_err(io::Error::other).step("parsing the spec");
    let report = match spec.and_then(|spec| run(&spec)) {
        Ok(pid) => Report::Running(pid),
        Err(Failure { step, error }) => Report::Failed { step, error: error.to_string() },
    };
    let Ok(mut line) = serde_json::to_vec(&report) else { return ExitCode::FAILURE };
    line.push(b'\n');
    if io::stdout().write_all(&line).is_err() {
        return ExitCode::FAILURE;
    }
    if let Report::Running(1..) = report {
        // The child's number stays its own as long as we, its parent, live: the worker opens it and then kills us.
        std::thread::sleep(DISMISSAL);
    }
    ExitCode::SUCCESS
}

/// What the child inherits open, besides its streams.
pub(crate) struct Inherited {
    pub(crate) socket: OwnedFd,
    pub(crate) oom: Option<OwnedFd>,
    pub(crate) peak: Option<OwnedFd>,
    pub(crate) user_groups: Vec<OwnedFd>,
}

impl Inherited {
    fn open(spec: &Spec) -> Result<Self, Failure> {
        let read =
            |path: &PathBuf| std::fs::File::open(path).map(OwnedFd::from).step(format!("opening {}", path.display()));
        let write = |path: &PathBuf| {
            OpenOptions::new().write(true).open(path).map(OwnedFd::from).step(format!("opening {}", path.display()))
        };
        Ok(Self {
            // Standard input is the agent's end of its socket; the number 0 is needed for something else.
            socket: rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3).step("keeping the socket")?,
            oom: spec.oom.as_ref().map(read).transpose()?,
            peak: spec.peak.as_ref().map(read).transpose()?,
            user_groups: spec.user_groups.iter().map(write).collect::<Result<_, _>>()?,
        })
    }

    /// The agent's arguments; each descriptor named here survives exec.
    pub(crate) fn arguments(&self, spec: &Spec) -> Result<Vec<String>, Failure> {
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

/// Marks whatever we inherited: what the worker forgot to close is nobody's in an instance.
fn close_on_exec() -> Result<(), Failure> {
    // SAFETY: the call takes numbers only, and closes nothing now.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()).step("close_range") }
}

fn launch(spec: &Spec) -> Result<i32, Failure> {
    close_on_exec()?;
    for group in &spec.agent_groups {
        // Writing 0 into the v1 `tasks` file moves the writer alone, which needs no grace period of the kernel's.
        std::fs::write(group, "0").step(format!("entering the control group {}", group.display()))?;
    }
    let inherited = Inherited::open(spec)?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().step("making a socket pair")?;
    let Some(pid) = clone::into_namespaces().step("clone3 into new namespaces")? else {
        drop(ours);
        child::run(spec, &inherited, theirs);
    };
    drop(theirs);
    let prepared = prepare(spec, pid, &ours);
    if prepared.is_err() {
        clone::kill(pid);
    }
    prepared?;
    // Exec closes the child's end; before that a text says which step failed.
    let mut said = String::new();
    (&ours).take(4096).read_to_string(&mut said).step("listening to the child")?;
    match said.split_once('\n') {
        None => Ok(pid),
        Some((step, error)) => Err(Failure { step: step.to_owned(), error: io::Error::other(error.to_owned()) }),
    }
}

/// What only the parent can do for the child.
fn prepare(spec: &Spec, pid: i32, child: &std::os::unix::net::UnixStream) -> Result<(), Failure> {
    idmap::map_ids(pid, spec.host_id, spec.privileged).step("mapping users")?;
    let code =
        if spec.privileged { Some(idmap::owned_tree(&spec.code, pid).step("mapping the code's owner")?) } else { None };
    child::send_go(child, code.as_ref()).step("telling the child to go on")
}
