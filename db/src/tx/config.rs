//! Configuration, and everything that is sealed.

use faena_domain::config::ConfigPath;
use faena_domain::{CallNum, FunctionId, FunctionName, Namespace, ProviderName};
use faena_protocol::db::ConfigChange;
use serde_json::Value;

use super::StoreResult;

/// What a leaf holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LeafValue {
    Clear(Value),
    Sealed(Vec<u8>),
}

impl LeafValue {
    /// The value, where it is no secret.
    pub(crate) fn clear(&self) -> Option<&Value> {
        match self {
            Self::Clear(value) => Some(value),
            Self::Sealed(_) => None,
        }
    }

    pub(crate) fn is_secret(&self) -> bool {
        matches!(self, Self::Sealed(_))
    }
}

/// A leaf of a namespace's configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Leaf {
    pub(crate) path: ConfigPath,
    pub(crate) value: LeafValue,
}

/// Rows of configurations.
pub(crate) trait ConfigRows {
    /// The leaves at a path and below it, by path; all of the namespace without one.
    fn leaves(&self, namespace: &Namespace, path: Option<&ConfigPath>) -> StoreResult<Vec<Leaf>>;

    /// Adds a leaf, or replaces the one at its path.
    fn put_leaf(&self, namespace: &Namespace, path: &ConfigPath, value: &LeafValue) -> StoreResult<()>;

    /// Removes the leaves at these paths.
    fn delete_leaves(&self, namespace: &Namespace, paths: &[&ConfigPath]) -> StoreResult<()>;

    /// Appends a change to the history; its number is the revision of the configuration from now on.
    fn insert_config_change(&self, namespace: &Namespace, change: &ConfigChange) -> StoreResult<()>;

    /// Removes what the history of a path tells of values, and says that they were secrets.
    fn hide_config_changes(&self, namespace: &Namespace, path: &ConfigPath) -> StoreResult<()>;

    /// Keeps the newest `keep` changes, and removes the rest.
    fn trim_config_changes(&self, namespace: &Namespace, keep: u32) -> StoreResult<()>;

    /// The changes at a path and below it, newest first.
    fn config_changes(&self, namespace: &Namespace, path: &ConfigPath, limit: u32) -> StoreResult<Vec<ConfigChange>>;

    /// The number of the last change; 0 before the first.
    fn config_revision(&self, namespace: &Namespace) -> StoreResult<i64>;

    /// How many leaves there are, and their bytes.
    fn config_size(&self, namespace: &Namespace) -> StoreResult<(u64, u64)>;

    /// The functions of which a version uses configuration.
    fn functions_with_config(&self, namespace: &Namespace) -> StoreResult<Vec<FunctionName>>;

    /// Removes all of a namespace, with its history.
    fn delete_config(&self, namespace: &Namespace) -> StoreResult<()>;
}

/// Where a sealed secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SecretPlace {
    /// A leaf of a configuration.
    Config(Namespace, ConfigPath),
    /// The client secret of a provider.
    Provider(ProviderName),
    /// What signs the callbacks of a function.
    Function(FunctionId),
    /// What signs the callback of a call of this function.
    Callback(CallNum, FunctionId),
}

impl SecretPlace {
    /// What a secret is bound to where it is sealed: a namespace, empty for the platform's own, and a path.
    pub(crate) fn bound_to(&self) -> (&str, String) {
        match self {
            Self::Config(namespace, path) => (namespace.as_str(), path.as_str().to_owned()),
            Self::Provider(name) => ("", format!("providers/{}", name.key())),
            // The secret of a callback is a copy of its function's.
            Self::Function(function) | Self::Callback(_, function) => {
                (function.namespace.as_str(), format!("callbacks/{}", function.name.key()))
            }
        }
    }
}

/// A secret, sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SealedSecret {
    pub(crate) place: SecretPlace,
    pub(crate) sealed: Vec<u8>,
}

/// Rows that have secrets.
pub(crate) trait SecretRows {
    /// The first bytes of every secret that is still needed, each once.
    fn sealed_prefixes(&self, bytes: usize) -> StoreResult<Vec<Vec<u8>>>;

    /// The secrets of configurations, providers and functions.
    fn sealed_secrets_for_update(&self) -> StoreResult<Vec<SealedSecret>>;

    /// The secrets of callbacks that wait, of calls behind a number, by number.
    fn sealed_callbacks_for_update(&self, after: CallNum, limit: u32) -> StoreResult<Vec<SealedSecret>>;

    /// Replaces secrets by the same ones, sealed under another key.
    fn replace_sealed(&self, secrets: &[SealedSecret]) -> StoreResult<()>;
}
