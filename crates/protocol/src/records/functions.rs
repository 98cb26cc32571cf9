//! Runtimes, functions and their versions.

use std::collections::BTreeMap;

use faena_domain::config::{ConfigProblem, SecretText};
use faena_domain::{
    BlobKey, BuildFailure, CallPattern, EngineKind, FunctionId, FunctionName, FunctionScope, FunctionStatus, Labels,
    Limits, Manifest, Namespace, NamespaceShare, Network, NetworkRule, NodeSelector, Payload, Revision, RuntimeSpec,
    Serving, Timestamp, Version,
};
use serde::{Deserialize, Serialize};

use super::ImageContent;

/// A runtime with the revision its next functions are bound to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeRecord {
    /// The runtime as it was registered.
    #[serde(flatten)]
    pub spec: RuntimeSpec,
    /// Rises with every registration that changes something.
    pub revision: Revision,
    /// When this revision was registered.
    pub created_at: Timestamp,
}

/// One uploaded source, bound to one revision of one runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionRecord {
    /// Its number.
    pub version: Version,
    /// The runtime's name.
    pub runtime: String,
    /// The runtime's revision.
    pub revision: Revision,
    /// The archive as it was uploaded.
    pub source: BlobKey,
    /// Its size in bytes.
    pub source_bytes: u64,
    /// The folder in it that is used, with a slash at its end; empty for its top.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub root: String,
    /// What its `faena.toml` asked for.
    pub manifest: Manifest,
    /// What it was granted.
    pub limits: Limits,
    /// Where it stands.
    pub status: FunctionStatus,
    /// The engine that was chosen when it was built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineKind>,
    /// What identifies the image or root file system it was built on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// The code with its dependencies installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<BlobKey>,
    /// Why its build failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<BuildFailure>,
    /// The end of its build's log, kept where the build failed.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub log_tail: String,
    /// When it was uploaded.
    pub created_at: Timestamp,
    /// When its build ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub built_at: Option<Timestamp>,
}

/// A function and its newest version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionRecord {
    /// Its name.
    pub name: FunctionName,
    /// The version that calls run; none until one was READY.
    pub current: Option<Version>,
    /// The newest version.
    pub newest: VersionRecord,
    /// When the function was first registered.
    pub created_at: Timestamp,
}

/// A build as `GET /function/{name}/build` tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildRecord {
    /// The version that it makes.
    pub version: Version,
    /// Where it stands.
    pub status: FunctionStatus,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<BuildFailure>,
    /// What its command wrote.
    pub log: Payload,
}

/// What a version gets of its namespace's configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BoundConfig {
    /// Rises with every change of the namespace's configuration: instances of another one have other values.
    pub revision: i64,
    /// Variables.
    pub env: BTreeMap<String, SecretText>,
    /// Files below `/run/secrets`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, SecretText>,
    /// Why it does not get what it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<ConfigProblem>,
}

/// All an instance needs to know of a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Code {
    /// The function's namespace.
    pub namespace: Namespace,
    /// The function's name.
    pub function: FunctionName,
    /// The version's number.
    pub version: Version,
    /// The engine to take; none before the build has chosen one.
    pub engine: Option<EngineKind>,
    /// The runtime's image.
    pub image: String,
    /// What identified the image when the version was built.
    pub image_id: Option<String>,
    /// What the image is, where the platform keeps it; none where each node has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_content: Option<ImageContent>,
    /// Where the code is put.
    pub path: String,
    /// The command that runs it.
    pub run: String,
    /// The code: artifact, or before a build the source.
    pub archive: BlobKey,
    /// The folder of the archive that is used, with a slash at its end; empty for its top.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub root: String,
    /// Variables of the runtime, then of the function.
    pub env: BTreeMap<String, String>,
    /// What its calls get of the configuration; none where it asks for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<BoundConfig>,
    /// What its instances may use.
    pub limits: Limits,
    /// What its instances reach.
    pub network: Network,
    /// Private networks that its runtime permits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkRule>,
    /// Functions of its namespace that its instances may call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<CallPattern>,
    /// Scopes that requests of its instances carry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<FunctionScope>,
    /// Calls of the function at once; none is no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// What its process speaks, and which of its instances wait.
    #[serde(default)]
    pub serving: Serving,
    /// Labels that a node must have to run it: what the version asks for, and what its namespace is bound to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeSelector>,
    /// The part of a worker's slots and memory that its namespace may use.
    #[serde(default)]
    pub share: NamespaceShare,
    /// When the version was uploaded, in milliseconds: a version of the same number of a function that was deleted
    /// meanwhile is another.
    #[serde(default)]
    pub since: i64,
}

impl Code {
    /// The function that it is a version of.
    pub fn function_id(&self) -> FunctionId {
        FunctionId::new(&self.namespace, &self.function)
    }

    /// Whether a node with these labels may run it.
    pub fn is_permitted_on(&self, labels: &Labels) -> bool {
        self.nodes.iter().all(|selector| selector.permits(labels))
    }

    /// Whether its instances reach anything outside: the world, or other functions.
    pub fn reaches_out(&self) -> bool {
        self.network.has_egress() || !self.calls.is_empty()
    }
}

/// A version as calls need it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedVersion {
    /// Where it stands.
    pub status: FunctionStatus,
    /// What its instances need.
    pub code: Code,
    /// Retries that its manifest names for asynchronous calls.
    pub retries: Option<u32>,
}
