//! What a worker says of a function that calls another one, before the first byte of its request.

use faena_domain::{FunctionName, FunctionScope, Namespace};
use serde::{Deserialize, Serialize};

/// The header that names the calling function to the one that is called. The platform sets it; a request from elsewhere
/// cannot bring it.
pub const CALLER: &str = "Faena-Caller";
/// The header that says how many calls led to a call, as [`CALLER`] is set.
pub const DEPTH: &str = "Faena-Call-Depth";
/// The header that names the scopes of the calling function, with commas between them, as [`CALLER`] is set.
pub const SCOPES: &str = "Faena-Caller-Scopes";
/// The largest one as JSON, in bytes.
pub const MAX_PREFACE: u16 = 4096;

/// Who calls, whom, and how long that may take. It goes before a connection as JSON, after its length as two bytes,
/// most significant first. The worker is believed: it knows the instance that a connection comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InternalCall {
    /// The namespace of both.
    pub namespace: Namespace,
    /// The function that calls.
    pub caller: FunctionName,
    /// The scopes that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<FunctionScope>,
    /// The function that is called.
    pub target: FunctionName,
    /// How many calls led to this one, one after the other: at least 1.
    pub depth: u32,
    /// What is left of the calling call's time, in milliseconds.
    pub remaining_ms: u64,
}
