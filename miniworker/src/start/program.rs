//! What is executed in an instance: our shim around the user's handler, or the runtime's own program.

use std::collections::BTreeMap;

use faena_domain::environment::{ca_variables, package_variables, path_prefix, proxy_variables};
use faena_domain::program::{Language, Program};
use faena_domain::{Command, Contract, Reuse};
use faena_engine::CA_BUNDLE;
use faena_instance_protocol::{EGRESS_PORT, RESIDENT, Run, SHIMS};
use faena_protocol::records::{BoundConfig, Code};

use crate::Node;
use crate::code::CodeLease;
use crate::failure::StartError;
use crate::server::PORT;

/// What the image of a version sets, where the platform keeps it; an engine adds what other images set.
pub(crate) fn image_variables(code: &Code) -> BTreeMap<String, String> {
    code.image_content.as_ref().map(|content| content.env.clone()).unwrap_or_default()
}

/// The environment of every process of a version.
pub(crate) fn base_environment(node: &Node, code: &Code) -> BTreeMap<String, String> {
    let mut env = image_variables(code);
    env.extend(package_variables(&code.path));
    if code.reaches_out() {
        env.extend(proxy_variables(EGRESS_PORT));
        if node.ca_bundle.is_some() {
            env.extend(ca_variables(CA_BUNDLE));
        }
    }
    env.extend(code.env.clone());
    env.extend(code.config.iter().flat_map(|config| &config.env).map(|(name, value)| (name.clone(), value.0.clone())));
    env.into_iter().collect()
}

/// Why what is asked for of the configuration cannot be given: a value is not there, or no variable can have it.
pub(crate) fn config_problem(config: &BoundConfig) -> Option<String> {
    if let Some(problem) = &config.problem {
        return Some(problem.to_string());
    }
    let (name, _) = config.env.iter().find(|(_, value)| value.0.contains('\0'))?;
    Some(format!("the variable {name} cannot have its value of the configuration, which holds a NUL character"))
}

/// # Errors
/// See [`config_problem`].
pub(super) fn check_config(code: &Code) -> Result<(), StartError> {
    match code.config.as_ref().and_then(config_problem) {
        Some(problem) => Err(StartError::refused(problem)),
        None => Ok(()),
    }
}

/// What is executed: our shim around the user's handler, or the runtime's own program.
pub(super) struct Executed {
    pub(super) words: Vec<String>,
    /// Whether it is the shim of Python.
    is_python: bool,
    /// Whether it opens the pipe of its calls by its name: Node cannot duplicate a descriptor.
    pub(super) opens_calls: bool,
}

impl Executed {
    pub(super) fn may_be_clone(&self, code: &Code, tree: &CodeLease) -> bool {
        self.is_python && suits_a_clone(code, tree)
    }

    pub(super) fn of(code: &Code, tree: &CodeLease) -> Result<Self, StartError> {
        let program = Program::of(&code.serving, &code.run, &code.path, tree);
        let place = match program.map_err(|error| StartError::refused(error.to_string()))? {
            Program::Run => {
                let command = Command::parse(&code.run).map_err(|error| StartError::refused(error.to_string()))?;
                return Ok(Self { words: command.words, is_python: false, opens_calls: false });
            }
            Program::Shim(place) => place,
        };
        let (program, shim): (&[&str], _) = match place.language {
            // -S: the shim finds packages itself, in half the time.
            Language::Python => (&["python3", "-S"], "python.py"),
            Language::Node => (&["node"], "node.mjs"),
        };
        let words = program.iter().map(|word| (*word).to_owned());
        let words = words.chain([format!("{SHIMS}/{shim}"), place.to_string()]).collect();
        let is_python = place.language == Language::Python;
        Ok(Self { words, is_python, opens_calls: !is_python })
    }
}

pub(super) fn run_frame(node: &Node, code: &Code, words: Vec<String>) -> Run {
    let mut env: BTreeMap<String, String> = base_environment(node, code);
    let parallel = code.serving.parallel().to_string();
    let ours = [
        ("FAENA_FUNCTION", code.function.to_string()),
        ("FAENA_VERSION", code.version.to_string()),
        ("FAENA_PARALLEL", parallel),
    ];
    env.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    if code.serving.reuse == Reuse::Fork {
        env.insert("FAENA_FORK".to_owned(), "1".to_owned());
    }
    if code.serving.contract == Contract::Http {
        env.insert("PORT".to_owned(), PORT.to_string());
    }
    Run {
        id: RESIDENT,
        words,
        env: env.into_iter().collect(),
        path_prefix: path_prefix(&code.path),
        path: code.path.clone(),
        has_answers: false,
        wants_output: false,
        files: Vec::new(),
    }
}

/// Whether an interpreter that was started before a version was known is as good as one of its own: nothing that it would
/// have read at its start is set, and the version brings no other one.
fn suits_a_clone(code: &Code, tree: &CodeLease) -> bool {
    let is_read_early = |name: &str| {
        name.starts_with("PYTHON") || name.starts_with("LC_") || matches!(name, "LANG" | "LANGUAGE" | "PATH")
    };
    let prefix = path_prefix(&code.path);
    let own = format!("{}/", code.path);
    let mut folders = prefix.split(':').filter_map(|folder| folder.strip_prefix(own.as_str()));
    let of_config = code.config.iter().flat_map(|config| config.env.keys());
    !code.env.keys().chain(of_config).any(|name| is_read_early(name))
        && !folders.any(|folder| tree.may_have(&format!("{folder}/python3")))
}
