//! Scopes: four that the platform knows, and words of an operator's own, for rules.

use std::collections::BTreeSet;
use std::fmt;

use faena_domain::name::is_name;
use serde::{Deserialize, Serialize};

/// The most scopes that an account or a key has.
pub const MAX_SCOPES: usize = 32;

/// What an account may do in its namespace.
///
/// `admin` includes every other built-in scope, `deploy` includes `read`; `invoke` stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Look at everything in the namespace.
    Read,
    /// Call functions, and look at the calls it made.
    Invoke,
    /// Change functions and runtimes.
    Deploy,
    /// Do everything.
    Admin,
}

impl Scope {
    /// Every built-in scope.
    pub const ALL: [Self; 4] = [Self::Read, Self::Invoke, Self::Deploy, Self::Admin];

    /// The scope's name, as accounts have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Invoke => "invoke",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }

    /// The built-in scope of this name, without regard to case.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str().eq_ignore_ascii_case(name))
    }

    /// Whether who has this scope has the other one too.
    pub const fn includes(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Admin, _)
                | (Self::Deploy, Self::Deploy | Self::Read)
                | (Self::Read, Self::Read)
                | (Self::Invoke, Self::Invoke)
        )
    }

    /// The scope's bit in [`Scopes`].
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text is no scope, or a list no set of scopes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidScope {
    /// The text.
    #[error(
        "{0:?} is no scope: scopes have 1 to 63 of the characters A-Z a-z 0-9 . _ - and begin with a letter or digit"
    )]
    Text(String),
    /// Too many.
    #[error("{0} scopes are more than {MAX_SCOPES}")]
    Many(usize),
}

/// A set of scopes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Scopes {
    built_in: u8,
    /// In lower case.
    words: BTreeSet<Box<str>>,
}

impl Scopes {
    /// No scope.
    pub const NONE: Self = Self { built_in: 0, words: BTreeSet::new() };

    /// This set and one more built-in scope.
    #[must_use]
    pub fn with(mut self, scope: Scope) -> Self {
        self.built_in |= scope.bit();
        self
    }

    /// The set that has these names.
    ///
    /// # Errors
    /// One of them is no scope, or there are more than [`MAX_SCOPES`].
    pub fn parse<T: AsRef<str>>(names: &[T]) -> Result<Self, InvalidScope> {
        if names.len() > MAX_SCOPES {
            return Err(InvalidScope::Many(names.len()));
        }
        names.iter().try_fold(Self::NONE, |mut set, name| {
            let name = name.as_ref();
            match Scope::named(name) {
                Some(scope) => Ok(set.with(scope)),
                None if is_name(name) => {
                    set.words.insert(name.to_ascii_lowercase().into());
                    Ok(set)
                }
                None => Err(InvalidScope::Text(name.chars().take(80).collect())),
            }
        })
    }

    /// Whether a built-in scope is there, or one that includes it.
    pub fn include(&self, scope: Scope) -> bool {
        Scope::ALL.into_iter().any(|held| self.built_in & held.bit() != 0 && held.includes(scope))
    }

    /// Whether a scope of this name is there, or a built-in one that includes it; without regard to case.
    pub fn include_named(&self, name: &str) -> bool {
        match Scope::named(name) {
            Some(scope) => self.include(scope),
            None => self.words.iter().any(|word| word.eq_ignore_ascii_case(name)),
        }
    }

    /// The scopes of both sets.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.built_in |= other.built_in;
        self.words.extend(other.words.iter().cloned());
        self
    }

    /// The scopes of this set that the other one includes too.
    #[must_use]
    pub fn within(&self, other: &Self) -> Self {
        let kept = Scope::ALL.into_iter().filter(|scope| self.include(*scope) && other.include(*scope));
        let built_in = kept.fold(0, |bits, scope| bits | scope.bit());
        Self { built_in, words: self.words.intersection(&other.words).cloned().collect() }
    }

    /// The built-in scopes of this set that the other one includes too, and all of its words.
    #[must_use]
    pub fn bounded_by(&self, other: &Self) -> Self {
        Self { words: self.words.clone(), ..self.within(other) }
    }

    /// A scope of this set that the other one lacks.
    pub fn beyond(&self, other: &Self) -> Option<String> {
        let built_in = Scope::ALL.into_iter().filter(|scope| self.built_in & scope.bit() != 0);
        let missing = built_in.filter(|scope| !other.include(*scope)).map(|scope| scope.as_str().to_owned());
        missing.chain(self.words.difference(&other.words).map(ToString::to_string)).next()
    }

    /// The names, built-in ones first.
    pub fn names(&self) -> Vec<String> {
        let built_in = Scope::ALL.into_iter().filter(|scope| self.built_in & scope.bit() != 0);
        built_in.map(|scope| scope.as_str().to_owned()).chain(self.words.iter().map(ToString::to_string)).collect()
    }
}

impl TryFrom<Vec<String>> for Scopes {
    type Error = InvalidScope;

    fn try_from(names: Vec<String>) -> Result<Self, InvalidScope> {
        Self::parse(&names)
    }
}

impl From<Scopes> for Vec<String> {
    fn from(scopes: Scopes) -> Self {
        scopes.names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> Scopes {
        Scopes::parse(names).unwrap()
    }

    #[test]
    fn scopes_include_what_they_are_documented_to() {
        let included = |scope: Scope| {
            let held = Scopes::NONE.with(scope);
            Scope::ALL.into_iter().filter(|other| held.include(*other)).collect::<Vec<_>>()
        };
        assert_eq!(included(Scope::Read), [Scope::Read]);
        assert_eq!(included(Scope::Invoke), [Scope::Invoke]);
        assert_eq!(included(Scope::Deploy), [Scope::Read, Scope::Deploy]);
        assert_eq!(included(Scope::Admin), Scope::ALL);
    }

    #[test]
    fn words_are_an_operators_own_and_built_in_scopes_are_not_words() {
        let scopes = set(&["ROBOTS", "Deploy"]);
        assert_eq!(scopes.names(), ["deploy", "robots"]);
        assert!(scopes.include_named("robots") && scopes.include_named("READ") && !scopes.include_named("admin"));
        for wrong in ["", "*", "+", "a b", "-a", "é"] {
            assert_eq!(Scopes::parse(&[wrong]), Err(InvalidScope::Text(wrong.to_owned())), "{wrong}");
        }
        assert_eq!(Scopes::parse(&vec!["a"; 33]), Err(InvalidScope::Many(33)));
    }

    #[test]
    fn a_set_is_bounded_by_another() {
        let account = set(&["deploy", "robots"]);
        assert_eq!(set(&["admin", "robots", "other"]).within(&account), set(&["read", "deploy", "robots"]));
        assert_eq!(set(&["invoke", "other"]).bounded_by(&account), set(&["other"]));
        assert_eq!(set(&["read", "robots"]).beyond(&account), None);
        assert_eq!(set(&["admin"]).beyond(&account), Some("admin".to_owned()));
        assert_eq!(set(&["other"]).beyond(&account), Some("other".to_owned()));
    }

    #[test]
    fn a_set_is_written_as_its_names() {
        let text = serde_json::to_string(&set(&["b", "admin", "a"])).unwrap();
        assert_eq!(text, r#"["admin","a","b"]"#);
        assert_eq!(serde_json::from_str::<Scopes>(&text).unwrap(), set(&["a", "b", "admin"]));
        assert!(serde_json::from_str::<Scopes>(r#"["*"]"#).is_err());
    }
}
