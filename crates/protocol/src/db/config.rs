//! Configuration of namespaces.

use std::fmt;

use faena_domain::config::ConfigPath;
use faena_domain::{Namespace, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::requests;

/// A value that may be a secret, and is not shown.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConfigValue(pub Value);

impl fmt::Debug for ConfigValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConfigValue")
    }
}

/// A change of a value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigChange {
    /// The path of the leaf.
    pub path: ConfigPath,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub account: String,
    /// What was there before; none where nothing was, or a secret.
    pub old: Option<Value>,
    /// Whether a secret was there before.
    pub was_secret: bool,
}

requests! {
    /// Puts a value: members of objects are merged, anything else is replaced. True where nothing was there.
    Write ConfigPut = "config.put" by [Api] -> bool {
        /// The namespace.
        namespace: Namespace,
        /// Where.
        path: ConfigPath,
        /// The value.
        value: ConfigValue,
        /// Whether its leaves are kept sealed.
        secret: bool,
        /// Who puts it.
        account: String,
    }
    /// Removes a value with all below it.
    Write ConfigDelete = "config.delete" by [Api] -> () {
        /// The namespace.
        namespace: Namespace,
        /// Where.
        path: ConfigPath,
        /// Who removes it.
        account: String,
    }
    /// A value; `"[secret]"` stands for each secret in it.
    Read ConfigGet = "config.get" by [Api] -> Value {
        /// The namespace.
        namespace: Namespace,
        /// Where; none is everything.
        path: Option<ConfigPath>,
    }
    /// The last changes of a value and of what lies below it, the newest first.
    Read ConfigHistory = "config.history" by [Api] -> Vec<ConfigChange> {
        /// The namespace.
        namespace: Namespace,
        /// Where.
        path: ConfigPath,
    }
    /// Seals the keys of all secrets with a new key; how many.
    Write SecretsRotate = "secrets.rotate" by [Api] -> u64 {}
}
