//! Runtimes: where functions run.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::command::{Command, InvalidCommand};
use crate::environment::{InvalidEnv, check_env};
use crate::identity::{FunctionScope, MAX_SCOPES};
use crate::json::{InvalidJson, parse_object, present};
use crate::limits::{LimitExceeded, Limits};
use crate::name::InvalidName;
use crate::near::nearest;
use crate::network::MAX_RULES;
use crate::serving::Preload;
use crate::{AskedLimits, ImageName, NetworkRule, NodeSelector, RuntimeName};

/// What makes instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Containers of a Docker daemon, or of Podman's socket.
    Docker,
    /// Linux namespaces of our own launcher; no daemon.
    Sandbox,
}

impl EngineKind {
    /// The engine's name in JSON, settings and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Sandbox => "sandbox",
        }
    }

    /// The engine of that name, where there is one a user may name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Docker, Self::Sandbox].into_iter().find(|engine| engine.as_str() == name)
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a runtime lets its functions ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Allow {
    /// `network = "egress"`.
    #[serde(default = "granted")]
    pub egress: bool,
    /// Instances that wait whether or not calls come.
    #[serde(default = "granted")]
    pub minimum: bool,
    /// `preload = "function"`.
    #[serde(default = "granted")]
    pub preload: bool,
    /// `access = "public"`. It is said, never taken for granted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub public: bool,
    /// Private networks that functions with egress may reach, besides those that the platform permits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkRule>,
    /// Scopes that functions may ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<FunctionScope>,
}

fn granted() -> bool {
    true
}

impl Default for Allow {
    fn default() -> Self {
        Self { egress: true, minimum: true, preload: true, public: false, networks: Vec::new(), scopes: Vec::new() }
    }
}

/// What the runtimes of a namespace may let their functions ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Grants {
    /// See [`Allow::egress`].
    pub egress: bool,
    /// See [`Allow::minimum`].
    pub minimum: bool,
    /// See [`Allow::preload`].
    pub preload: bool,
    /// See [`Allow::public`].
    pub public: bool,
}

impl Grants {
    /// Everything.
    pub const ALL: Self = Self { egress: true, minimum: true, preload: true, public: true };
    /// Nothing, as a new namespace has.
    pub const NONE: Self = Self { egress: false, minimum: false, preload: false, public: false };
}

/// Changes of [`Grants`]: a member that is left out stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrantsChange {
    /// See [`Allow::egress`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub egress: Option<bool>,
    /// See [`Allow::minimum`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub minimum: Option<bool>,
    /// See [`Allow::preload`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub preload: Option<bool>,
    /// See [`Allow::public`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
}

impl Grants {
    /// These grants after a change.
    #[must_use]
    pub fn changed(self, change: GrantsChange) -> Self {
        Self {
            egress: change.egress.unwrap_or(self.egress),
            minimum: change.minimum.unwrap_or(self.minimum),
            preload: change.preload.unwrap_or(self.preload),
            public: change.public.unwrap_or(self.public),
        }
    }
}

impl Default for Grants {
    fn default() -> Self {
        Self::NONE
    }
}

/// What who registers a runtime may permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registrar {
    /// What its namespace has.
    pub grants: Grants,
    /// Whether it may say what is allowed, rather than take what the namespace has.
    pub is_admin: bool,
    /// Whether it may permit private networks.
    pub is_root: bool,
}

impl Registrar {
    /// Who may do everything.
    pub const ROOT: Self = Self { grants: Grants::ALL, is_admin: true, is_root: true };
}

/// What a body says of [`Allow`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AskedAllow {
    egress: Option<bool>,
    minimum: Option<bool>,
    preload: Option<bool>,
    public: Option<bool>,
    #[serde(default)]
    networks: Vec<NetworkRule>,
    #[serde(default)]
    scopes: Vec<FunctionScope>,
}

