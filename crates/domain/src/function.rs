//! Functions and the life of their versions.

use serde::{Deserialize, Serialize};

/// Where a version stands between upload and use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum FunctionStatus {
    /// Uploaded; its build has not begun.
    Pending,
    /// Its build runs.
    Building,
    /// Calls run it.
    Ready,
    /// Its build failed; the reason is beside it.
    Error,
}

impl FunctionStatus {
    /// The status as it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Building => "BUILDING",
            Self::Ready => "READY",
            Self::Error => "ERROR",
        }
    }

    /// The status stored as this text.
    pub fn from_name(text: &str) -> Option<Self> {
        [Self::Pending, Self::Building, Self::Ready, Self::Error].into_iter().find(|status| status.as_str() == text)
    }
}
