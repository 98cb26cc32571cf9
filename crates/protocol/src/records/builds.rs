//! Builds.

use std::collections::BTreeMap;

use faena_domain::{
    BlobKey, BuildFailure, EngineKind, Epoch, FunctionId, FunctionName, Namespace, Payload, RuntimeSpec, Version,
};
use serde::{Deserialize, Serialize};

use super::{BoundConfig, Code};

/// One build as a worker gets it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildJob {
    /// The claim that it runs under.
    pub epoch: Epoch,
    /// The runtime as the version is bound to it.
    pub runtime: RuntimeSpec,
    /// The version to build; its archive is the source.
    pub code: Code,
    /// Variables of the build alone, over those of the version.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What the build gets of the configuration; none where it asks for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<BoundConfig>,
}

impl BuildJob {
    /// Which build it is.
    pub fn reference(&self) -> BuildRef {
        let Code { namespace, function, version, .. } = &self.code;
        BuildRef { namespace: namespace.clone(), function: function.clone(), version: *version }
    }
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

impl BuildRef {
    /// The function.
    pub fn function_id(&self) -> FunctionId {
        FunctionId::new(&self.namespace, &self.function)
    }
}

/// How a build ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildOutcome {
    /// The engine that was chosen, and is taken for every call.
    pub engine: Option<EngineKind>,
    /// What identifies the image or root file system.
    pub image_id: Option<String>,
    /// The artifact, or why there is none.
    pub result: Result<BlobKey, BuildFailure>,
    /// What the command wrote.
    pub log: Payload,
    /// The end of that.
    pub log_tail: String,
}