impl AskedAllow {
    fn within(self, registrar: &Registrar) -> Result<Allow, InvalidRuntime> {
        if !registrar.is_admin {
            return Err(InvalidRuntime::NotGranted("allow"));
        }
        if !self.networks.is_empty() && !registrar.is_root {
            return Err(InvalidRuntime::NotGranted("allow.networks"));
        }
        if self.networks.len() > MAX_RULES {
            return Err(InvalidRuntime::Networks(self.networks.len()));
        }
        if self.scopes.len() > MAX_SCOPES {
            return Err(InvalidRuntime::Scopes(self.scopes.len()));
        }
        let one = |what, asked: Option<bool>, granted: bool| match asked {
            Some(true) if !granted => Err(InvalidRuntime::NotGranted(what)),
            asked => Ok(asked.unwrap_or(granted)),
        };
        let Grants { egress, minimum, preload, public } = registrar.grants;
        // Nothing becomes public by what is left out.
        let is_public = one("allow.public", self.public.or(Some(false)), public)?;
        Ok(Allow {
            egress: one("allow.egress", self.egress, egress)?,
            minimum: one("allow.minimum", self.minimum, minimum)?,
            preload: one("allow.preload", self.preload, preload)?,
            public: is_public,
            networks: self.networks,
            scopes: self.scopes,
        })
    }
}

/// A runtime as it is registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeSpec {
    /// Its name; the image's where none was given.
    pub name: RuntimeName,
    /// The image, as Docker or the sandbox's mapping knows it.
    pub image: ImageName,
    /// Where code is put: absolute and normal.
    pub path: String,
    /// The command that installs what a function needs; empty where nothing is to be built.
    pub dependencies: String,
    /// The command that runs a function.
    pub run: String,
    /// The only engine to take, where one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineKind>,
    /// What its functions get and may ask for.
    #[serde(default)]
    pub limits: AskedLimits,
    /// Variables for builds and calls.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What its functions may ask for.
    #[serde(default)]
    pub allow: Allow,
    /// What waits for calls of its functions that do not say so themselves; none takes the node's own setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preload: Option<Preload>,
    /// Labels that a node must have to build and run its functions.
    #[serde(default, skip_serializing_if = "NodeSelector::is_empty")]
    pub node_selector: NodeSelector,
}

