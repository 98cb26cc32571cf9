//! The function that a request comes from, where another function sent it.

use std::time::Instant;

use faena_auth::Scopes;
use faena_domain::{FunctionName, Namespace};

/// The function that calls another one.
#[derive(Clone, Debug)]
pub(crate) struct CallingFunction {
    pub(crate) namespace: Namespace,
    pub(crate) name: FunctionName,
    pub(crate) scopes: Scopes,
    /// The function that it calls.
    pub(crate) target: FunctionName,
    /// How many calls lead to this one.
    pub(crate) depth: u32,
    /// When the calling call ends.
    pub(crate) deadline: Instant,
}

impl CallingFunction {
    /// What is left of the calling call's time, in milliseconds.
    pub(crate) fn left_ms(&self) -> u64 {
        let left = self.deadline.saturating_duration_since(Instant::now());
        u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
    }
}
