//! Builds: what a version has of its build.

use faena_domain::build_queue::BuildEntry;
use faena_domain::{BuildFailure, EngineKind, Epoch, FunctionId, Labels, Namespace, Owner};
use faena_protocol::records::{BuildOutcome, BuildRecord, BuildRef, ImageContent};

use super::StoreResult;

/// How a build ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BuildEnd<'a> {
    pub(crate) outcome: &'a BuildOutcome,
    /// The end of the log, of a build that failed.
    pub(crate) log_tail: &'a str,
    /// Db time.
    pub(crate) at: i64,
}

/// Rows of builds.
pub(crate) trait BuildRows {
    /// The build of a function's newest version.
    fn newest_build(&self, function: &FunctionId) -> StoreResult<Option<BuildRecord>>;

    /// How a build stands.
    fn build_for_update(&self, build: &BuildRef) -> StoreResult<Option<BuildEntry>>;

    /// Writes how it stands.
    fn save_build(&self, build: &BuildRef, entry: &BuildEntry) -> StoreResult<()>;

    /// Forgets how it ended.
    fn clear_build(&self, build: &BuildRef) -> StoreResult<()>;

    /// Notes the request that has claimed it, and when.
    fn begin_build(&self, build: &BuildRef, claim: &str, at: i64) -> StoreResult<()>;

    /// When it was claimed last.
    fn building_since(&self, build: &BuildRef) -> StoreResult<Option<i64>>;

    /// Adds to what a namespace has built on a day, and forgets earlier days.
    fn add_build_time(&self, namespace: &Namespace, day: i64, millis: i64) -> StoreResult<()>;

    /// Builds that wait for these engines and a node with these labels: the oldest of each namespace first, then the second
    /// of each.
    fn pending_builds(&self, engines: &[EngineKind], labels: &Labels, limit: u32) -> StoreResult<Vec<BuildRef>>;

    /// What a request has claimed, each under its epoch.
    fn claimed_builds(&self, claim: &str) -> StoreResult<Vec<(BuildRef, Epoch)>>;

    /// Builds that earlier runs of a worker hold.
    fn builds_of_earlier_runs(&self, owner: &Owner) -> StoreResult<Vec<BuildRef>>;

    /// Builds whose leases ended before an instant.
    fn builds_with_ended_leases(&self, before: i64) -> StoreResult<Vec<BuildRef>>;

    /// Writes how it ended.
    fn end_build(&self, build: &BuildRef, end: BuildEnd<'_>) -> StoreResult<()>;

    /// Writes that it failed without an outcome.
    fn fail_build(&self, build: &BuildRef, failure: &BuildFailure, at: i64) -> StoreResult<()>;

    /// The image that a version is bound to, where the platform keeps it.
    fn bound_image(&self, build: &BuildRef) -> StoreResult<Option<ImageContent>>;

    /// Binds a version to an image.
    fn bind_image(&self, build: &BuildRef, content: Option<&ImageContent>) -> StoreResult<()>;
}
