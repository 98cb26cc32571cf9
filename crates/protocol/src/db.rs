//! Requests to the database service. Each type names its reply; every write may be sent again.

use faena_domain::{
    BlobKey, CallNum, CallStatus, EngineKind, Epoch, FunctionName, Limits, Manifest, Namespace, Owner, Payload,
    RuntimeName, RuntimeSpec, Slots, Version,
};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::records::{
    Accepted, BuildJob, BuildOutcome, BuildRecord, CallJob, CallRecord, CallSpec, CallbackJob, Code, CompletedBatch,
    EndedCall, FunctionRecord, NewCall, Outcome, ResolvedVersion, RuntimeRecord, VersionRecord,
};

/// The message type of a reply that holds what was asked for.
pub const REPLY_OK: &str = "ok";
/// The message type of a reply that holds a [`DbError`].
pub const REPLY_ERROR: &str = "error";

/// The content of a reply that holds what was asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answered {
    /// What the database had seen of its functions when it answered.
    pub functions: FunctionsSeen,
    /// What was asked for.
    pub answer: Box<serde_json::value::RawValue>,
}

/// How often what calls run has changed, so that a cached version is known to be current or not: it rises with
/// every change, and is odd while one is under way. Nothing that was read then may be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FunctionsSeen(pub u64);

impl FunctionsSeen {
    /// Whether nothing changes at the moment.
    pub fn is_settled(self) -> bool {
        self.0.is_multiple_of(2)
    }
}

/// A request with its name and the type of its reply.
pub trait DbRequest: Serialize + DeserializeOwned + Send + 'static {
    /// What the reply holds.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// The message type.
    const TYPE: &'static str;
}

/// Why the database did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum DbError {
    /// There is no such thing.
    #[error("there is no {what} {name:?}")]
    NotFound {
        /// "runtime", "function", "version" or "call".
        what: String,
        /// The name that was asked for.
        name: String,
    },
    /// It would contradict what is there.
    #[error("{message}")]
    Conflict {
        /// A sentence that names both.
        message: String,
    },
    /// The claim it was made under is over: another epoch or another owner.
    #[error("the claim is over: another epoch or owner holds it, or it has ended")]
    Stale,
    /// The service has too many requests waiting; try again later.
    #[error("the database has no room for more requests at the moment")]
    Full,
    /// As many calls, or builds, wait as may.
    #[error("{message}")]
    QueueFull {
        /// A sentence that names the bound.
        message: String,
    },
    /// The disk is nearly full: new work is refused, and what runs is finished.
    #[error("the disk of the database is nearly full")]
    DiskLow,
    /// The key was used before, for another request.
    #[error("the Idempotency-Key {key:?} was used for another request")]
    KeyReused {
        /// The key.
        key: String,
    },
    /// The call has ended, and a terminal status never changes.
    #[error("the call has ended {}", .status.as_str())]
    Ended {
        /// How.
        status: CallStatus,
    },
    /// The service did not answer in time, or is not there. Whether it did it is not known.
    #[error("the database service does not answer")]
    Unavailable,
    /// The request is malformed or of another version.
    #[error("the database service did not understand the request: {message}")]
    Invalid {
        /// What was wrong with it.
        message: String,
    },
    /// The store failed; its log says how.
    #[error("the database failed: {message}")]
    Internal {
        /// What was being done.
        message: String,
    },
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident = $text:literal -> $reply:ty { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl DbRequest for $name {
            type Reply = $reply;
            const TYPE: &'static str = $text;
        }
    )*};
}

