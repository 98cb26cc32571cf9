//! What a function may ask of the platform from inside: which other functions it may call.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::FunctionName;
use crate::name::is_name;

/// The domain below which an instance finds the functions of its namespace.
pub const INTERNAL_DOMAIN: &str = "faena.internal";
/// The port on which they answer.
pub const INTERNAL_PORT: u16 = 80;
/// How deep functions may call one another: a call of this depth calls no other.
pub const MAX_DEPTH: u32 = 8;
/// The most scopes of one function.
pub const MAX_SCOPES: usize = 16;
/// The most patterns of one function.
pub const MAX_CALLS: usize = 100;

/// The function that a host below [`INTERNAL_DOMAIN`] names; none for other hosts.
pub fn internal_name(host: &str) -> Option<&str> {
    let at = host.len().checked_sub(INTERNAL_DOMAIN.len() + 1).filter(|at| host.is_char_boundary(*at))?;
    let (name, rest) = host.split_at(at);
    (rest.starts_with('.') && rest[1..].eq_ignore_ascii_case(INTERNAL_DOMAIN)).then_some(name)
}

/// What a function's `faena.toml` asks for under `[identity]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Functions of its namespace that it may call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<CallPattern>,
    /// Scopes that its requests carry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<FunctionScope>,
}

impl Identity {
    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty() && self.scopes.is_empty()
    }
}

/// A scope that functions may have: `invoke`, or a word of an operator's own. It is in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FunctionScope(String);

/// Why a text is no scope of functions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no scope of functions: these are \"invoke\" and words of your own, of 1 to 63 of the characters A-Z a-z 0-9 . _ -; no function gets admin, deploy or read"
)]
pub struct InvalidFunctionScope(String);

impl FunctionScope {
    /// The scope as a text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for FunctionScope {
    type Error = InvalidFunctionScope;

    fn try_from(text: String) -> Result<Self, InvalidFunctionScope> {
        let word = text.to_ascii_lowercase();
        if !is_name(&word) || matches!(word.as_str(), "admin" | "deploy" | "read") {
            return Err(InvalidFunctionScope(text.chars().take(80).collect()));
        }
        Ok(Self(word))
    }
}

impl From<FunctionScope> for String {
    fn from(scope: FunctionScope) -> Self {
        scope.0
    }
}

/// Functions by name: `resize`, or with a `*` at its end `mail-*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CallPattern {
    /// The name, or its beginning; in lower case.
    text: String,
    is_prefix: bool,
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no function's name, nor the beginning of one with a * at its end (\"resize\", \"mail-*\")")]
pub struct InvalidPattern(String);

impl CallPattern {
    /// Whether it means this function.
    pub fn permits(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        if self.is_prefix { name.starts_with(&self.text) } else { name == self.text }
    }
}

impl FromStr for CallPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let (begin, is_prefix) = text.strip_suffix('*').map_or((text, false), |begin| (begin, true));
        // The beginning of a name is one that a letter makes whole; `*` alone means every function.
        let whole = if is_prefix { format!("{begin}a") } else { begin.to_owned() };
        whole.parse::<FunctionName>().map_err(|_| InvalidPattern(text.chars().take(80).collect()))?;
        Ok(Self { text: begin.to_ascii_lowercase(), is_prefix })
    }
}

impl fmt::Display for CallPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.is_prefix { "*" } else { "" })
    }
}

impl TryFrom<String> for CallPattern {
    type Error = InvalidPattern;

    fn try_from(text: String) -> Result<Self, InvalidPattern> {
        text.parse()
    }
}

impl From<CallPattern> for String {
    fn from(pattern: CallPattern) -> Self {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_the_functions_it_names() {
        for (pattern, name, permits) in [
            ("resize", "resize", true),
            ("Resize", "reSIZE", true),
            ("resize", "resizer", false),
            ("mail-*", "mail-send", true),
            ("mail-*", "mail-", true),
            ("mail-*", "mail", false),
            ("*", "anything", true),
        ] {
            assert_eq!(pattern.parse::<CallPattern>().unwrap().permits(name), permits, "{pattern} {name}");
        }
        for text in ["", "a b", "a*b", "../x", "**", "a/b"] {
            assert!(text.parse::<CallPattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn functions_get_words_and_invoke_and_nothing_else() {
        let scope = |text: &str| FunctionScope::try_from(text.to_owned()).map(String::from);
        assert_eq!((scope("Robots"), scope("invoke")), (Ok("robots".to_owned()), Ok("invoke".to_owned())));
        for wrong in ["admin", "DEPLOY", "read", "", "*", "+", "a b", "-a", &"x".repeat(64)] {
            assert!(scope(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_host_below_the_domain_is_a_function() {
        assert_eq!(internal_name("resize.faena.internal"), Some("resize"));
        assert_eq!(internal_name("Resize.FAENA.internal"), Some("Resize"));
        assert_eq!(internal_name("a.b.faena.internal"), Some("a.b"));
        for host in ["faena.internal", "xfaena.internal", "example.org", "", "é.internal"] {
            assert_eq!(internal_name(host), None, "{host}");
        }
    }
}
