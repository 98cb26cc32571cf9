//! `faena.toml`: what a function's archive asks for. The operator grants.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{Binding, ConfigPath, Variable};
use crate::environment::{InvalidEnv, check_env};
use crate::identity::{FunctionScope, MAX_CALLS, MAX_SCOPES};
use crate::limits::{LimitExceeded, Limits};
use crate::near::nearest;
use crate::retry::MAX_RETRIES;
use crate::serving::{InvalidServing, Preload, Serving};
use crate::{AskedLimits, Identity, Network, NodeSelector, RuntimeSpec};

/// Its name in the archive.
pub const FILE: &str = "faena.toml";
/// The most files with values of the configuration, and the longest name of one, in bytes.
const MAX_FILES: usize = 32;
const MAX_FILE_NAME: usize = 63;
/// The largest one, in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// What a function asks for; everything is optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Limits above or below the runtime's.
    #[serde(default)]
    pub limits: AskedLimits,
    /// Variables for its build and its calls, over the runtime's. Values of the configuration are for its calls alone.
    #[serde(default)]
    pub env: BTreeMap<String, Variable>,
    /// Files below `/run/secrets` for its calls, each with a value of the configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, Binding>,
    /// What is for its build alone.
    #[serde(default, skip_serializing_if = "BuildManifest::is_empty")]
    pub build: BuildManifest,
    /// Retries of its asynchronous calls, where the call names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// What it reaches of the world.
    #[serde(default)]
    pub network: Network,
    /// Who may call it besides those whom rules permit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<FunctionAccess>,
    /// What it may ask of the platform from inside.
    #[serde(default, skip_serializing_if = "Identity::is_empty")]
    pub identity: Identity,
    /// Labels that a node must have to build and run it, besides those that its runtime asks for.
    #[serde(default, skip_serializing_if = "NodeSelector::is_empty")]
    pub node: NodeSelector,
    /// What its process speaks, and which of its instances wait.
    #[serde(flatten)]
    pub serving: Serving,
}

/// What a function asks for its build.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildManifest {
    /// Variables, over those of its calls that have a value of their own.
    #[serde(default)]
    pub env: BTreeMap<String, Variable>,
}

impl BuildManifest {
    fn is_empty(&self) -> bool {
        self.env.is_empty()
    }
}

/// Who may call a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FunctionAccess {
    /// Everyone, also without a credential, unless a rule denies it.
    Public,
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
    /// How it wants to be served.
    #[error("faena.toml: {0}")]
    Serving(#[from] InvalidServing),
    /// More functions to call than one may name.
    #[error("faena.toml: identity.calls has {0} entries, more than {MAX_CALLS}")]
    Calls(usize),
    /// More files than one may have.
    #[error("faena.toml: files has {0} entries, more than {MAX_FILES}")]
    Files(usize),
    /// The name of a file.
    #[error(
        "faena.toml: {0:?} is no name of a file: such names have 1 to 63 of the characters A-Z a-z 0-9 . _ - and begin with no dot"
    )]
    FileName(String),
    /// More scopes than one may have.
    #[error("faena.toml: identity.scopes has {0} entries, more than {MAX_SCOPES}")]
    Scopes(usize),
    /// A scope that the runtime does not allow.
    #[error("faena.toml: identity.scopes names {scope}, which the runtime {runtime:?} does not allow")]
    ScopeNotAllowed {
        /// The scope.
        scope: String,
        /// The runtime's name.
        runtime: String,
    },
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
    /// Callers without a credential, which the runtime does not allow.
    #[error("faena.toml: access = \"public\" is not allowed by the runtime {0:?}")]
    Public(String),
    /// Labels of nodes that contradict the runtime's.
    #[error(
        "faena.toml: [node] asks for {asked}, and the runtime {runtime:?} for {of_runtime}: no node has two values of one label"
    )]
    Nodes {
        /// What was asked for.
        asked: NodeSelector,
        /// The runtime's name.
        runtime: String,
        /// What the runtime asks for.
        of_runtime: NodeSelector,
    },
    /// Instances that wait, which the runtime does not allow.
    #[error("faena.toml: {what} is not allowed by the runtime {runtime:?}")]
    Waiting {
        /// What was asked for.
        what: &'static str,
        /// The runtime's name.
        runtime: String,
    },
}

const KEYS: [&str; 16] = [
    "access", "node", "limits", "env", "files", "build", "retries", "network", "identity", "contract", "handler",
    "reuse", "preload", "minimum", "idle", "parallel",
];
const LIMIT_KEYS: [&str; 7] = ["memory", "cpu", "timeout", "pids", "tmp", "disk", "concurrency"];
fn check_keys(table: &toml::Table, known: &'static [&'static str]) -> Result<(), InvalidManifest> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let near = nearest(key, known.iter().copied());
            Err(InvalidManifest::UnknownKey { key: key.chars().take(80).collect(), near })
        }
    }
}

