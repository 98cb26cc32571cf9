//! What JSON must be before it is parsed: shallow, an object, of known members.

use std::collections::HashMap;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::near::nearest;

/// The deepest nesting of any JSON that is taken in.
pub const MAX_DEPTH: usize = 64;

/// Why a body is not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum InvalidJson {
    /// Deeper than [`MAX_DEPTH`].
    #[error("the JSON is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// No JSON, or a member of the wrong type.
    #[error("{0}")]
    Malformed(String),
    /// A member that has to be there.
    #[error("the field `{0}` is missing")]
    MissingField(String),
    /// A member nobody knows.
    #[error("unknown field `{field}`{}", near.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownField {
        /// The member as it was written.
        field: String,
        /// The known member that is like it.
        near: Option<String>,
    },
}

/// Whether the nesting of a JSON text stays within [`MAX_DEPTH`]; reads each byte once and never recurses.
pub fn is_shallow(text: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return false;
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

/// Parses an object whose members are all among `known`.
///
/// # Errors
/// [`InvalidJson`] names what is wrong, and for an unknown member the known one that is like it.
pub fn parse_object<'a, T: Deserialize<'a>>(text: &'a [u8], known: &[&str]) -> Result<T, InvalidJson> {
    if !is_shallow(text) {
        return Err(InvalidJson::TooDeep);
    }
    let malformed = |error: serde_json::Error| InvalidJson::Malformed(error.to_string());
    if text.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|first| *first != b'{') {
        return Err(InvalidJson::Malformed("the body must be a JSON object".to_owned()));
    }
    let members: HashMap<String, &RawValue> = serde_json::from_slice(text).map_err(malformed)?;
    if let Some(field) = members.keys().filter(|member| !known.contains(&member.as_str())).min() {
        let near = nearest(field, known.iter().copied()).map(str::to_owned);
        return Err(InvalidJson::UnknownField { field: field.chars().take(80).collect(), near });
    }
    serde_json::from_slice(text).map_err(|error| located::<T>(text).unwrap_or_else(|| malformed(error)))
}

/// Why a text is no `T`, with the path of the member that is wrong, as `limits.memory`. The text is parsed once more for it.
fn located<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Option<InvalidJson> {
    let mut parser = serde_json::Deserializer::from_slice(text);
    let error = serde_path_to_error::deserialize::<_, T>(&mut parser).err()?;
    let (path, words) = (error.path(), error.inner().to_string());
    let is_member = path.iter().next().is_some();
    // serde tells of a missing member in words alone.
    Some(match words.strip_prefix("missing field `").and_then(|rest| rest.split_once('`')) {
        Some((field, _)) if is_member => InvalidJson::MissingField(format!("{path}.{field}")),
        Some((field, _)) => InvalidJson::MissingField(field.to_owned()),
        None if is_member => InvalidJson::Malformed(format!("`{path}`: {words}")),
        None => InvalidJson::Malformed(words),
    })
}

/// A member that is there, for `deserialize_with`: it has to be a `T`, where `Option` alone takes null for left out.
///
/// # Errors
/// Those of `T`.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A member that has to be an object, for `deserialize_with`: a derived structure alone would take an array too.
///
/// # Errors
/// Those of the parser.
pub fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<T, D::Error> {
    let members = Map::deserialize(deserializer)?;
    serde_path_to_error::deserialize(Value::Object(members)).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Point {
        x: i32,
    }

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        assert!(is_shallow(br#"{"a":"[[[[\"[[[["}"#));
        assert!(is_shallow(&[b"[".repeat(64), b"]".repeat(64)].concat()));
        assert!(!is_shallow(&b"[".repeat(65)));
    }

    #[test]
    fn an_unknown_member_is_named_with_its_neighbour() {
        let error = parse_object::<Point>(br#"{"x":1,"xx":2}"#, &["x"]).unwrap_err();
        assert_eq!(error.to_string(), "unknown field `xx`; did you mean `x`?");
        assert_eq!(parse_object::<Point>(br#"{"x":1}"#, &["x"]).unwrap().x, 1);
    }

    #[test]
    fn the_member_that_is_wrong_is_named() {
        #[derive(Debug, Deserialize)]
        struct Shape {
            #[serde(rename = "from")]
            _from: Point,
            #[serde(default, rename = "to", deserialize_with = "object")]
            _to: Option<Point>,
        }
        let wrong = |text: &str| parse_object::<Shape>(text.as_bytes(), &["from", "to"]).unwrap_err().to_string();
        let text = wrong(r#"{"from":{"x":"1"}}"#);
        assert!(text.starts_with("`from.x`: invalid type: string \"1\", expected i32"), "{text}");
        let text = wrong(r#"{"from":{"x":1},"to":{"x":[]}}"#);
        assert!(text.starts_with("`to`: x: invalid type: sequence, expected i32"), "{text}");
        assert_eq!(wrong(r#"{"to":{"x":1}}"#), "the field `from` is missing");
        assert_eq!(wrong(r#"{"from":{}}"#), "the field `from.x` is missing");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["[1]", "null", "\"x\"", "", "{", "7"] {
            assert!(parse_object::<Point>(text.as_bytes(), &["x"]).is_err(), "{text}");
            assert!(object::<_, Point>(&mut serde_json::Deserializer::from_str(text)).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_object::<Point>(&text, &["x"]);
        }
    }
}
