//! `faena.toml`: what a function's archive asks for. The operator grants.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::environment::{InvalidEnv, check_env};
use crate::limits::{LimitExceeded, Limits};
use crate::near::nearest;
use crate::retry::MAX_RETRIES;
use crate::{AskedLimits, Network, RuntimeSpec};

/// Its name in the archive.
pub const FILE: &str = "faena.toml";
/// The largest one, in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// What a function asks for; everything is optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// Limits above or below the runtime's.
    #[serde(default)]
    pub limits: AskedLimits,
    /// Variables for its build and its calls, over the runtime's.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Retries of its asynchronous calls, where the call names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// What it reaches of the world.
    #[serde(default)]
    pub network: Network,
}

/// Why a `faena.toml` was refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    /// No TOML, or a value of the wrong type.
    #[error("faena.toml: {0}")]
    Malformed(String),
    /// A key nobody knows.
    #[error("faena.toml: unknown key `{key}`{}", near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey {
        /// The key as it was written.
        key: String,
        /// The known key that is like it.
        near: Option<&'static str>,
    },
    /// A key whose meaning this version does not have yet.
    #[error("faena.toml: `{0}` is not supported by this version of Faena; leave it out")]
    NotYet(String),
    /// More retries than anyone gets.
    #[error("faena.toml: retries = {0} is more than {MAX_RETRIES}")]
    Retries(u32),
    /// A limit above what is granted.
    #[error("faena.toml: {0}")]
    Limit(#[from] LimitExceeded),
    /// A variable.
    #[error("faena.toml: {0}")]
    Env(#[from] InvalidEnv),
    /// Egress that the runtime does not allow.
    #[error("faena.toml: network = \"egress\" is not allowed by the runtime {0:?}")]
    Egress(String),
}

const KEYS: [&str; 4] = ["limits", "env", "retries", "network"];
const LIMIT_KEYS: [&str; 7] = ["memory", "cpu", "timeout", "pids", "tmp", "disk", "concurrency"];
/// Keys of the format that have no effect yet; taking them silently would promise something.
const NOT_YET: [&str; 5] = ["contract", "handler", "reuse", "preload", "minimum"];

fn check_keys(
    table: &toml::Table,
    known: &'static [&'static str],
    not_yet: &'static [&'static str],
) -> Result<(), InvalidManifest> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) if not_yet.contains(&key.as_str()) => Err(InvalidManifest::NotYet(key.clone())),
        Some(key) => {
            let near = nearest(key, known.iter().chain(not_yet).copied());
            Err(InvalidManifest::UnknownKey { key: key.chars().take(80).collect(), near })
        }
    }
}

impl Manifest {
    /// Parses the text of a `faena.toml`.
    ///
    /// # Errors
    /// [`InvalidManifest`] names the first key that is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidManifest> {
        let malformed = |error: toml::de::Error| InvalidManifest::Malformed(error.message().to_owned());
        let table: toml::Table = text.parse().map_err(malformed)?;
        check_keys(&table, &KEYS, &NOT_YET)?;
        if let Some(limits) = table.get("limits").and_then(toml::Value::as_table) {
            check_keys(limits, &LIMIT_KEYS, &[])?;
        }
        let manifest: Self = table.try_into().map_err(malformed)?;
        check_env(&manifest.env)?;
        match manifest.retries {
            Some(retries) if retries > MAX_RETRIES => Err(InvalidManifest::Retries(retries)),
            _ => Ok(manifest),
        }
    }

    /// The limits of the function's instances under a runtime and a platform's maximum.
    ///
    /// # Errors
    /// What it asks for and is not granted.
    pub fn grant(&self, runtime: &RuntimeSpec, maximum: &Limits) -> Result<Limits, InvalidManifest> {
        if self.network == Network::Egress && !runtime.allow.egress {
            return Err(InvalidManifest::Egress(runtime.name.to_string()));
        }
        let default = runtime.limits.grant(&Limits::DEFAULT, maximum, "the platform")?;
        let most = runtime.limits.lowered(maximum);
        Ok(self.limits.grant(&default, &most, "the runtime or the platform")?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_it_asks_for_is_read() {
        let manifest = Manifest::parse(
            "retries = 1\nnetwork = \"egress\"\n[limits]\nmemory = \"512 MB\"\ntimeout = \"5s\"\n[env]\nA = \"b\"\n",
        )
        .unwrap();
        assert_eq!(manifest.retries, Some(1));
        assert_eq!(manifest.network, Network::Egress);
        assert_eq!(manifest.limits.timeout, Some(crate::units::Span(5000)));
    }

    #[test]
    fn unknown_keys_are_named_with_their_neighbours() {
        let error = Manifest::parse("netwrok = \"egress\"").unwrap_err();
        assert_eq!(error.to_string(), "faena.toml: unknown key `netwrok`; did you mean `network`?");
        assert!(Manifest::parse("[limits]\nmemroy = \"1 GB\"").unwrap_err().to_string().contains("`memory`"));
    }

    #[test]
    fn keys_without_effect_are_refused_rather_than_ignored() {
        for text in ["contract = \"http\"", "reuse = \"never\"", "preload = \"function\""] {
            assert!(matches!(Manifest::parse(text), Err(InvalidManifest::NotYet(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _ = Manifest::parse(&text);
        }
    }
}
