//! Frames between the agent in an instance and the miniworker that uses it.
//!
//! One stream socket joins them. A frame is `length: u32 LE, descriptors: u8, body`, the body in postcard, at most
//! [`MAX_FRAME`] bytes. Bodies of calls, artifacts and network connections never travel as frames: each gets a
//! descriptor of its own, so the kernel does the flow control and a *kill* never queues behind data.
//!
//! ```text
//! miniworker                       agent
//!   │ ◀───────────── ready ──────── │  [listener of the egress proxy]
//!   │ ── run ─────────────────────▶ │  [stdin, stdout, stderr, output?, files…]
//!   │ ◀─────── started | refused ── │
//!   │ ── lease, kill ─────────────▶ │  whenever
//!   │ ◀───────────── ended ──────── │  every process is dead
//!   │ ── pack ────────────────────▶ │  [where the archive goes]
//!   │ ◀───────────── packed ─────── │
//!   │ ── connect ─────────────────▶ │  whenever
//!   │ ◀───────────── connected ──── │  [a connection to a port of the instance's loopback]
//!   │ ── survey ──────────────────▶ │  whenever
//!   │ ◀───────────── surveyed ───── │
//!   │ ── clean ───────────────────▶ │  between two processes
//!   │ ◀───────────── cleaned ────── │
//! ```
//!
//! The agent ends, and everything with it, when the socket does or the lease has passed.

mod frame;
pub mod handler;
pub mod link;

use serde::{Deserialize, Serialize};

pub use frame::{Decoder, FrameError, MAX_FDS, MAX_FRAME, Outgoing};

/// Where an instance finds values of the configuration as files: a file system in memory of its user's own.
pub const SECRETS: &str = "/run/secrets";
/// What lies there may have at most, in bytes: twice what a version gets of the configuration, in whole pages.
pub const SECRETS_BYTES: u64 = 256 * 1024;

/// The folder of the agent in an instance; nothing of the user's lies there.
pub const FOLDER: &str = "/.faena";
/// The agent's program, as it is mounted in an instance.
pub const AGENT: &str = "/.faena/agent";
/// The socket that an agent in a container connects to, as it is mounted there.
pub const SOCKET: &str = "/.faena/socket";
/// The code, where an agent in a container has to copy it.
pub const CODE: &str = "/.faena/code";
/// The variable that holds the nonce which an agent in a container shows.
pub const NONCE: &str = "FAENA_NONCE";
/// The folder of our programs that keep a user's handler alive, as it is mounted in an instance.
pub const SHIMS: &str = "/.faena/shims";
/// Where programs are searched, where neither the image nor the runtime names a `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The number of the process that answers many calls, where an instance has one.
pub const RESIDENT: u64 = 1;
/// The port of an instance's loopback where the egress proxy is reached.
pub const EGRESS_PORT: u16 = 3128;
/// Where a process finds its params, below `path`.
pub const INPUT: &str = "input.json";
/// Where a process finds the HTTP request that its call is, below `path`; `null` where it is none.
pub const REQUEST: &str = "request.json";
/// Where a process may leave its result, below `path`.
pub const OUTPUT: &str = "output.json";

/// From the miniworker to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// The lease ends at this instant of `CLOCK_BOOTTIME`, in milliseconds; everything dies then.
    Lease {
        /// The instant; the largest number stands for no end, while nobody's call runs.
        until_ms: u64,
    },
    /// Start a process. One at a time.
    Run(Run),
    /// Kill every process; what ran is then reported as ended.
    Kill,
    /// Write the tree under this path as a tar to the descriptor that comes with it.
    Pack {
        /// The tree.
        path: String,
    },
    /// Connect to a port of the instance's loopback, and hand the connection over.
    Connect {
        /// The port.
        port: u16,
    },
    /// Tell what the processes do.
    Survey,
    /// Kill every process but the one that was started, if it still runs, and remove what the others left outside
    /// `path`: temporary files, shared memory and its like. Files in [`SECRETS`] are as they were given.
    Clean,
    /// Keep a file in [`SECRETS`]; a descriptor with its content comes with the frame, sealed against changes.
    Secret {
        /// Its name.
        name: String,
    },
}

/// A process to start; its standard streams come as descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Returned in every frame about it.
    pub id: u64,
    /// The program and its arguments.
    pub words: Vec<String>,
    /// Variables, over those of the image.
    pub env: Vec<(String, String)>,
    /// Folders before the image's `PATH`, each with a colon behind it.
    pub path_prefix: String,
    /// The working directory.
    pub path: String,
    /// Whether a descriptor to answer on comes with it ([`handler::ANSWERS`]).
    pub has_answers: bool,
    /// Whether a descriptor for the content of `output.json` comes with it.
    pub wants_output: bool,
    /// Files below `path` that are written before it starts; a descriptor with the content of each comes with it. What a
    /// process left as [`OUTPUT`] is removed where there are any.
    pub files: Vec<String>,
}

/// From the agent to the miniworker. Every word of it may come from hostile code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToMiniworker {
    /// The instance stands.
    Ready {
        /// What shows that this is the agent that was started; empty where the socket was inherited.
        nonce: String,
        /// Whether the listener of the egress proxy comes with it.
        has_listener: bool,
    },
    /// The process runs.
    Started {
        /// Which.
        id: u64,
    },
    /// The process could not be started.
    Refused {
        /// Which.
        id: u64,
        /// Why, for people.
        message: String,
    },
    /// The process has ended, and every process with it.
    Ended(Ended),
    /// The archive is written.
    Packed {
        /// Why it is not whole.
        error: Option<String>,
    },
    /// The answer to [`ToAgent::Connect`].
    Connected {
        /// Why there is no connection; where there is one it comes with this.
        error: Option<String>,
    },
    /// The answer to [`ToAgent::Survey`].
    Surveyed {
        /// Addresses and ports on which something listens for TCP, a few of them.
        listening: Vec<String>,
        /// CPU time of all processes but the agent, in microseconds; the kernel counts in hundredths of a second.
        cpu_us: u64,
    },
    /// The answer to [`ToAgent::Secret`].
    Kept {
        /// Why the file is not there.
        error: Option<String>,
    },
    /// The answer to [`ToAgent::Clean`].
    Cleaned {
        /// Why something is left.
        error: Option<String>,
        /// How often the kernel killed for memory since the process was started, or since the last time.
        oom_kills: u64,
    },
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Which.
    pub id: u64,
    /// How its first process ended.
    pub exit: Exit,
    /// How often the kernel killed for memory meanwhile.
    pub oom_kills: u64,
    /// The most memory its processes held, in bytes.
    pub peak_memory: Option<u64>,
    /// CPU time of its processes, in microseconds.
    pub cpu_us: u64,
    /// What became of `output.json`.
    pub output: Output,
}

/// How a process ended, as wait(2) tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What stood at `output.json` after the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Nothing.
    None,
    /// A file; its content went to the descriptor.
    File,
    /// Something that is no result.
    Invalid(String),
}
