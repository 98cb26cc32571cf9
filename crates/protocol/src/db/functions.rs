//! Functions and their versions.

use faena_domain::{
    BlobKey, FunctionId, FunctionName, Limits, Manifest, Namespace, NodeSelector, Owner, RuntimeName, Version,
};

use super::requests;
use super::{FunctionsSeen, Put};
use crate::records::{Code, FunctionRecord, ResolvedVersion, VersionRecord};

/// Functions that have changed: what was remembered of what their calls run does not count any more.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangedFunctions {
    /// Everything that had changed when the database had seen this is told.
    pub at: FunctionsSeen,
    /// Which.
    pub what: Changed,
}

/// Which functions have changed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Changed {
    /// These alone.
    Functions(Vec<FunctionId>),
    /// It is not known: any may have changed.
    All,
}

requests! {
    /// Adds a version to a function, which is made where it is not there.
    Write VersionPut = "version.put" by [Api] -> Put<FunctionRecord> {
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
        /// Labels that a node must have to build and run it.
        nodes: NodeSelector,
        /// What signs the callbacks of the function, where this upload makes it.
        secret: String,
    }
    /// One function.
    Read FunctionGet = "function.get" by [Api] -> FunctionRecord {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: FunctionName,
    }
    /// The names of all functions, sorted.
    Read FunctionList = "function.list" by [Api] -> Vec<FunctionName> {
        /// Their namespace.
        namespace: Namespace,
    }
    /// Forgets a function and its versions; its calls stay on record.
    Write FunctionDelete = "function.delete" by [Api] -> () {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: FunctionName,
    }
    /// All versions of a function, oldest first.
    Read VersionList = "version.list" by [Api] -> Vec<VersionRecord> {
        /// The function's namespace.
        namespace: Namespace,
        /// The function.
        function: FunctionName,
    }
    /// The version that a call accepted now would run.
    Read VersionResolve = "version.resolve" by [Api] -> ResolvedVersion {
        /// The function's namespace.
        namespace: Namespace,
        /// The function.
        function: FunctionName,
        /// The version, where the call names one.
        version: Option<Version>,
    }
    /// Which functions changed since this was seen. For who remembers what their calls run.
    Read FunctionChanges = "functions.changes" by [Api] -> ChangedFunctions {
        /// What the asker has seen, settled; zero where it has seen nothing.
        since: FunctionsSeen,
    }
    /// The versions that calls run and of which instances wait whether or not calls come, of every namespace.
    Read VersionsMinimum = "versions.minimum" by [Worker] -> Vec<Code> {
        /// The worker.
        owner: Owner,
    }
}
