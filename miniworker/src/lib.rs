//! One attempt: code, instance, result. And one build: source, instance, artifact.
//!
//! Which instance an attempt gets, and how long instances stay, is not decided here: their [owner](InstanceOwner) does that.
//!
//! A miniworker is a task. Nothing that an instance does blocks another: every wait here has an end, and every byte
//! that comes from an instance has a bound.

mod build;
mod call;
mod capture;
mod code;
mod command;
mod egress;
mod exec;
mod failure;
mod images;
mod instance;
mod live;
mod names;
mod owner;
mod process;
mod report;
mod result;
mod server;
mod start;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use faena_blob::BlobStore;
use faena_domain::units::{ByteSize, GB};
use faena_domain::{EngineKind, Limits};
use faena_engine::{Engine, Pull};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use build::{find_image, run_build};
pub use call::{CallInput, InstanceCall};
pub use code::{CodeError, CodeLease, CodeStore};
pub use command::run_command;
pub use egress::{Gateway, NodeEgress};
pub use exec::{ExecInstance, InstanceState};
pub use faena_egress::{EgressPolicy, Ports, Resolvers, Upstream};
pub use failure::{AttemptFailure, StartError};
pub use images::{ImageStore, fetch_image, unpack_image};
pub use live::LiveLogs;
pub use owner::{InstanceId, InstanceOwner};
pub use process::LeaseEnd;
pub use report::AttemptReport;
pub use server::{ServerInstance, StreamBounds};
pub use start::{Created, Made, Preparation, PrewarmKey, Prewarmed, interpreter_domain};

/// What every miniworker of a node shares.
#[derive(Debug)]
pub struct Node {
    /// The worker's name.
    pub worker: String,
    /// What makes instances.
    pub engines: BTreeMap<EngineKind, Arc<dyn Engine>>,
    /// Where params, results and archives are.
    pub blobs: BlobStore,
    /// Where code is unpacked.
    pub code: CodeStore,
    /// What fetches images of the platform.
    pub images: ImageStore,
    /// Certificate authorities for what has egress.
    pub ca_bundle: Option<PathBuf>,
    /// Whom instances may reach, and how.
    pub egress: NodeEgress,
    /// Whether images may be fetched.
    pub pull: Pull,
    /// What builds may use.
    pub build: BuildLimits,
    /// What is being written by calls and builds that run.
    pub logs: LiveLogs,
    /// How long answers may be passed on.
    pub streams: StreamBounds,
    /// Cancelled when the worker begins to drain: streams without an end of their own end.
    pub draining: CancellationToken,
    /// The tasks that make, clean or destroy instances; a stop waits for them.
    pub tasks: TaskTracker,
}

/// The bounds of a build.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BuildLimits {
    /// What its instance may use.
    pub limits: Limits,
    /// The largest artifact.
    pub artifact: ByteSize,
}

impl Default for BuildLimits {
    fn default() -> Self {
        Self { limits: Limits::BUILD, artifact: ByteSize(GB) }
    }
}
