//! Names that people give: of namespaces, runtimes and functions. They keep their case, and are equal without regard to it.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

/// The longest name, in characters (all of them ASCII).
pub const MAX_NAME: usize = 63;

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no name: names have 1 to 63 of the characters A-Z a-z 0-9 . _ - and begin with a letter or digit")]
pub struct InvalidName {
    /// The text as it came, cut at 80 characters.
    pub text: String,
}

/// Whether a text can be a name: 1 to [`MAX_NAME`] letters, digits, `.`, `_` and `-`, of which the first is a letter or digit.
pub fn is_name(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    let bytes = text.as_bytes();
    (1..=MAX_NAME).contains(&bytes.len()) && bytes[0].is_ascii_alphanumeric() && bytes.iter().all(|&c| plain(c))
}

fn check(text: &str) -> Result<(), InvalidName> {
    if is_name(text) { Ok(()) } else { Err(InvalidName { text: text.chars().take(80).collect() }) }
}

/// Hashes a name so that names which are equal have the same hash.
fn hash_ignoring_case<H: Hasher>(name: &str, state: &mut H) {
    let mut lower = [0; MAX_NAME];
    let bytes = name.as_bytes();
    lower.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte.to_ascii_lowercase());
    state.write(&lower[..bytes.len().min(MAX_NAME)]);
    state.write_u8(0xff);
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// A clone shares the text.
        #[derive(Clone, Debug, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl $name {
            /// The name as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// What uniqueness is judged by: names differ by more than case.
            pub fn key(&self) -> String {
                self.0.to_ascii_lowercase()
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.eq_ignore_ascii_case(&other.0)
            }
        }

        impl Eq for $name {}

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                hash_ignoring_case(&self.0, state);
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                let lower = |byte: u8| byte.to_ascii_lowercase();
                self.0.bytes().map(lower).cmp(other.0.bytes().map(lower))
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                check(text).map(|()| Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                check(&text).map(|()| Self(text.into()))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

names! {
    /// The name of a namespace; every row, message and metric carries one.
    Namespace;
    /// The name of a runtime.
    RuntimeName;
    /// The name of a function.
    FunctionName;
    /// The name of an account in its namespace.
    AccountName;
    /// The name of a key among those of its account.
    KeyName;
    /// The id of a rule in its namespace.
    RuleId;
    /// The name of an identity provider.
    ProviderName;
    /// The name of a node, which is the name of its worker.
    NodeName;
}

/// A function, as everything that counts, caches or holds it knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FunctionId {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name there.
    pub name: FunctionName,
}

impl FunctionId {
    /// The function of this name in this namespace.
    pub fn new(namespace: &Namespace, name: &FunctionName) -> Self {
        Self { namespace: namespace.clone(), name: name.clone() }
    }
}

impl fmt::Display for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Namespace {
    /// Whether it can be a label of a host's name (RFC 1123, 2.1): the functions of those that can have hosts of their own.
    pub fn is_label(&self) -> bool {
        let text = self.as_str();
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') && !text.ends_with('-')
    }
}

impl RuleId {
    /// The rule that a function makes by itself. It may be longer than those that people name.
    pub fn public(function: &FunctionName) -> Self {
        Self(format!("public.{function}").into())
    }

    /// The rule that every namespace begins with.
    pub fn beginning() -> Self {
        Self("default".into())
    }
}

impl Default for Namespace {
    /// The root namespace, which requests concern that name none.
    fn default() -> Self {
        Self("default".into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_are_names() {
        for name in ["a", "dice", "Dice-2.0_b", "0", &"x".repeat(63)] {
            assert!(name.parse::<FunctionName>().is_ok(), "{name}");
        }
    }

    #[test]
    fn what_could_leave_its_folder_or_fool_a_reader_is_none() {
        for name in ["", "..", ".", "-a", "a/b", "a b", "a\0b", "ⓝame", "a;rm", "a\nb", "%2e", &"x".repeat(64)] {
            assert!(name.parse::<FunctionName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn names_that_differ_in_case_alone_are_one() {
        let (lower, upper): (FunctionName, FunctionName) = ("dice".parse().unwrap(), "Dice".parse().unwrap());
        assert_eq!((&lower, lower.cmp(&upper)), (&upper, Ordering::Equal));
        assert_eq!(std::collections::HashSet::from([lower, upper]).len(), 1);
    }

    proptest! {
        #[test]
        fn a_name_reads_back_as_itself(name in "[A-Za-z0-9][A-Za-z0-9._-]{0,62}") {
            let parsed: FunctionName = name.parse().unwrap();
            prop_assert_eq!(serde_json::to_value(&parsed).unwrap(), serde_json::json!(name));
        }
    }
}
