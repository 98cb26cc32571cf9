//! Configuration of a namespace: a tree of values, whose leaves are named by dotted paths.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The longest path, in bytes.
pub const MAX_PATH: usize = 512;
/// The deepest one, in names.
pub const MAX_DEPTH: usize = 32;
/// The longest name of a path, in bytes.
const MAX_NAME: usize = 63;

/// Why a text is no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no path of the configuration: paths are up to 32 names with dots between them, and names have the characters A-Z a-z 0-9 _ -"
)]
pub struct InvalidPath(String);

/// Names a value of the configuration, as `db.url`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ConfigPath(String);

impl ConfigPath {
    /// The path as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of a member of the object at this path.
    ///
    /// # Errors
    /// The name cannot be a member's, or the path gets too long.
    pub fn member(&self, name: &str) -> Result<Self, InvalidPath> {
        format!("{self}.{name}").parse()
    }

    /// The paths of the objects that it lies in, the outermost first.
    pub fn above(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('.').map(|(at, _)| &self.0[..at])
    }
}

impl FromStr for ConfigPath {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        let is_name = |name: &str| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_plain)
        };
        let is_path = text.len() <= MAX_PATH && text.split('.').count() <= MAX_DEPTH && text.split('.').all(is_name);
        if is_path { Ok(Self(text.to_owned())) } else { Err(InvalidPath(text.chars().take(80).collect())) }
    }
}

impl TryFrom<String> for ConfigPath {
    type Error = InvalidPath;

    fn try_from(text: String) -> Result<Self, InvalidPath> {
        text.parse()
    }
}

impl fmt::Display for ConfigPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The leaves of a value that is put at a path: what is no object, and objects without members.
///
/// # Errors
/// A member whose name cannot be one.
pub fn leaves(path: &ConfigPath, value: Value) -> Result<BTreeMap<ConfigPath, Value>, InvalidPath> {
    let mut found = BTreeMap::new();
    let mut open = vec![(path.clone(), value)];
    while let Some((path, value)) = open.pop() {
        match value {
            Value::Object(members) if !members.is_empty() => {
                for (name, value) in members {
                    open.push((path.member(&name)?, value));
                }
            }
            leaf => drop(found.insert(path, leaf)),
        }
    }
    Ok(found)
}

/// The value at a path, out of the leaves at and below it.
pub fn assemble(path: &str, leaves: impl IntoIterator<Item = (ConfigPath, Value)>) -> Option<Value> {
    let mut root = None;
    for (leaf, value) in leaves {
        let inner = match leaf.as_str().strip_prefix(path) {
            Some("") => {
                root = Some(value);
                continue;
            }
            Some(rest) if path.is_empty() => rest,
            Some(rest) => rest.trim_start_matches('.'),
            None => continue,
        };
        let mut place = root.get_or_insert_with(|| Value::Object(Map::new()));
        for name in inner.split('.') {
            place = member(place, name);
        }
        *place = value;
    }
    root
}

/// A member of an object, or of what becomes one.
fn member<'a>(place: &'a mut Value, name: &str) -> &'a mut Value {
    if !place.is_object() {
        *place = Value::Object(Map::new());
    }
    &mut place[name]
}

/// A value as a variable or a file has it: a text as it is, anything else as JSON.
pub fn as_text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// A variable of a function: a text, or a value of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a variable is a text, or { config = \"PATH\" }")]
pub enum Variable {
    /// This text.
    Text(String),
    /// What the configuration has when an instance starts.
    Config(Binding),
}

/// A value of the configuration that a function asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// Its path.
    pub config: ConfigPath,
}

/// The most that a version gets of the configuration, in bytes of values: they travel with its calls.
pub const MAX_BOUND: usize = 32 * 1024;

/// Why a version does not get what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ConfigProblem {
    /// A value is not there.
    #[error("faena.toml asks for the value {0} of the configuration, which is not there; PUT /config/{0} sets it")]
    Missing(ConfigPath),
    /// A secret cannot be opened.
    #[error("the secret {0} cannot be opened with the keys of this platform; put it again")]
    Sealed(ConfigPath),
    /// The values are too large.
    #[error("the values of the configuration that faena.toml asks for have more than {MAX_BOUND} bytes")]
    TooLarge,
}

/// A text that may be a secret, and is not shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(pub String);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(text: &str) -> ConfigPath {
        text.parse().unwrap()
    }

    #[test]
    fn paths_are_names_with_dots_between_them() {
        assert_eq!(path("a.b.c").above().collect::<Vec<_>>(), ["a", "a.b"]);
        let deep = vec!["a"; MAX_DEPTH].join(".");
        assert!(deep.parse::<ConfigPath>().is_ok());
        for wrong in ["", ".", "a..b", ".a", "a.", "a b", "a/b", "é", "..", &format!("{deep}.a"), &"x".repeat(64)] {
            assert!(wrong.parse::<ConfigPath>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_value_is_made_of_its_leaves() {
        let value = json!({"host": "one", "pool": {"size": 5, "idle": []}, "empty": {}});
        let leaves = leaves(&path("db"), value.clone()).unwrap();
        let names: Vec<&str> = leaves.keys().map(ConfigPath::as_str).collect();
        assert_eq!(names, ["db.empty", "db.host", "db.pool.idle", "db.pool.size"]);
        assert_eq!(assemble("db", leaves.clone()), Some(value.clone()));
        assert_eq!(assemble("db.pool", leaves.clone()), Some(value["pool"].clone()));
        assert_eq!(assemble("", leaves.clone()), Some(json!({"db": value})));
        assert_eq!(assemble("db.host", leaves), Some(json!("one")));
        assert_eq!(assemble("nothing", []), None);
        assert!(super::leaves(&path("db"), json!({"a b": 1})).is_err());
    }

    #[test]
    fn a_variable_is_a_text_or_a_value_of_the_configuration() {
        let read = |text| serde_json::from_str::<Variable>(text);
        assert_eq!(read(r#""x""#).unwrap(), Variable::Text("x".to_owned()));
        assert_eq!(read(r#"{"config":"a.b"}"#).unwrap(), Variable::Config(Binding { config: path("a.b") }));
        for wrong in ["1", r#"{"confg":"a"}"#, r#"{"config":"a..b"}"#] {
            assert!(read(wrong).unwrap_err().to_string().contains("{ config ="), "{wrong}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", SecretText("canary".to_owned())), "SecretText");
        assert_eq!(as_text(json!("a b")), "a b");
        assert_eq!(as_text(json!({"a": 1})), r#"{"a":1}"#);
    }
}
