//! What is started for a version whose process answers many calls: a shim around the user's handler, or the runtime's own
//! program. The same rules decide at the upload, after a build, and in the worker.

use crate::serving::{Contract, RUN_SPEAKS, Serving};
use crate::{Command, RuntimeSpec};

/// Files that hold a handler where faena.toml names none.
const PYTHON_FILES: [&str; 1] = ["handler.py"];
const NODE_FILES: [&str; 3] = ["handler.mjs", "handler.js", "handler.cjs"];
/// The function that is looked for in them.
const DEFAULT_NAME: &str = "handle";

/// A language that has a shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// CPython.
    Python,
    /// Node.js.
    Node,
}

impl Language {
    fn of(file: &str) -> Option<Self> {
        match file.rsplit_once('.')?.1 {
            "py" => Some(Self::Python),
            "mjs" | "js" | "cjs" => Some(Self::Node),
            _ => None,
        }
    }
}

/// A function of the user's in a file below `path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's language.
    pub language: Language,
    /// The file, as faena.toml names it.
    pub file: String,
    /// The function's name.
    pub name: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.name)
    }
}

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// The shim of a language, around this function.
    Shim(Place),
    /// The runtime's `run`.
    Run,
}

/// Why nothing can be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProgram {
    /// `handler` names a file of a language that has no shim.
    #[error(
        "handler = {0:?} names neither a .py nor a .mjs, .js or .cjs file; compile it to one of these, or say handler = \"run\" where the runtime's run speaks the handler protocol itself"
    )]
    Language(String),
    /// `handler` names a file that is not there.
    #[error("handler = \"{place}\": there is no file {}{}", place.file, listed(there))]
    Missing {
        /// What was looked for.
        place: Place,
        /// The files at the top.
        there: Vec<String>,
    },
    /// faena.toml names no handler, and none of the usual files is there.
    #[error(
        "the contract \"handler\" needs a file {}{}; name another with handler = \"FILE:FUNCTION\", or say handler = \"run\" where the runtime's run speaks the handler protocol itself",
        looked_for(),
        listed(there)
    )]
    NoHandler {
        /// The files at the top.
        there: Vec<String>,
    },
    /// The file is there and does not define the function.
    #[error("handler = \"{0}\": the file {file} does not define {name}; name another function with handler = \"FILE:FUNCTION\"", file = .0.file, name = .0.name)]
    NoFunction(Place),
}

fn looked_for() -> String {
    let files: Vec<&str> = PYTHON_FILES.into_iter().chain(NODE_FILES).collect();
    let (last, first) = files.split_last().unwrap_or((&"", &[]));
    format!("{} or {last}", first.join(", "))
}

fn listed(there: &[String]) -> String {
    if there.is_empty() { String::new() } else { format!(" (there is {})", there.join(", ")) }
}

/// How a tree of code is looked at.
pub trait Tree {
    /// Whether a file, or a link, stands at a path below the tree.
    fn has_file(&self, path: &str) -> bool;
    /// A few names of files at its top, for an error.
    fn top_files(&self) -> Vec<String>;
}

impl Program {
    /// Decides what is started for a version.
    ///
    /// # Errors
    /// [`InvalidProgram`] names the file that is missing and the files that are there.
    pub fn of(serving: &Serving, run: &str, path: &str, tree: &impl Tree) -> Result<Self, InvalidProgram> {
        match (serving.contract, serving.handler.as_deref()) {
            (Contract::Command | Contract::Http, _) | (Contract::Handler, Some(RUN_SPEAKS)) => Ok(Self::Run),
            (Contract::Handler, Some(handler)) => {
                let place = place(handler)?;
                if tree.has_file(&place.file) {
                    Ok(Self::Shim(place))
                } else {
                    Err(InvalidProgram::Missing { place, there: tree.top_files() })
                }
            }
            (Contract::Handler, None) => match usual(run, tree) {
                Some(place) => Ok(Self::Shim(place)),
                None if is_own_program(run, path, tree) => Ok(Self::Run),
                None => Err(InvalidProgram::NoHandler { there: tree.top_files() }),
            },
        }
    }

