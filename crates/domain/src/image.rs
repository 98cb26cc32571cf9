//! References of images, as the distribution specification writes them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An image's name: `[registry[:port]/]path[:tag][@sha256:digest]`, never an image id.
///
/// Grammar: distribution/reference, "Grammar" (the rules for names, tags and digests).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

/// A text that is no image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no image reference; one looks like python:3.13 or registry.example.org/team/app:1.2")]
pub struct InvalidImage {
    /// The text as it came, cut at 80 characters.
    pub text: String,
}

fn is_path(part: &str) -> bool {
    let bytes = part.as_bytes();
    let inner = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-');
    let edge = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    bytes.first().is_some_and(edge) && bytes.last().is_some_and(edge) && bytes.iter().all(inner) && !part.contains("..")
}

fn is_host(part: &str) -> bool {
    let (host, port) = part.split_once(':').map_or((part, None), |(host, port)| (host, Some(port)));
    let inner = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
    let is_label = |label: &str| label.bytes().all(inner) && !label.is_empty() && !label.starts_with('-');
    host.split('.').all(is_label)
        && port.is_none_or(|port| (1..=5).contains(&port.len()) && port.bytes().all(|c| c.is_ascii_digit()))
}

fn is_tag(tag: &str) -> bool {
    let bytes = tag.as_bytes();
    let inner = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    (1..=128).contains(&bytes.len()) && bytes.iter().all(inner) && !matches!(bytes[0], b'.' | b'-')
}

fn is_digest(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|c| c.is_ascii_digit() || matches!(c, b'a'..=b'f')))
}

fn is_reference(text: &str) -> bool {
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match name[slash..].split_once(':') {
        Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
        None => (name, None),
    };
    let parts: Vec<&str> = path.split('/').collect();
    let has_host = parts.len() > 1 && (parts[0].contains(['.', ':']) || parts[0] == "localhost");
    let id_like = path.len() == 64 && path.bytes().all(|c| c.is_ascii_hexdigit());
    text.len() <= 255
        && !id_like
        && digest.is_none_or(is_digest)
        && tag.is_none_or(is_tag)
        && (!has_host || is_host(parts[0]))
        && parts[usize::from(has_host)..].iter().all(|part| is_path(part))
}

impl ImageName {
    /// The reference as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names one image by its digest.
    pub fn has_digest(&self) -> bool {
        self.0.contains('@')
    }

    /// The reference with `:latest` where neither a tag nor a digest is named, as Docker reads it.
    pub fn tagged(&self) -> String {
        let last = self.0.rsplit('/').next().unwrap_or_default();
        if last.contains([':', '@']) { self.0.clone() } else { format!("{}:latest", self.0) }
    }
}

impl TryFrom<String> for ImageName {
    type Error = InvalidImage;
    fn try_from(text: String) -> Result<Self, InvalidImage> {
        if is_reference(&text) { Ok(Self(text)) } else { Err(InvalidImage { text: text.chars().take(80).collect() }) }
    }
}

impl From<ImageName> for String {
    fn from(image: ImageName) -> String {
        image.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_of_the_grammar_are_taken() {
        let digest = format!("python@sha256:{}", "a".repeat(64));
        for text in ["pythonruntime", "python:3.13", "library/python", "localhost:5000/a/b:1", "ghcr.io/a/b_c", &digest]
        {
            assert!(ImageName::try_from(text.to_owned()).is_ok(), "{text}");
        }
    }

    #[test]
    fn ids_and_nonsense_are_refused() {
        for text in ["", "Python", "a b", "../x", "a//b", "a:", "a@sha256:1", "-a", &"f".repeat(64), "a/b:c:d"] {
            assert!(ImageName::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,100}") {
            let _ = ImageName::try_from(text);
        }
    }
}
