//! What api and worker tell each other over one ZeroMQ connection.
//!
//! ```text
//! worker                          api
//!   │ ── hello ──────────────────▶ │
//!   │ ◀───────────── welcome ───── │   sayHello, where the session is unknown
//!   │ ◀───────────── call ──────── │
//!   │ ── accepted ───────────────▶ │   it has a slot
//!   │ ── started ────────────────▶ │   an instance acknowledged its start
//!   │ ── ended ──────────────────▶ │   resent until endedAck
//!   │ ◀───────────── endedAck ──── │
//!   │ ◀─── persisted, cancel ─────── │   whenever
//!   │ ◀───────────── ask ───────── │   whenever
//!   │ ── reply ──────────────────▶ │
//!   │ ── engines, draining ──────▶ │   whenever
//! ```

use faena_domain::{
    Attempt, BlobKey, CallNum, CallStatus, EngineKind, Epoch, FunctionId, FunctionName, ImageName, Namespace, Owner,
    Preload, Version,
};
use serde::{Deserialize, Serialize};

use crate::records::BuildRef;
use crate::records::{BuildJob, CallJob, Code, Outcome};

/// The message type of everything in this module; the variant lies in the content.
pub const TYPE: &str = "node";

/// What a node offers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// The worker and its incarnation.
    pub owner: Owner,
    /// What it makes instances with.
    pub engines: Vec<EngineInfo>,
    /// Calls at once.
    pub slots: u32,
    /// Builds at once.
    pub build_slots: u32,
    /// Memory of the machine, in bytes.
    pub memory_bytes: u64,
    /// The version of its program.
    #[serde(default)]
    pub version: String,
    /// Addresses of sockets that calls of the direct path may be sent to; none where the api shares the worker's process. A
    /// node on another machine names its threads by numbers, and the front puts sockets of its own in their place.
    #[serde(default)]
    pub direct: Vec<String>,
}

/// What a call runs, as far as it counts for a worker's slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallOf {
    /// The function's namespace.
    pub namespace: Namespace,
    /// The function.
    pub function: FunctionName,
    /// The version.
    pub version: Version,
    /// Calls at once in one instance.
    pub parallel: u32,
    /// The weight of the namespace.
    #[serde(default)]
    pub weight: u32,
}

impl CallOf {
    /// The function.
    pub fn function_id(&self) -> FunctionId {
        FunctionId::new(&self.namespace, &self.function)
    }

    /// A call of a version.
    pub fn of(code: &Code) -> Self {
        Self {
            namespace: code.namespace.clone(),
            function: code.function.clone(),
            version: code.version,
            parallel: code.serving.parallel(),
            weight: code.share.weight,
        }
    }
}

/// A call that a worker holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldCall {
    /// The call.
    pub num: CallNum,
    /// Its claim.
    pub epoch: Epoch,
    /// What it runs.
    pub of: CallOf,
}

/// One engine of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineInfo {
    /// Which it is.
    pub engine: EngineKind,
    /// What it says of itself, for people.
    pub version: String,
    /// Layers of safety that this node was told to do without.
    pub missing_layers: Vec<String>,
    /// How its instances with egress reach the world.
    pub egress: EgressWay,
    /// Images of the platform that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<BlobKey>,
}

/// How instances with egress reach the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EgressWay {
    /// By ordinary sockets: they have a network device. The proxy is there too.
    Sockets,
    /// By the proxy that variables name, where no device can be made.
    Proxy,
}

/// What a node's pool of instances holds, and has done since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolView {
    /// Instances, waiting and working.
    pub instances: u64,
    /// Instances that wait without code.
    #[serde(default)]
    pub prewarmed: u64,
    /// Interpreters that are held ready, for instances to be clones of them.
    #[serde(default)]
    pub interpreters: u64,
    /// Slots that are in use.
    pub working: u64,
    /// Calls that wait for an instance.
    pub waiting_calls: u64,
    /// Instances that are frozen.
    pub frozen: u64,
    /// What waiting instances hold of memory.
    pub memory_bytes: u64,
    /// Calls that found an instance.
    pub hits: u64,
    /// Instances made because a call waited.
    pub misses: u64,
    /// Instances made before a call asked.
    pub refills: u64,
    /// Instances that went, for room or for lack of calls.
    pub evictions: u64,
    /// The disk of the node's folder has less than `disk_reserve` left: code and images that are not there yet cannot come.
    #[serde(default)]
    pub disk_low: bool,
}

