//! Builds: source and runtime become an artifact.

use serde::{Deserialize, Serialize};

use crate::{ErrorKind, FunctionStatus};

/// The most that is kept of a build's log, in bytes.
pub const MAX_LOG: u64 = 10 * crate::units::MB;
/// The end of the log that a function shows after a failed build, in bytes.
pub const LOG_TAIL: usize = 4096;
/// How often a build is started anew after the platform's own failures.
pub const MAX_REDELIVERIES: i64 = 5;

/// A version's status seen as a build.
pub type BuildStatus = FunctionStatus;

/// Why a build failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildFailure {
    /// `build`, `image`, `timeout` or `infrastructure`.
    pub kind: ErrorKind,
    /// A sentence that names what failed.
    pub message: String,
}

/// Whether a build's log speaks of the network or the index rather than of the code.
///
/// The texts are those of pip, npm, cargo, go and gem for a name that does not resolve or a host that does not answer.
pub fn looks_like_network(log_tail: &str) -> bool {
    const SIGNS: [&str; 9] = [
        "Temporary failure in name resolution",
        "Could not resolve host",
        "getaddrinfo",
        "ECONNREFUSED",
        "ETIMEDOUT",
        "Connection refused",
        "NewConnectionError",
        "ProxyError",
        "Tunnel connection failed",
    ];
    SIGNS.iter().any(|sign| log_tail.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_package_is_told_apart_from_a_missing_network() {
        assert!(!looks_like_network("ERROR: No matching distribution found for six==999.0.0"));
        assert!(looks_like_network("ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 403'))"));
    }
}