    /// Holds what can be known before a build against what is there: the build may still make files.
    ///
    /// # Errors
    /// [`InvalidProgram`], as [`Program::of`].
    pub fn at_upload(
        serving: &Serving,
        runtime: &RuntimeSpec,
        tree: &impl Tree,
    ) -> Result<Option<Place>, InvalidProgram> {
        let found = Self::of(serving, &runtime.run, &runtime.path, tree);
        match found {
            Err(InvalidProgram::Missing { .. } | InvalidProgram::NoHandler { .. }) if runtime.needs_build() => Ok(None),
            Err(error) => Err(error),
            Ok(Self::Shim(place)) => Ok(Some(place)),
            Ok(Self::Run) => Ok(None),
        }
    }
}

fn place(handler: &str) -> Result<Place, InvalidProgram> {
    let (file, name) = handler.rsplit_once(':').unwrap_or((handler, DEFAULT_NAME));
    let language = Language::of(file).ok_or_else(|| InvalidProgram::Language(handler.to_owned()))?;
    Ok(Place { language, file: file.to_owned(), name: name.to_owned() })
}

/// The usual file that is there; those of Node first where `run` starts Node.
fn usual(run: &str, tree: &impl Tree) -> Option<Place> {
    let starts_node = run.split_whitespace().next().is_some_and(|program| program.ends_with("node"));
    let python = PYTHON_FILES.iter().map(|file| (Language::Python, *file));
    let node = NODE_FILES.iter().map(|file| (Language::Node, *file));
    let mut files: Vec<_> = python.chain(node).collect();
    if starts_node {
        files.rotate_left(PYTHON_FILES.len());
    }
    let (language, file) = files.into_iter().find(|(_, file)| tree.has_file(file))?;
    Some(Place { language, file: file.to_owned(), name: DEFAULT_NAME.to_owned() })
}

/// Whether `run` starts a program that came with the code, rather than an interpreter: that may speak the protocol.
fn is_own_program(run: &str, path: &str, tree: &impl Tree) -> bool {
    let Ok(command) = Command::parse(run) else { return false };
    let Some(program) = command.words.first() else { return false };
    let below = match program.strip_prefix(path).and_then(|rest| rest.strip_prefix('/')) {
        Some(below) => below,
        None if program.starts_with('/') || !program.contains('/') => return false,
        None => program,
    };
    tree.has_file(below)
}

