//! Builds: source and runtime become an artifact.

use serde::{Deserialize, Serialize};

use crate::{ErrorKind, FunctionStatus};

/// The most that is kept of a build's log, in bytes.
pub const MAX_LOG: u64 = 10 * crate::units::MB;
/// The end of the log that a function shows after a failed build, in bytes.
pub const LOG_TAIL: usize = 4096;
/// How often a build is started again after failures of the platform.
pub const MAX_REDELIVERIES: u32 = 5;

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

/// Lines of a reason.
const REASON: usize = 4;

/// The lines of a failed build's log that say why: those that a package manager marks as errors, else the last ones.
///
/// The marks are those of pip, npm, pnpm, yarn, cargo, gem, go and Python; lines that only say where a log lies, or that a
/// newer version is out, are left out.
pub fn reason(log: &str) -> Vec<&str> {
    const MARKS: [&str; 11] = [
        "error:",
        "error[",
        "npm err",
        "err_pnpm",
        "fatal:",
        "go:",
        "error code",
        "cannot find",
        "no such file",
        "not found",
        "invalid ",
    ];
    const ASIDE: [&str; 4] =
        ["complete log of this run", "[notice]", "debug log", "error originates from a subprocess"];
    let lines = || log.lines().map(str::trim).filter(|line| !line.is_empty());
    let is_marked = |line: &&str| {
        let line = line.to_ascii_lowercase();
        MARKS.iter().any(|mark| line.contains(mark)) && !ASIDE.iter().any(|aside| line.contains(aside))
    };
    let mut marked: Vec<&str> = Vec::new();
    for line in lines().filter(is_marked) {
        // npm repeats the beginning of a line as a line.
        if !marked.iter().any(|earlier| earlier.starts_with(line)) {
            marked.push(line);
        }
    }
    if !marked.is_empty() {
        // npm begins with the reason, compilers and Python end with it; the first few and the last hold both.
        let last = marked.pop();
        marked.truncate(REASON - 1);
        marked.extend(last);
        return marked;
    }
    let mut last: Vec<&str> = lines().rev().take(3).collect();
    last.reverse();
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_managers_own_reason_is_found() {
        let npm = "npm error code E404\nnpm error 404 Not Found - GET https://x/y - Not found\nnpm error 404\n\
                   npm error A complete log of this run can be found in: /tmp/.npm/_logs/z.log\n";
        assert_eq!(reason(npm), ["npm error code E404", "npm error 404 Not Found - GET https://x/y - Not found"]);
        let pip = "Collecting six==999\nERROR: Could not find a version that satisfies the requirement six==999\n\
                   ERROR: No matching distribution found for six==999\n\n[notice] A new release of pip is available\n";
        assert_eq!(reason(pip).len(), 2);
        assert!(reason(pip)[1].contains("No matching distribution"));
        assert_eq!(reason("a\nb\n\nc\nd\n"), ["b", "c", "d"]);
    }

    #[test]
    fn a_missing_package_is_told_apart_from_a_missing_network() {
        assert!(!looks_like_network("ERROR: No matching distribution found for six==999.0.0"));
        assert!(looks_like_network("ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 403'))"));
    }
}