/// Why a runtime was refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRuntime {
    /// The JSON itself.
    #[error(transparent)]
    Json(#[from] InvalidJson),
    /// The name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// No name was given and the image's cannot serve.
    #[error("the image {0:?} cannot serve as a name")]
    NameNeeded(String),
    /// The image.
    #[error(transparent)]
    Image(#[from] crate::image::InvalidImage),
    /// The path.
    #[error("path {path:?} {why}")]
    Path {
        /// The path as it came.
        path: String,
        /// The end of the sentence.
        why: &'static str,
    },
    /// One of the two commands.
    #[error("{which}: {source}")]
    Command {
        /// `dependencies` or `run`.
        which: &'static str,
        /// What is wrong with it.
        source: InvalidCommand,
    },
    /// The engine.
    #[error("unknown engine {name:?}{}", near.map(|n| format!("; did you mean {n:?}?")).unwrap_or_default())]
    Engine {
        /// The name as it came.
        name: String,
        /// An engine of a name like it.
        near: Option<&'static str>,
    },
    /// A limit above what the platform grants.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// A variable.
    #[error(transparent)]
    Env(#[from] InvalidEnv),
    /// What its registrar may not permit.
    #[error("you may not set `{0}` for a runtime of this namespace")]
    NotGranted(&'static str),
    /// More scopes than a function may have.
    #[error("allow.scopes: {0} scopes are more than {MAX_SCOPES}")]
    Scopes(usize),
    /// More networks than a runtime may permit.
    #[error("allow.networks: {0} networks are more than {MAX_RULES}")]
    Networks(usize),
}

const FIELDS: [&str; 11] =
    ["image", "path", "dependencies", "run", "name", "engine", "limits", "env", "allow", "preload", "nodeSelector"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    image: String,
    path: String,
    dependencies: String,
    run: String,
    name: Option<String>,
    engine: Option<String>,
    #[serde(default)]
    limits: AskedLimits,
    #[serde(default)]
    env: BTreeMap<String, String>,
    allow: Option<AskedAllow>,
    preload: Option<Preload>,
    #[serde(default)]
    node_selector: NodeSelector,
}

impl RuntimeSpec {
    /// Parses the body of `POST /registerRuntime` of somebody who may permit everything.
    ///
    /// # Errors
    /// As [`RuntimeSpec::parse_of`].
    pub fn parse(body: &[u8], maximum: &Limits) -> Result<Self, InvalidRuntime> {
        Self::parse_of(&Registrar::ROOT, body, maximum)
    }

    /// Parses the body of `POST /registerRuntime`.
    ///
    /// # Errors
    /// [`InvalidRuntime`] names the first member that is wrong.
    pub fn parse_of(registrar: &Registrar, body: &[u8], maximum: &Limits) -> Result<Self, InvalidRuntime> {
        let body: Body = parse_object(body, &FIELDS)?;
        let name = match &body.name {
            Some(name) => name.parse()?,
            None => body.image.parse().map_err(|_| InvalidRuntime::NameNeeded(body.image.clone()))?,
        };
        let image = body.image.try_into()?;
        check_path(&body.path)
            .map_err(|why| InvalidRuntime::Path { path: body.path.chars().take(80).collect(), why })?;
        if !body.dependencies.trim().is_empty() {
            Command::parse(&body.dependencies)
                .map_err(|source| InvalidRuntime::Command { which: "dependencies", source })?;
        }
        Command::parse(&body.run).map_err(|source| InvalidRuntime::Command { which: "run", source })?;
        let engine = body.engine.as_deref().map(parse_engine).transpose()?;
        body.limits.grant(&Limits::DEFAULT, maximum, "the platform")?;
        check_env(&body.env)?;
        let Grants { egress, minimum, preload, .. } = registrar.grants;
        let granted = Allow { egress, minimum, preload, ..Allow::default() };
        let allow = body.allow.map(|asked| asked.within(registrar)).transpose()?.unwrap_or(granted);
        if body.preload == Some(Preload::Function) && !allow.preload {
            return Err(InvalidRuntime::NotGranted("preload: function"));
        }
        Ok(Self {
            name,
            image,
            path: body.path,
            dependencies: body.dependencies,
            run: body.run,
            engine,
            limits: body.limits,
            env: body.env,
            allow,
            preload: body.preload,
            node_selector: body.node_selector,
        })
    }

    /// Whether code needs a build before it runs.
    pub fn needs_build(&self) -> bool {
        !self.dependencies.trim().is_empty()
    }
}

fn parse_engine(name: &str) -> Result<EngineKind, InvalidRuntime> {
    EngineKind::from_name(name).ok_or_else(|| InvalidRuntime::Engine {
        name: name.chars().take(80).collect(),
        near: nearest(name, ["docker", "sandbox"]),
    })
}

/// Folders that belong to the system or to the agent; no code is put at or below them.
const RESERVED: [&str; 14] = [
    "/proc", "/sys", "/dev", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/run", "/tmp",
    "/.faena",
];

fn check_path(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("must be absolute: it begins with no /");
    }
    if path.len() > 200 || path.chars().any(char::is_control) {
        return Err("must have at most 200 characters and no control characters");
    }
    if path.contains([',', ':', '\\']) {
        return Err("must not hold a comma, a colon or a backslash, which mount options give a meaning");
    }
    if path[1..].split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("must be normal: no empty part, no . and no .., no / at the end, and more than / itself");
    }
    let under = |folder: &&str| path == *folder || path.strip_prefix(*folder).is_some_and(|rest| rest.starts_with('/'));
    if RESERVED.iter().any(under) {
        return Err("belongs to the system; take a folder of your own, like /ws");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &serde_json::Value) -> Result<RuntimeSpec, InvalidRuntime> {
        RuntimeSpec::parse(value.to_string().as_bytes(), &Limits::MAXIMUM)
    }

    #[test]
    fn a_runtime_permits_what_its_registrar_may() {
        let with = |registrar: &Registrar, allow: Option<serde_json::Value>| {
            let mut body = owners();
            allow.into_iter().for_each(|allow| body["allow"] = allow);
            RuntimeSpec::parse_of(registrar, body.to_string().as_bytes(), &Limits::MAXIMUM).map(|spec| spec.allow)
        };
        let deployer = Registrar { grants: Grants { egress: true, ..Grants::NONE }, is_admin: false, is_root: false };
        let taken = with(&deployer, None).unwrap();
        assert_eq!((taken.egress, taken.minimum, taken.preload), (true, false, false), "what its namespace has");
        let refused = |registrar: &Registrar, allow| with(registrar, Some(allow)).unwrap_err().to_string();
        assert!(refused(&deployer, serde_json::json!({})).contains("may not set `allow`"));
        let lead = Registrar { is_admin: true, ..deployer };
        assert!(!with(&lead, Some(serde_json::json!({"egress": false}))).unwrap().egress);
        assert!(refused(&lead, serde_json::json!({"minimum": true})).contains("allow.minimum"));
        assert!(refused(&lead, serde_json::json!({"networks": ["10.0.0.0/8"]})).contains("allow.networks"));
        assert!(with(&Registrar::ROOT, Some(serde_json::json!({"networks": ["10.0.0.0/8"]}))).is_ok());
    }

    fn owners() -> serde_json::Value {
        serde_json::json!({"image": "pythonruntime", "path": "/ws",
            "dependencies": "pip3 install -r requirements.txt", "run": "python3 test.py"})
    }

    fn with(key: &str, value: impl Into<serde_json::Value>) -> serde_json::Value {
        let mut body = owners();
        body[key] = value.into();
        body
    }

    #[test]
    fn the_owners_object_is_a_runtime_named_by_its_image() {
        assert_eq!(parse(&owners()).unwrap().name.as_str(), "pythonruntime");
    }

    #[test]
    fn every_path_of_the_system_is_refused() {
        for path in
            ["ws", "/", "/ws/../etc", "/ws/", "//ws", "/usr/x", "/etc", "/proc", "/tmp/x", "/run", "/.faena", "/a,b"]
        {
            assert!(matches!(parse(&with("path", path)), Err(InvalidRuntime::Path { .. })), "{path}");
        }
        for path in ["/ws", "/srv/app", "/usrx", "/home/me"] {
            assert!(parse(&with("path", path)).is_ok(), "{path}");
        }
    }

    #[test]
    fn a_misspelt_engine_is_named_with_its_neighbour() {
        let error = parse(&with("engine", "dokcer")).unwrap_err();
        assert_eq!(error.to_string(), "unknown engine \"dokcer\"; did you mean \"docker\"?");
    }

    #[test]
    fn what_waits_for_calls_is_granted_like_what_functions_ask_for() {
        let body = |preload: &str, allow: bool| {
            serde_json::json!({"image": "i", "path": "/ws", "dependencies": "", "run": "r", "preload": preload,
                "allow": {"preload": allow}})
        };
        assert_eq!(parse(&body("function", true)).unwrap().preload, Some(Preload::Function));
        assert_eq!(parse(&body("none", false)).unwrap().preload, Some(Preload::None));
        assert!(matches!(parse(&body("function", false)), Err(InvalidRuntime::NotGranted(_))));
        assert!(matches!(parse(&body("much", true)), Err(InvalidRuntime::Json(_))));
    }

    #[test]
    fn an_image_that_is_no_name_needs_one() {
        assert!(matches!(parse(&with("image", "ghcr.io/a/b")), Err(InvalidRuntime::NameNeeded(_))));
        let mut body = with("image", "ghcr.io/a/b");
        body["name"] = "b".into();
        assert_eq!(parse(&body).unwrap().name.as_str(), "b");
    }

    #[test]
    fn empty_commands_differ_in_meaning() {
        assert!(!parse(&with("dependencies", "")).unwrap().needs_build());
        assert!(parse(&with("run", "")).is_err());
    }

    #[test]
    fn more_than_the_platform_grants_is_refused() {
        assert!(matches!(
            parse(&with("limits", serde_json::json!({"memory": "64 GB"}))),
            Err(InvalidRuntime::Limit(_))
        ));
    }
}