requests! {
    /// Asks whether the service lives, and how; read.
    Ping = "ping" -> Health {}

    /// Registers a runtime, or a new revision of it where something differs; write.
    RuntimePut = "runtime.put" -> Put<RuntimeRecord> {
        /// Its namespace.
        namespace: Namespace,
        /// The runtime.
        spec: RuntimeSpec,
    }
    /// Forgets a runtime that no function uses; write.
    RuntimeDelete = "runtime.delete" -> () {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: RuntimeName,
    }
    /// One runtime; read.
    RuntimeGet = "runtime.get" -> RuntimeRecord {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: RuntimeName,
    }
    /// The names of all runtimes, sorted; read.
    RuntimeList = "runtime.list" -> Vec<RuntimeName> {
        /// Their namespace.
        namespace: Namespace,
    }

    /// Adds a version to a function, which is made where it is not there; write.
    VersionPut = "version.put" -> Put<FunctionRecord> {
        /// Names this upload, so that it may be sent again.
        request: String,
        /// The function's namespace.
        namespace: Namespace,
        /// The runtime.
        runtime: RuntimeName,
        /// The function.
        function: FunctionName,
        /// The archive.
        source: BlobKey,
        /// Its size.
        source_bytes: u64,
        /// The folder in it that is used, with a slash at its end; empty for its top.
        root: String,
        /// What it asked for.
        manifest: Manifest,
        /// What it was granted.
        limits: Limits,
        /// What signs the callbacks of the function, where this upload makes it.
        secret: String,
    }
    /// One function; read.
    FunctionGet = "function.get" -> FunctionRecord {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: FunctionName,
    }
    /// The names of all functions, sorted; read.
    FunctionList = "function.list" -> Vec<FunctionName> {
        /// Their namespace.
        namespace: Namespace,
    }
    /// Forgets a function and its versions; its calls stay on record; write.
    FunctionDelete = "function.delete" -> () {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: FunctionName,
    }
    /// All versions of a function, oldest first; read.
    VersionList = "version.list" -> Vec<VersionRecord> {
        /// The function's namespace.
        namespace: Namespace,
        /// The function.
        function: FunctionName,
    }
    /// The version that a call accepted now would run; read.
    VersionResolve = "version.resolve" -> ResolvedVersion {
        /// The function's namespace.
        namespace: Namespace,
        /// The function.
        function: FunctionName,
        /// The version, where the call names one.
        version: Option<Version>,
    }

    /// The versions that calls run and of which instances wait whether or not calls come, of every namespace; read.
    VersionsMinimum = "versions.minimum" -> Vec<Code> {}

    /// The build of a function's newest version; read.
    BuildGet = "build.get" -> BuildRecord {
        /// The function's namespace.
        namespace: Namespace,
        /// The function.
        function: FunctionName,
    }
    /// Tries a build that failed again; write.
    BuildRetry = "build.retry" -> BuildRecord {
        /// The function's namespace.
        namespace: Namespace,
        /// The function.
        function: FunctionName,
    }
    /// Claims pending builds for a worker; write.
    BuildsClaim = "build.claim" -> Vec<BuildJob> {
        /// Names this claim; the same claim gives the same builds.
        request: String,
        /// Who will run them.
        owner: Owner,
        /// What it makes instances with; a runtime that names another engine is left to another worker.
        engines: Vec<EngineKind>,
        /// The worker's slots for builds.
        slots: SlotsView,
    }
    /// Ends a build; write, fenced.
    BuildFinish = "build.finish" -> () {
        /// The function's namespace.
        namespace: Namespace,
        /// The function.
        function: FunctionName,
        /// The version.
        version: Version,
        /// The claim.
        epoch: Epoch,
        /// Who ran it.
        owner: Owner,
        /// How it ended; none gives it back unspent.
        outcome: Option<BuildOutcome>,
    }

    /// Reserves numbers for calls, durably; write.
    CallNumReserve = "call.reserve" -> CallNum {
        /// How many; the reply is the first of them.
        count: u32,
    }
    /// Accepts calls, each for itself; write. The reply has one for each, in their order.
    CallsAccept = "calls.accept" -> Vec<Result<Accepted, DbError>> {
        /// The calls.
        calls: Vec<NewCall>,
    }
    /// Writes waited calls whole, after their ends; write.
    CallsRecord = "calls.record" -> () {
        /// Calls that get a row each.
        calls: Vec<Arc<EndedCall>>,
        /// Calls that are kept many in one row.
        batches: Vec<CompletedBatch>,
    }
    /// Gives a waited call, which an owner runs already or which waits for one, its row; write.
    CallPersist = "call.persist" -> CallRecord {
        /// What it was accepted with.
        spec: CallSpec,
        /// Its version.
        version: Version,
        /// When it was accepted, in Unix milliseconds.
        created_at: i64,
        /// How long ago that was, in milliseconds.
        elapsed_ms: u64,
        /// The last claim that its api gave out; the next one is higher.
        epoch: Epoch,
        /// Who runs it under that claim.
        running: Option<Owner>,
    }
    /// Notes that the client of a call was told 202: the call is acknowledged; write.
    CallAcknowledge = "call.acknowledge" -> () {
        /// The call.
        num: CallNum,
    }
    /// Ends a call that nobody wants any longer; write.
    CallCancel = "call.cancel" -> Cancelled {
        /// The namespace of its function.
        namespace: Namespace,
        /// The call.
        num: CallNum,
    }
    /// Makes a new call of an old one: same function, same params; write.
    CallReplay = "call.replay" -> CallRecord {
        /// The new call's number; the same number gives the same call.
        num: CallNum,
        /// The namespace of its function.
        namespace: Namespace,
        /// The old call.
        of: CallNum,
        /// The version, where the replay names one; none resolves anew.
        version: Option<Version>,
        /// The W3C trace context of the new call.
        traceparent: String,
    }
    /// Forgets that a call is a dead letter; the call stays on record; write.
    DeadLetterForget = "dead_letter.forget" -> () {
        /// The namespace of its function.
        namespace: Namespace,
        /// The call.
        num: CallNum,
    }
    /// Claims calls that can run for a worker; write.
    CallsClaim = "call.claim" -> Vec<CallJob> {
        /// Names this claim; the same claim gives the same calls.
        request: String,
        /// Who will run them.
        owner: Owner,
        /// What it makes instances with.
        engines: Vec<EngineKind>,
        /// How many at most.
        limit: u32,
        /// The worker's slots.
        slots: SlotsView,
        /// Places in instances that work already, which take no slot.
        spare: Vec<SparePlaces>,
    }
    /// Ends an attempt; write, fenced. The reply is the call's status afterwards: PENDING where it is tried again.
    CallFinish = "call.finish" -> CallStatus {
        /// The call.
        num: CallNum,
        /// The claim.
        epoch: Epoch,
        /// Who ran it.
        owner: Owner,
        /// How it ended; none gives it back unspent.
        outcome: Option<Outcome>,
    }
    /// Whether any callback is due; read.
    CallbacksDue = "callback.due" -> bool {}
    /// Takes callbacks that are due, for as long as a try may take; write.
    CallbacksTake = "callback.take" -> Vec<CallbackJob> {
        /// How many at most.
        limit: u32,
    }
    /// Tells how a callback went; write.
    CallbackFinish = "callback.finish" -> () {
        /// The call.
        num: CallNum,
        /// Which try it was.
        tries: u32,
        /// What went wrong; none where it was delivered.
        error: Option<String>,
    }
    /// Gives back a callback that was taken and not tried, because its host is busy; write.
    CallbackPostpone = "callback.postpone" -> () {
        /// The call.
        num: CallNum,
        /// Which try it would have been.
        tries: u32,
    }
    /// Tells of calls whose processes run; write, fenced, and no harm where it is lost.
    CallsStarted = "call.started" -> () {
        /// Who runs them.
        owner: Owner,
        /// The calls and their claims.
        calls: Vec<(CallNum, Epoch)>,
    }
    /// One call; read.
    CallGet = "call.get" -> CallRecord {
        /// The namespace of its function.
        namespace: Namespace,
        /// Its number.
        num: CallNum,
    }
    /// Calls, newest first; read.
    CallList = "call.list" -> Vec<CallRecord> {
        /// The namespace of their functions.
        namespace: Namespace,
        /// Only calls of this function.
        function: Option<FunctionName>,
        /// Only calls of this status.
        status: Option<CallStatus>,
        /// Only dead letters.
        dead: bool,
        /// Of those, only what was not replayed.
        unreplayed: bool,
        /// Only calls with a smaller number.
        before: Option<CallNum>,
        /// How many at most.
        limit: u32,
    }
    /// Logs of a function's calls that have ended, newest call first, without those that wrote nothing; read.
    FunctionLogs = "function.logs" -> LogPage {
        /// The function's namespace.
        namespace: Namespace,
        /// The function.
        function: FunctionName,
        /// Only calls of this version.
        version: Option<Version>,
        /// Only calls that ended like this.
        status: Option<CallStatus>,
        /// Only calls that ended at this db time or later.
        since: Option<i64>,
        /// Only calls with a smaller number.
        before: Option<CallNum>,
        /// How many calls are looked at; none stands for as many as one reply can have.
        calls: Option<u32>,
    }

    /// A worker begins anew: what its earlier incarnations held is ended; write.
    WorkerJoin = "worker.join" -> () {
        /// The worker's new incarnation.
        owner: Owner,
    }
    /// A worker still has these; write.
    LeaseRenew = "lease.renew" -> Renewed {
        /// The worker.
        owner: Owner,
        /// Its calls and their claims.
        calls: Vec<(CallNum, Epoch)>,
        /// Its builds and their claims.
        builds: Vec<(BuildRef, Epoch)>,
    }
    /// Which of these blobs nothing refers to; read.
    BlobsUnused = "blob.unused" -> Vec<BlobKey> {
        /// The blobs.
        keys: Vec<BlobKey>,
    }
    /// Logs that were forgotten and lie in the blob store; read.
    BlobsReleased = "blob.released" -> Vec<BlobKey> {
        /// How many at most.
        limit: u32,
    }
    /// These forgotten logs are removed from the blob store; write.
    BlobsRemoved = "blob.removed" -> () {
        /// The blobs.
        keys: Vec<BlobKey>,
    }
    /// Ends what has run out: leases, ages; write. The service asks itself this once a second.
    Reap = "reap" -> Reaped {}
}

