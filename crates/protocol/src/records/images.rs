//! Images that the platform keeps, for every node.

use std::collections::BTreeMap;

use faena_domain::{BlobKey, ImageName, Timestamp};
use serde::{Deserialize, Serialize};

/// The root file system of an image, which nodes fetch when they need it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageContent {
    /// A tar among the blobs of the root namespace.
    pub key: BlobKey,
    /// Its size in bytes.
    pub bytes: u64,
    /// Variables that the image sets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}

/// An image that the platform keeps under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRecord {
    /// Its name, with a tag.
    pub name: ImageName,
    /// What it is.
    pub content: ImageContent,
    /// When it was put there, or replaced.
    pub created_at: Timestamp,
}