/// From a worker to an api.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ToApi {
    /// I am here.
    Hello {
        /// What I offer.
        node: NodeInfo,
        /// Calls I hold already, after a connection was lost.
        calls: Vec<HeldCall>,
        /// Calls that have ended, whose end you have not acknowledged.
        ended: Vec<(CallNum, Epoch)>,
        /// Builds I hold already.
        builds: Vec<BuildRef>,
    },
    /// I have taken this call.
    Accepted {
        /// The call.
        num: CallNum,
        /// Its claim.
        epoch: Epoch,
    },
    /// An instance acknowledged the start of this call.
    Started {
        /// The call.
        num: CallNum,
        /// Its claim.
        epoch: Epoch,
    },
    /// This call has ended, its slot is free.
    Ended {
        /// The call.
        num: CallNum,
        /// Its claim.
        epoch: Epoch,
        /// How, where db has no row of it; none gives a drained call back.
        outcome: Option<Box<Outcome>>,
        /// How, where db has a row of it and will not have it tried again.
        queued: Option<Box<QueuedEnd>>,
    },
    /// What my pool holds has changed.
    Pool {
        /// What it holds now.
        pool: PoolView,
    },
    /// This build has ended, its slot is free.
    BuildEnded {
        /// Whether the version can be called now.
        is_ready: bool,
        /// The build.
        build: BuildRef,
    },
    /// The answer to a question.
    Reply {
        /// The question's number.
        id: u64,
        /// What I know.
        reply: Reply,
    },
    /// From now on I make instances with these.
    Engines {
        /// Those that can.
        engines: Vec<EngineInfo>,
    },
    /// Send me nothing more; I am about to stop.
    Draining,
}

/// How a call with a row ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueuedEnd {
    /// Its status in db.
    pub status: CallStatus,
    /// Its last attempt.
    pub attempt: Attempt,
}

/// What writes a log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LogOf {
    /// A call.
    Call(CallNum),
    /// A build.
    Build(BuildRef),
}

/// What an api asks its workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Question {
    /// What was written until now by something that runs.
    Log(LogOf),
    /// Whether an image is on the node, for one engine or for any.
    Image(ImageName, Option<EngineKind>),
}

/// What a worker answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// A log in its stored form; none where it does not run here.
    Log(Option<String>),
    /// Whether the image is here, or why not.
    Image(Result<(), String>),
}

/// Until when a claim holds that has not been renewed yet, by a clock that both sides share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// The boot of the machine whose `CLOCK_BOOTTIME` it is; a worker on another machine renews before it begins.
    pub boot: String,
    /// The instant, in milliseconds.
    pub until_ms: u64,
}

/// From an api to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ToWorker {
    /// You are known from now on.
    Welcome {
        /// What waits for calls, where neither function nor runtime nor node says so.
        #[serde(default)]
        preload: Preload,
    },
    /// I do not know you: say hello.
    SayHello,
    /// Run this.
    Call {
        /// The attempt.
        job: Box<CallJob>,
        /// Until when it is the worker's.
        lease: Lease,
    },
    /// Build this.
    Build {
        /// The build.
        job: Box<BuildJob>,
        /// Until when it is the worker's.
        lease: Lease,
    },
    /// This call has its row now, and its lease is db's to judge.
    Persisted {
        /// The call.
        num: CallNum,
        /// Its claim.
        epoch: Epoch,
    },
    /// Stop this call: nobody wants it any longer.
    Cancel {
        /// The call.
        num: CallNum,
        /// Its claim.
        epoch: Epoch,
    },
    /// A version can be called from now on that another worker has built.
    Built {
        /// Which.
        build: BuildRef,
    },
    /// This function is deleted: nothing of it waits for calls any longer.
    Forget {
        /// The namespace of the function.
        namespace: Namespace,
        /// The function.
        function: FunctionName,
    },
    /// Answer this.
    Ask {
        /// Returned in the answer.
        id: u64,
        /// What is asked.
        question: Question,
    },
    /// Take no more work, finish what you have, and stop.
    Drain,
    /// I have your `ended`.
    EndedAck {
        /// The call.
        num: CallNum,
        /// Its claim.
        epoch: Epoch,
    },
}