/// How the service is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// How far wall time was set since the service began, where that is more than a minute; db time did not follow.
    pub clock_step_ms: Option<i64>,
    /// Whether the disk is nearly full, and new work refused.
    pub disk_low: bool,
}

/// Some of a function's logs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogPage {
    /// Newest call first.
    pub logs: Vec<CallLog>,
    /// Where to go on: calls with smaller numbers were not looked at.
    pub next: Option<CallNum>,
    /// The newest call that was looked at, whether or not it wrote something.
    pub newest: Option<CallNum>,
}

/// What one call wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallLog {
    /// The call.
    pub num: CallNum,
    /// The version that it ran.
    pub version: Version,
    /// The attempt that wrote it: the last one.
    pub attempt: u32,
    /// The log in its stored form.
    pub log: Payload,
}

/// Names one build.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildRef {
    /// The function's namespace.
    pub namespace: Namespace,
    /// The function.
    pub function: FunctionName,
    /// The version.
    pub version: Version,
}

/// A worker's slots, and who holds how many of them ([`faena_domain::Slots`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotsView {
    /// All of them, without the reserve.
    pub total: u32,
    /// What is held.
    pub held: Vec<HeldSlots>,
}

/// What one function holds of a worker's slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldSlots {
    /// The function's namespace.
    pub namespace: Namespace,
    /// Its name in lower case.
    pub function: String,
    /// How many.
    pub slots: u32,
}

