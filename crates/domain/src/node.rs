//! Nodes: their labels, the selectors that name labels, and how a node stands.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most labels of one node, and the most that one selector names.
pub const MAX_LABELS: usize = 32;

/// Why labels cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLabels {
    /// A key or a value.
    #[error(
        "the label {key:?} = {value:?} cannot be used: a key and a value have 1 to 63 of the characters A-Z a-z 0-9 . _ - / and a key begins with a letter or digit"
    )]
    Text {
        /// The key, cut at 80 characters.
        key: String,
        /// The value, cut at 80 characters.
        value: String,
    },
    /// Their number.
    #[error("{0} labels are more than {MAX_LABELS}")]
    TooMany(usize),
}

/// What an administrator says of a node, as keys and values. A node cannot change its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

fn is_label_text(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
    (1..=63).contains(&text.len()) && text.bytes().all(plain)
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = InvalidLabels;

    fn try_from(labels: BTreeMap<String, String>) -> Result<Self, InvalidLabels> {
        if labels.len() > MAX_LABELS {
            return Err(InvalidLabels::TooMany(labels.len()));
        }
        let is_valid = |(key, value): &(&String, &String)| {
            is_label_text(key) && is_label_text(value) && key.as_bytes()[0].is_ascii_alphanumeric()
        };
        let cut = |text: &String| text.chars().take(80).collect();
        if let Some((key, value)) = labels.iter().find(|label| !is_valid(label)) {
            return Err(InvalidLabels::Text { key: cut(key), value: cut(value) });
        }
        Ok(Self(labels))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

impl Labels {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(|(key, value)| format!("{key}={value}")).collect();
        f.write_str(&all.join(","))
    }
}

/// Labels that a node must have to run something. One without labels permits every node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeSelector(Labels);

impl NodeSelector {
    /// Whether every node is permitted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a node with these labels is permitted.
    pub fn permits(&self, labels: &Labels) -> bool {
        self.0.0.iter().all(|(key, value)| labels.0.get(key) == Some(value))
    }

    /// The selector that permits what both permit; none where they ask for two values of one label.
    pub fn and(&self, other: &Self) -> Option<Self> {
        let mut both = self.0.0.clone();
        for (key, value) in &other.0.0 {
            if both.insert(key.clone(), value.clone()).is_some_and(|before| before != *value) {
                return None;
            }
        }
        Some(Self(Labels(both)))
    }
}

impl fmt::Display for NodeSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The SHA-256 of a certificate in DER, as hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; 32]);

/// A text that is no fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 64 hexadecimal digits")]
pub struct InvalidFingerprint;

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidFingerprint)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = InvalidFingerprint;

    fn try_from(text: String) -> Result<Self, InvalidFingerprint> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        hex::encode(fingerprint.0)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// How a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum NodeState {
    /// It takes work.
    Ready,
    /// It takes no new work until an administrator lets it.
    Cordoned,
    /// It finishes what it has, and stops.
    Draining,
    /// It has drained and stopped.
    Stopped,
    /// It has vanished.
    Lost,
}

impl NodeState {
    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::Cordoned => "CORDONED",
            Self::Draining => "DRAINING",
            Self::Stopped => "STOPPED",
            Self::Lost => "LOST",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        Labels::try_from(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>())
            .expect("labels")
    }

    fn selector(text: &str) -> NodeSelector {
        NodeSelector(labels(text))
    }

    #[test]
    fn a_selector_permits_nodes_that_have_all_its_labels() {
        let node = labels("gpu=true,zone=a");
        assert!(selector("").permits(&node) && selector("gpu=true").permits(&node));
        assert!(!selector("gpu=false").permits(&node) && !selector("gpu=true,disk=ssd").permits(&node));
        assert!(!selector("gpu=true").permits(&Labels::default()));
    }

    #[test]
    fn two_selectors_permit_what_both_permit() {
        assert_eq!(selector("a=1").and(&selector("b=2")), Some(selector("a=1,b=2")));
        assert_eq!(selector("a=1").and(&selector("a=1")), Some(selector("a=1")));
        assert_eq!(selector("a=1").and(&selector("a=2")), None);
    }

    #[test]
    fn labels_that_cannot_be_used_are_named() {
        let of = |key: &str, value: &str| {
            Labels::try_from(BTreeMap::from([(key.to_owned(), value.to_owned())])).map_err(|error| error.to_string())
        };
        assert!(of("kind/size", "x-large").is_ok());
        for (key, value) in [("", "x"), ("a", ""), ("-a", "x"), ("a b", "x"), ("a", "x=y")] {
            assert!(of(key, value).is_err_and(|error| error.contains("label")), "{key:?} {value:?}");
        }
    }

    #[test]
    fn a_fingerprint_reads_back_as_itself() {
        let fingerprint = Fingerprint([7; 32]);
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        assert!("07".parse::<Fingerprint>().is_err());
    }
}