impl Place {
    /// Whether a text may define the function. Only what surely does not is refused: a text that never names it, and takes
    /// over no names that it does not spell out.
    ///
    /// # Errors
    /// [`InvalidProgram::NoFunction`].
    pub fn check_source(&self, source: &str) -> Result<(), InvalidProgram> {
        const PYTHON_UNSPELT: [&str; 5] = ["import *", "globals(", "__getattr__", "exec(", "setattr("];
        const NODE_UNSPELT: [&str; 7] =
            ["export *", "export default", "require(", "exports[", "assign(", "definePropert", "module.exports"];
        let unspelt: &[&str] = match self.language {
            Language::Python => &PYTHON_UNSPELT,
            Language::Node => &NODE_UNSPELT,
        };
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let names = source.split(|c| !is_word(c)).any(|word| word == self.name);
        if names || unspelt.iter().any(|text| source.contains(text)) {
            return Ok(());
        }
        Err(InvalidProgram::NoFunction(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files(&'static [&'static str]);

    impl Tree for Files {
        fn has_file(&self, path: &str) -> bool {
            self.0.contains(&path.trim_start_matches("./"))
        }

        fn top_files(&self) -> Vec<String> {
            self.0.iter().map(|name| (*name).to_owned()).collect()
        }
    }

    fn of(handler: Option<&str>, run: &str, files: &'static [&'static str]) -> Result<Program, InvalidProgram> {
        let handler = handler.map(str::to_owned);
        let serving = Serving { contract: Contract::Handler, handler, ..Serving::default() };
        Program::of(&serving, run, "/ws", &Files(files))
    }

    fn shim(language: Language, file: &str, name: &str) -> Result<Program, InvalidProgram> {
        Ok(Program::Shim(Place { language, file: file.to_owned(), name: name.to_owned() }))
    }

    #[test]
    fn the_usual_files_are_found() {
        assert_eq!(
            of(None, "python3 x", &["handler.py", "handler.mjs"]),
            shim(Language::Python, "handler.py", "handle")
        );
        assert_eq!(of(None, "node x", &["handler.py", "handler.js"]), shim(Language::Node, "handler.js", "handle"));
        assert_eq!(of(Some("src/a.py:go"), "x", &["src/a.py"]), shim(Language::Python, "src/a.py", "go"));
    }

    #[test]
    fn a_program_of_the_archive_speaks_for_itself() {
        assert_eq!(of(None, "./hello --fast", &["hello"]), Ok(Program::Run));
        assert_eq!(of(None, "/ws/bin/hello", &["bin/hello"]), Ok(Program::Run));
        assert_eq!(of(Some("run"), "ruby frames.rb", &["frames.rb"]), Ok(Program::Run));
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let error = of(None, "ruby handler.rb", &["handler.rb"]).unwrap_err().to_string();
        assert!(error.contains("handler.py, handler.mjs, handler.js or handler.cjs (there is handler.rb)"), "{error}");
        let error = of(Some("app.py:handle"), "x", &["main.py"]).unwrap_err().to_string();
        assert_eq!(error, "handler = \"app.py:handle\": there is no file app.py (there is main.py)");
        for handler in ["a.rb:h", "index.ts:h"] {
            let error = of(Some(handler), "x", &["a.rb", "index.ts"]).unwrap_err().to_string();
            assert!(error.contains(".py") && error.contains(".mjs") && error.contains(handler), "{error}");
        }
    }

    #[test]
    fn a_build_may_still_make_the_file() {
        let text = |dependencies: &str| {
            format!(r#"{{"image":"i","path":"/ws","dependencies":"{dependencies}","run":"node x"}}"#)
        };
        let runtime =
            |dependencies: &str| RuntimeSpec::parse(text(dependencies).as_bytes(), &crate::Limits::MAXIMUM).unwrap();
        let asked = |handler: &str| Serving {
            contract: Contract::Handler,
            handler: Some(handler.to_owned()),
            ..Serving::default()
        };
        let files = Files(&["index.ts"]);
        assert_eq!(Program::at_upload(&asked("dist/index.mjs:handle"), &runtime("npm ci"), &files), Ok(None));
        assert!(Program::at_upload(&asked("dist/index.mjs:handle"), &runtime(""), &files).is_err());
        assert!(Program::at_upload(&asked("index.ts:handle"), &runtime("npm ci"), &files).is_err());
    }

    #[test]
    fn a_source_that_never_names_the_function_is_refused() {
        let place = |language, name: &str| Place { language, file: "f".to_owned(), name: name.to_owned() };
        let python = place(Language::Python, "handle");
        for source in
            ["def handle(p, c): pass", "from app import handle", "from app import *", "globals()['handle'] = 1"]
        {
            assert_eq!(python.check_source(source), Ok(()), "{source}");
        }
        assert!(python.check_source("def handler(p): pass").is_err());
        let node = place(Language::Node, "handle");
        for source in ["export function handle() {}", "module.exports = make()", "export * from './x.mjs'"] {
            assert_eq!(node.check_source(source), Ok(()), "{source}");
        }
        assert!(node.check_source("export function main() {}").is_err());
    }
}