/// What is bound to values of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings {
    /// Variables.
    pub env: BTreeMap<String, ConfigPath>,
    /// Files.
    pub files: BTreeMap<String, ConfigPath>,
}

impl Bindings {
    /// The paths of the values.
    pub fn paths(&self) -> impl Iterator<Item = &ConfigPath> {
        self.env.values().chain(self.files.values())
    }
}

/// The variables that have a value.
fn fixed(env: &BTreeMap<String, Variable>) -> BTreeMap<String, String> {
    let fixed = |(name, variable): (&String, &Variable)| match variable {
        Variable::Text(text) => Some((name.clone(), text.clone())),
        Variable::Config(_) => None,
    };
    env.iter().filter_map(fixed).collect()
}

/// The variables that are bound to one.
fn bound(env: &BTreeMap<String, Variable>) -> BTreeMap<String, ConfigPath> {
    let bound = |(name, variable): (&String, &Variable)| match variable {
        Variable::Text(_) => None,
        Variable::Config(binding) => Some((name.clone(), binding.config.clone())),
    };
    env.iter().filter_map(bound).collect()
}

fn check_files(files: &BTreeMap<String, Binding>) -> Result<(), InvalidManifest> {
    if files.len() > MAX_FILES {
        return Err(InvalidManifest::Files(files.len()));
    }
    let is_plain = |name: &str| {
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        (1..=MAX_FILE_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
    };
    match files.keys().find(|name| !is_plain(name)) {
        Some(name) => Err(InvalidManifest::FileName(name.chars().take(80).collect())),
        None => Ok(()),
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
        check_keys(&table, &KEYS)?;
        if let Some(limits) = table.get("limits").and_then(toml::Value::as_table) {
            check_keys(limits, &LIMIT_KEYS)?;
        }
        for (name, known) in [("network", &["egress"] as &[_]), ("identity", &["calls", "scopes"]), ("build", &["env"])]
        {
            if let Some(inner) = table.get(name).and_then(toml::Value::as_table) {
                check_keys(inner, known)?;
            }
        }
        let manifest: Self = table.try_into().map_err(malformed)?;
        for env in [&manifest.env, &manifest.build.env] {
            check_env(&fixed(env))?;
            // The values come later; the names have to be valid now.
            check_env(&bound(env).into_keys().map(|name| (name, String::new())).collect())?;
        }
        check_files(&manifest.files)?;
        manifest.serving.check()?;
        if manifest.identity.calls.len() > MAX_CALLS {
            return Err(InvalidManifest::Calls(manifest.identity.calls.len()));
        }
        if manifest.identity.scopes.len() > MAX_SCOPES {
            return Err(InvalidManifest::Scopes(manifest.identity.scopes.len()));
        }
        match manifest.retries {
            Some(retries) if retries > MAX_RETRIES => Err(InvalidManifest::Retries(retries)),
            _ => Ok(manifest),
        }
    }

    /// The variables of its calls whose values it has itself.
    pub fn fixed_env(&self) -> BTreeMap<String, String> {
        fixed(&self.env)
    }

    /// What its calls get of the configuration.
    pub fn bindings(&self) -> Bindings {
        let files = self.files.iter().map(|(name, binding)| (name.clone(), binding.config.clone()));
        Bindings { env: bound(&self.env), files: files.collect() }
    }

    /// The variables of its build whose values it has itself.
    pub fn fixed_build_env(&self) -> BTreeMap<String, String> {
        fixed(&self.build.env)
    }

    /// What its build gets of the configuration.
    pub fn build_bindings(&self) -> Bindings {
        Bindings { env: bound(&self.build.env), files: BTreeMap::new() }
    }

    /// Labels that a node must have to run the function under a runtime.
    ///
    /// # Errors
    /// Labels that contradict the runtime's.
    pub fn nodes(&self, runtime: &RuntimeSpec) -> Result<NodeSelector, InvalidManifest> {
        runtime.node_selector.and(&self.node).ok_or_else(|| InvalidManifest::Nodes {
            asked: self.node.clone(),
            runtime: runtime.name.to_string(),
            of_runtime: runtime.node_selector.clone(),
        })
    }

    /// The limits of the function's instances under a runtime and a platform's maximum.
    ///
    /// # Errors
    /// What it asks for and is not granted.
    pub fn grant(&self, runtime: &RuntimeSpec, maximum: &Limits) -> Result<Limits, InvalidManifest> {
        if self.network.has_egress() && !runtime.allow.egress {
            return Err(InvalidManifest::Egress(runtime.name.to_string()));
        }
        if self.access == Some(FunctionAccess::Public) && !runtime.allow.public {
            return Err(InvalidManifest::Public(runtime.name.to_string()));
        }
        let waiting = [
            ("minimum", self.serving.minimum > 0 && !runtime.allow.minimum),
            ("preload = \"function\"", self.serving.preload == Some(Preload::Function) && !runtime.allow.preload),
        ];
        if let Some((what, _)) = waiting.into_iter().find(|(_, is_refused)| *is_refused) {
            return Err(InvalidManifest::Waiting { what, runtime: runtime.name.to_string() });
        }
        let is_allowed = |scope: &&FunctionScope| runtime.allow.scopes.contains(scope);
        if let Some(scope) = self.identity.scopes.iter().find(|scope| !is_allowed(scope)) {
            let (scope, runtime) = (scope.as_str().to_owned(), runtime.name.to_string());
            return Err(InvalidManifest::ScopeNotAllowed { scope, runtime });
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
    use crate::serving::{Contract, Reuse};

    #[test]
    fn what_it_asks_for_is_read() {
        let manifest = Manifest::parse(
            "retries = 1\nnetwork = \"egress\"\n[limits]\nmemory = \"512 MB\"\ntimeout = \"5s\"\n[env]\nA = \"b\"\n",
        )
        .unwrap();
        assert_eq!(manifest.retries, Some(1));
        assert_eq!(manifest.network, Network::Public);
        assert_eq!(manifest.limits.timeout, Some(crate::units::Span(5000)));
    }

    #[test]
    fn unknown_keys_are_named_with_their_neighbours() {
        let error = Manifest::parse("netwrok = \"egress\"").unwrap_err();
        assert_eq!(error.to_string(), "faena.toml: unknown key `netwrok`; did you mean `network`?");
        assert!(Manifest::parse("[limits]\nmemroy = \"1 GB\"").unwrap_err().to_string().contains("`memory`"));
    }

    #[test]
    fn a_rule_that_is_none_is_named() {
        let listed = Manifest::parse("[network]\negress = [\"*.example.org:443\"]").unwrap();
        assert!(listed.network.has_egress());
        let error = |text| Manifest::parse(text).unwrap_err().to_string();
        assert!(error("[network]\negress = [\"a b\"]").contains("\"a b\" is no destination"));
        assert!(error("[network]\negres = []").contains("did you mean `egress`?"));
        assert!(error("network = \"world\"").contains("\"egress\""));
    }

    #[test]
    fn how_it_is_served_is_read() {
        let manifest = Manifest::parse(
            "contract = \"handler\"\nhandler = \"a.py:b\"\nreuse = \"never\"\npreload = \"function\"\nminimum = 2\nidle = \"5m\"\n",
        )
        .unwrap();
        assert_eq!(manifest.serving.contract, Contract::Handler);
        assert_eq!((manifest.serving.reuse, manifest.serving.minimum), (Reuse::Never, 2));
        assert_eq!(manifest.serving.idle, Some(crate::units::Span(300_000)));
        assert!(Manifest::parse("contract = \"soap\"").is_err());
        assert!(matches!(Manifest::parse("minimum = 1000"), Err(InvalidManifest::Serving(_))));
    }

    #[test]
    fn files_and_builds_are_bound_too() {
        let manifest = Manifest::parse(
            "[env]\nA = { config = \"a\" }\n[files]\n\"db.url\" = { config = \"db.url\" }\n[build.env]\nTOKEN = { config = \"t\" }\nB = \"b\"\n",
        )
        .unwrap();
        let texts = |bindings: Bindings| bindings.paths().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(manifest.bindings()), ["a", "db.url"]);
        assert_eq!(texts(manifest.build_bindings()), ["t"]);
        assert_eq!(manifest.fixed_build_env()["B"], "b");
        for wrong in ["../a", "a/b", ".a", "", "é", "x\u{0}"] {
            let text = format!("[files]\n{wrong:?} = {{ config = \"a\" }}");
            assert!(Manifest::parse(&text).is_err(), "{wrong}");
        }
        assert!(Manifest::parse("[files]\na = \"text\"").is_err());
        assert!(Manifest::parse("[build]\nenvs = {}").unwrap_err().to_string().contains("`env`"));
    }

    #[test]
    fn a_runtime_may_forbid_what_waits() {
        let text =
            r#"{"image":"i","path":"/ws","dependencies":"","run":"r","allow":{"minimum":false,"preload":false}}"#;
        let runtime = RuntimeSpec::parse(text.as_bytes(), &Limits::MAXIMUM).unwrap();
        for text in ["minimum = 1", "preload = \"function\""] {
            let asked = Manifest::parse(text).unwrap().grant(&runtime, &Limits::MAXIMUM);
            assert!(matches!(asked, Err(InvalidManifest::Waiting { .. })), "{text}");
        }
        assert!(Manifest::parse("preload = \"runtime\"").unwrap().grant(&runtime, &Limits::MAXIMUM).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _ = Manifest::parse(&text);
        }
    }
}