/// Calls of a version that have a place in instances which work already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SparePlaces {
    /// The function's namespace.
    pub namespace: Namespace,
    /// Its name in lower case.
    pub function: String,
    /// The version.
    pub version: Version,
    /// How many.
    pub calls: u32,
}

impl SlotsView {
    /// So many slots, all free.
    pub fn unused(total: u32) -> Self {
        Self { total, held: Vec::new() }
    }

    /// The slots as a ledger, by namespace and name in lower case.
    pub fn ledger(&self) -> Slots<(Namespace, String)> {
        let mut slots = Slots::new(self.total);
        for held in &self.held {
            let function = (held.namespace.clone(), held.function.clone());
            (0..held.slots).for_each(|_| slots.take(&function));
        }
        slots
    }
}

/// What a put made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Put<T> {
    /// The thing as it is now.
    pub record: T,
    /// Whether it was not there before.
    pub created: bool,
}

/// What a renewal did not find.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Renewed {
    /// Calls whose row is held by another claim, or by none: the worker has to stop them.
    pub stale_calls: Vec<(CallNum, Epoch)>,
    /// Builds that are held by another claim, or by none.
    pub stale_builds: Vec<(BuildRef, Epoch)>,
}

/// A call that was cancelled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cancelled {
    /// The call as it is now.
    pub record: CallRecord,
    /// Who ran it, and under which claim.
    pub running: Option<(Owner, Epoch)>,
}

/// How much a reaping ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reaped {
    /// Calls whose lease ended: they are delivered again, a few times.
    pub lost: u64,
    /// Calls whose age ended: EXPIRED.
    pub expired: u64,
    /// Builds whose lease ended: PENDING again.
    pub builds: u64,
    /// Calls that were kept long enough.
    pub forgotten: u64,
}
