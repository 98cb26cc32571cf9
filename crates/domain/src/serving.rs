//! How a version's instances are served: what its process speaks, and which of them wait for calls.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::Span;

/// The value of `handler` that says: the runtime's `run` speaks the handler protocol itself.
pub const RUN_SPEAKS: &str = "run";

/// The most instances of one function that are kept waiting.
pub const MAX_MINIMUM: u32 = 64;
/// The most calls at once in one instance.
pub const MAX_PARALLEL: u32 = 256;
/// Calls at once in one instance that speaks HTTP, where the function names no number.
pub const HTTP_PARALLEL: u32 = 16;
/// The longest time an instance may be kept without a call.
pub const MAX_IDLE: Span = Span(24 * 3600 * 1000);

/// What a function's process speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Contract {
    /// A new process for each call: params on standard input, the result on standard output.
    #[default]
    Command,
    /// One process answers many calls over frames.
    Handler,
    /// One process answers many calls over HTTP, on `$PORT`.
    Http,
}

/// Whether an instance serves again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reuse {
    /// It does, the same version of the same function.
    #[default]
    Version,
    /// It does, and each call has a process of its own there: a fork of one that has loaded the version, of which nothing
    /// is left when the call has ended.
    Fork,
    /// It serves one call and is destroyed.
    Never,
}

/// What waits for calls before they come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preload {
    /// Nothing.
    None,
    /// Instances of the runtime; code enters them at the call.
    #[default]
    Runtime,
    /// Instances that hold the function.
    Function,
}

impl fmt::Display for Preload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Runtime => "runtime",
            Self::Function => "function",
        })
    }
}

/// How one version is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Serving {
    /// What its process speaks.
    #[serde(default)]
    pub contract: Contract,
    /// Where its handler is: a file below `path`, a colon, and the function's name; or [`RUN_SPEAKS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// Whether an instance serves again.
    #[serde(default)]
    pub reuse: Reuse,
    /// What waits for its calls; none takes the worker's own setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preload: Option<Preload>,
    /// Instances that wait whether or not calls come.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub minimum: u32,
    /// How long an instance waits without a call; none takes the worker's own setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Span>,
    /// Calls at once in one instance; none takes the contract's own number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Why a way of serving was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidServing {
    /// The handler's place.
    #[error("handler = {0:?} is no file below the archive and a name, as in \"handler.py:handle\"")]
    Handler(String),
    /// A key that another contract gives a meaning to.
    #[error(
        "{0} means nothing to the contract \"command\"; leave it out, or name the contract \"handler\" or \"http\""
    )]
    OfAnotherContract(&'static str),
    /// Forks of what cannot be forked.
    #[error("reuse = \"fork\" is for the contract \"handler\" alone; a command has a process for each call anyway")]
    Fork,
    /// A number out of its range.
    #[error("{what} = {asked} is not within {least} and {most}, which are permitted")]
    Range {
        /// The key.
        what: &'static str,
        /// What was asked for.
        asked: String,
        /// The least.
        least: String,
        /// The most.
        most: String,
    },
}

fn within<T: PartialOrd + fmt::Display>(
    what: &'static str,
    asked: Option<T>,
    (least, most): (T, T),
) -> Result<(), InvalidServing> {
    match asked {
        Some(asked) if asked < least || asked > most => {
            let (asked, least, most) = (asked.to_string(), least.to_string(), most.to_string());
            Err(InvalidServing::Range { what, asked, least, most })
        }
        _ => Ok(()),
    }
}

/// A file below the archive, and a name that a program may give to a function; or what stands for the runtime's `run`.
fn is_handler(text: &str) -> bool {
    if text == RUN_SPEAKS {
        return true;
    }
    let Some((file, name)) = text.rsplit_once(':') else { return false };
    let part = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    text.len() <= 255 && file.split('/').all(part) && is_name
}

impl Serving {
    /// Holds what was asked for against what there is.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn check(&self) -> Result<(), InvalidServing> {
        if let Some(handler) = self.handler.as_deref().filter(|handler| !is_handler(handler)) {
            return Err(InvalidServing::Handler(handler.chars().take(80).collect()));
        }
        if self.contract != Contract::Handler && self.handler.is_some() {
            return Err(InvalidServing::OfAnotherContract("handler"));
        }
        if self.contract != Contract::Handler && self.reuse == Reuse::Fork {
            return Err(InvalidServing::Fork);
        }
        if self.contract == Contract::Command && self.parallel.is_some() {
            return Err(InvalidServing::OfAnotherContract("parallel"));
        }
        within("parallel", self.parallel, (1, MAX_PARALLEL))?;
        within("minimum", Some(self.minimum), (0, MAX_MINIMUM))?;
        within("idle", self.idle, (Span(1000), MAX_IDLE))
    }

    /// Calls at once in one instance.
    pub fn parallel(&self) -> u32 {
        match (self.reuse, self.contract) {
            (Reuse::Never | Reuse::Fork, _) | (_, Contract::Command) => 1,
            (Reuse::Version, Contract::Handler) => self.parallel.unwrap_or(1),
            (Reuse::Version, Contract::Http) => self.parallel.unwrap_or(HTTP_PARALLEL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_is_a_file_below_the_archive_and_a_name() {
        for text in ["handler.py:handle", "src/main.mjs:on_call", "a:b", "run"] {
            assert!(is_handler(text), "{text}");
        }
        for text in ["", "handler.py", "handler.py:", ":handle", "../x.py:h", "/x.py:h", "a.py:1", "a.py:h-h", "a b:c"]
        {
            assert!(!is_handler(text), "{text}");
        }
    }

    #[test]
    fn keys_without_a_meaning_are_refused() {
        let asked = Serving { handler: Some("a.py:b".into()), ..Serving::default() };
        assert_eq!(asked.check(), Err(InvalidServing::OfAnotherContract("handler")));
        let asked = Serving { parallel: Some(2), ..Serving::default() };
        assert_eq!(asked.check(), Err(InvalidServing::OfAnotherContract("parallel")));
        let asked = Serving { contract: Contract::Http, parallel: Some(0), ..Serving::default() };
        assert!(matches!(asked.check(), Err(InvalidServing::Range { what: "parallel", .. })));
        let asked = Serving { reuse: Reuse::Fork, ..Serving::default() };
        assert_eq!(asked.check(), Err(InvalidServing::Fork));
    }

    #[test]
    fn what_is_used_once_serves_one_call_at_a_time() {
        let asked = Serving { contract: Contract::Http, ..Serving::default() };
        assert_eq!(asked.parallel(), HTTP_PARALLEL);
        assert_eq!(Serving { reuse: Reuse::Never, ..asked }.parallel(), 1);
    }
}
