//! Builds: claimed, leased and fenced like calls.

use faena_domain::{EngineKind, Epoch, FunctionName, Namespace, Owner, Version};

use super::requests;
use super::slots::SlotsView;
use crate::records::{BuildJob, BuildOutcome, BuildRecord};

requests! {
    /// The build of a function's newest version.
    Read BuildGet = "build.get" by [Api] -> BuildRecord {
        /// The function's namespace.
        namespace: Namespace,
        /// The function.
        function: FunctionName,
    }
    /// Tries a build that failed again.
    Write BuildRetry = "build.retry" by [Api] -> BuildRecord {
        /// The function's namespace.
        namespace: Namespace,
        /// The function.
        function: FunctionName,
    }
    /// Claims pending builds for a worker.
    Write BuildsClaim = "build.claim" by [Api] -> Vec<BuildJob> {
        /// Names this claim; the same claim gives the same builds.
        request: String,
        /// Who will run them.
        owner: Owner,
        /// What it makes instances with; a runtime that names another engine is left to another worker.
        engines: Vec<EngineKind>,
        /// The worker's slots for builds.
        slots: SlotsView,
    }
    /// Ends a build, fenced.
    Write BuildFinish = "build.finish" by [Api, Worker] -> () {
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
}
