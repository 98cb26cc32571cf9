//! Functions and their versions.

use faena_domain::{
    BlobKey, BuildFailure, EngineKind, FunctionId, FunctionName, FunctionStatus, Limits, Manifest, Namespace,
    NodeSelector, RuntimeSpec, Timestamp, Version,
};
use faena_protocol::db::VersionPut;
use faena_protocol::records::{ImageContent, RuntimeRecord, VersionRecord};

use super::StoreResult;

/// A function, without its versions.
#[derive(Clone, Debug)]
pub(crate) struct FunctionHead {
    /// As it was named first.
    pub(crate) name: FunctionName,
    /// The version that calls run.
    pub(crate) current: Option<Version>,
    pub(crate) created_at: Timestamp,
}

/// A version, with the runtime that it is bound to.
#[derive(Clone, Debug)]
pub(crate) struct StoredVersion {
    pub(crate) status: FunctionStatus,
    pub(crate) runtime: RuntimeSpec,
    pub(crate) manifest: Manifest,
    pub(crate) limits: Limits,
    pub(crate) engine: Option<EngineKind>,
    pub(crate) image_id: Option<String>,
    /// What its image is, where the platform keeps it.
    pub(crate) image: Option<ImageContent>,
    /// Its artifact, else its source.
    pub(crate) archive: BlobKey,
    /// The folder of the archive that is used.
    pub(crate) root: String,
    /// The nodes that it is bound to.
    pub(crate) nodes: Option<NodeSelector>,
    pub(crate) created_at: i64,
}

/// Rows of functions and versions.
pub(crate) trait FunctionRows {
    /// A function.
    fn function(&self, function: &FunctionId) -> StoreResult<Option<FunctionHead>>;

    /// The functions of a namespace, by name.
    fn functions(&self, namespace: &Namespace) -> StoreResult<Vec<FunctionName>>;

    /// Adds a function, unless it is there already. The secret that signs its callbacks is sealed.
    fn insert_function(&self, function: &FunctionId, secret: &[u8], now: i64) -> StoreResult<()>;

    /// What signs the callbacks of a function, sealed.
    fn function_secret(&self, function: &FunctionId) -> StoreResult<Option<Vec<u8>>>;

    /// Calls run this version, unless they run a later one already; whether they do now.
    fn raise_current(&self, function: &FunctionId, version: Version) -> StoreResult<bool>;

    /// Removes a function, its versions, and the idempotency keys of its calls.
    fn delete_function(&self, function: &FunctionId) -> StoreResult<()>;

    /// Adds the next version of a function, which is to be built.
    fn insert_version(&self, request: &VersionPut, runtime: &RuntimeRecord, now: i64) -> StoreResult<Version>;

    /// Whether this request has added a version already.
    fn is_version_request(&self, request: &str) -> StoreResult<bool>;

    /// How many versions of a function are not built yet.
    fn count_unbuilt(&self, function: &FunctionId) -> StoreResult<u64>;

    /// All versions, oldest first.
    fn versions(&self, function: &FunctionId) -> StoreResult<Vec<VersionRecord>>;

    /// The newest version.
    fn newest_version(&self, function: &FunctionId) -> StoreResult<Option<VersionRecord>>;

    /// What is needed to run a version.
    fn version(&self, function: &FunctionId, version: Version) -> StoreResult<Option<StoredVersion>>;

    /// Why a version could not be built.
    fn build_failure(&self, function: &FunctionId, version: Version) -> StoreResult<Option<BuildFailure>>;

    /// Whether a version of the function is for everyone.
    fn has_public_version(&self, function: &FunctionId) -> StoreResult<bool>;

    /// The functions of a namespace whose current version is for everyone, by name.
    fn public_functions(&self, namespace: &Namespace) -> StoreResult<Vec<FunctionName>>;

    /// Current versions that keep a minimum of idle instances.
    fn versions_with_minimum(&self) -> StoreResult<Vec<(FunctionId, Version)>>;
}
