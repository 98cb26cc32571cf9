//! The nouns and rules of Faena: names, numbers, limits, runtimes, functions, calls.
//!
//! Everything here is a pure value or a pure function. No clock, no socket, no disk, no async:
//! what needs one of those asks this crate what is right and does the work elsewhere.

pub mod build;
pub mod build_queue;
pub mod call;
pub mod command;
pub mod config;
pub mod environment;
pub mod function;
pub mod id;
pub mod identity;
pub mod image;
pub mod json;
pub mod keep_alive;
pub mod lease;
pub mod limits;
pub mod log;
pub mod manifest;
pub mod name;
pub mod near;
pub mod network;
pub mod node;
pub mod payload;
pub mod plan;
pub mod program;
pub mod queue;
mod quota;
pub mod retry;
pub mod runtime;
pub mod serving;
pub mod slots;
pub mod time;
mod turns;
pub mod units;

pub use build::{BuildFailure, BuildStatus};
pub use call::{Attempt, CallError, CallStatus, EgressUse, ErrorKind, Exit, Layer};
pub use command::Command;
pub use function::FunctionStatus;
pub use id::{BlobKey, CallNum, DigestKind, Epoch, Owner, Revision, Version};
pub use identity::{CallPattern, FunctionScope, Identity};
pub use image::ImageName;
pub use limits::{AskedLimits, Limits};
pub use manifest::{Bindings, Manifest};
pub use name::{
    AccountName, FunctionId, FunctionName, KeyName, Namespace, NodeName, ProviderName, RuleId, RuntimeName,
};
pub use network::{EgressRule, Network, NetworkRule};
pub use node::{Fingerprint, Labels, NodeSelector, NodeState};
pub use payload::Payload;
pub use quota::{MAX_WEIGHT, NamespaceShare, Quota, QuotaChange};
pub use runtime::{EngineKind, Grants, GrantsChange, Registrar, RuntimeSpec};
pub use serving::{Contract, Preload, Reuse, Serving};
pub use slots::Slots;
pub use time::Timestamp;
pub use turns::{FairTurns, Turn, Waits};
