//! What functions wrote.

use faena_domain::{CallNum, CallStatus, FunctionName, Namespace, Payload, Version};
use serde::{Deserialize, Serialize};

use super::requests;

requests! {
    /// Logs of a function's calls that have ended, newest call first, without those that wrote nothing.
    Read FunctionLogs = "function.logs" by [Api] -> LogPage {
        /// The function's namespace.
        namespace: Namespace,
        /// The function.
        function: FunctionName,
        /// Only calls of this version.
        version: Option<Version>,
        /// Only calls that ended like this.
        status: Option<CallStatus>,
        /// Only calls that ended at this db time or later.
        since: Option<i64>,
        /// Only calls with a smaller number.
        before: Option<CallNum>,
        /// How many calls are looked at; none stands for as many as one reply can have.
        calls: Option<u32>,
    }
}

/// Some of a function's logs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogPage {
    /// Newest call first.
    pub logs: Vec<CallLog>,
    /// Where to go on: calls with smaller numbers were not looked at.
    pub next: Option<CallNum>,
    /// The newest call that was looked at, whether or not it wrote something.
    pub newest: Option<CallNum>,
}

/// What one call wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallLog {
    /// The call.
    pub num: CallNum,
    /// The version that it ran.
    pub version: Version,
    /// The attempt that wrote it: the last one.
    pub attempt: u32,
    /// The log in its stored form.
    pub log: Payload,
}
