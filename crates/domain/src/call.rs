//! Calls: how they stand, how they end, and why.
//!
//! [`crate::queue`] draws how a call moves from one status to the next.

use serde::{Deserialize, Serialize};

use crate::units::Millis;
use crate::{EngineKind, Epoch};

/// How a call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CallStatus {
    /// Accepted; waits for a build, a slot or its next attempt.
    Pending,
    /// A worker has it.
    Running,
    /// It has a result.
    Done,
    /// It has an error.
    Failed,
    /// An attempt took longer than `timeoutMs`.
    Timeout,
    /// Somebody cancelled it.
    Cancelled,
    /// The call as a whole took longer than `maxAgeMs`.
    Expired,
}

impl CallStatus {
    /// All of them, in the order of a call's life.
    pub const ALL: [Self; 7] =
        [Self::Pending, Self::Running, Self::Done, Self::Failed, Self::Timeout, Self::Cancelled, Self::Expired];

    /// The status as it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Done => "DONE",
            Self::Failed => "FAILED",
            Self::Timeout => "TIMEOUT",
            Self::Cancelled => "CANCELLED",
            Self::Expired => "EXPIRED",
        }
    }

    /// The status of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// Whether nothing can change it any more.
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorKind {
    /// The process ended with a code other than 0.
    Exit,
    /// A signal ended the process.
    Signal,
    /// It wanted more memory than it has.
    Oom,
    /// An attempt took longer than `timeoutMs`.
    Timeout,
    /// A handler raised an exception.
    Exception,
    /// The command or the instance could not start.
    Start,
    /// The version's build failed.
    Build,
    /// No engine has the image.
    Image,
    /// The output is invalid or over the limit.
    Output,
    /// Somebody cancelled it.
    Cancelled,
    /// The call as a whole took longer than `maxAgeMs`.
    Expired,
    /// No worker or engine could take it in time.
    Unavailable,
    /// The platform failed it.
    Infrastructure,
}

impl ErrorKind {
    /// Whether it is a function's own failure that another attempt may cure.
    pub fn is_functions_own(self) -> bool {
        matches!(self, Self::Exit | Self::Signal | Self::Oom | Self::Timeout | Self::Exception)
    }

    /// Whether the platform is to blame rather than the function.
    pub fn is_platforms(self) -> bool {
        matches!(self, Self::Expired | Self::Unavailable | Self::Infrastructure)
    }
}

/// Where in a call's way its time ran out or its trouble began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// It waited for a slot or its next attempt.
    Queue,
    /// It waited for its version's build.
    Build,
    /// Its instance was being made.
    Start,
    /// Its process ran.
    Run,
}

/// Why a call did not end in DONE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallError {
    /// What kind of thing went wrong.
    pub kind: ErrorKind,
    /// A sentence that says what, and where it helps what to do.
    pub message: String,
    /// The end of the process's standard error.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stderr_tail: String,
    /// Where it happened.
    pub layer: Layer,
    /// The code that the process ended with (kind `exit`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the process (kind `signal`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

impl CallError {
    /// An error without a process to tell of.
    pub fn new(kind: ErrorKind, layer: Layer, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), stderr_tail: String::new(), layer, exit_code: None, signal: None }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// One attempt at a call, as it is told afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Its number, from 1; redeliveries count.
    pub attempt: u32,
    /// The worker that ran it.
    pub worker: String,
    /// What made its instance.
    pub engine: EngineKind,
    /// Whether the instance was made for it (`cold`) or waited (`warm`).
    pub start: StartKind,
    /// The claim it ran under.
    pub epoch: Epoch,
    /// Why its node was chosen, where the scheduler did that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// From acceptance, or the attempt before, to the worker.
    pub queue_ms: Millis,
    /// From the worker to the start of the process.
    pub start_ms: Millis,
    /// From the start of the process to its end.
    pub run_ms: Millis,
    /// How the process ended, where one ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// The most memory its processes held, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// CPU time of its processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<Millis>,
    /// Layers of the sandbox that this worker was told to do without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_layers: Vec<String>,
    /// What passed between its instance and the world while it ran, where anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressUse>,
    /// What ended it, where that was no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<CallError>,
}

/// Why a node got a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// An instance of its version works there and has a place for it.
    #[serde(rename = "shared instance")]
    SharedInstance,
    /// An instance of its version waits there.
    #[serde(rename = "idle instance")]
    IdleInstance,
    /// Its code lies there.
    #[serde(rename = "code")]
    Code,
    /// Of two nodes that were drawn it is the less loaded.
    #[serde(rename = "less loaded")]
    LessLoaded,
    /// It had free slots when the call's turn came.
    #[serde(rename = "free slots")]
    FreeSlots,
}

/// What passed between an instance and the world. Calls that an instance has at the same time are told the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressUse {
    /// Hosts that were reached, a hundred at most, as they were named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Connections that were opened.
    pub connections: u64,
    /// Bytes that the instance sent.
    pub sent_bytes: u64,
    /// Bytes that it received.
    pub received_bytes: u64,
}

/// How an instance came to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartKind {
    /// Made for it.
    Cold,
    /// It waited already.
    Warm,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_statuses_read_back() {
        for status in CallStatus::ALL {
            assert_eq!(CallStatus::from_name(status.as_str()), Some(status));
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
        assert_eq!(CallStatus::from_name("ASLEEP"), None);
    }

    #[test]
    fn an_error_shows_only_what_it_has() {
        let error = CallError::new(ErrorKind::Oom, Layer::Run, "out of memory");
        let json = serde_json::to_value(&error).unwrap();
        assert_eq!(json, serde_json::json!({"kind": "oom", "message": "out of memory", "layer": "run"}));
    }
}
