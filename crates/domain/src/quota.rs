//! What a namespace may have and do.

use serde::{Deserialize, Serialize};

use crate::json::present;

/// The largest weight of a namespace.
pub const MAX_WEIGHT: u32 = 100;

/// The bounds of a namespace; none is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Quota {
    /// Functions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub functions: Option<u32>,
    /// Calls at once: of those that are waited for in each api, and of queued ones altogether.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_calls: Option<u32>,
    /// Calls that each api accepts in a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls_per_minute: Option<u32>,
    /// What its instances may use on each worker, in bytes: the sum of their limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The archives of its versions, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
    /// What its builds may take in a day (UTC), in minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_minutes_per_day: Option<u32>,
}

/// Changes of a quota: a member that is left out stays as it is, and null is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct QuotaChange {
    /// See [`Quota::functions`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub functions: Option<Option<u32>>,
    /// See [`Quota::concurrent_calls`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub concurrent_calls: Option<Option<u32>>,
    /// See [`Quota::calls_per_minute`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub calls_per_minute: Option<Option<u32>>,
    /// See [`Quota::memory_bytes`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<Option<u64>>,
    /// See [`Quota::stored_bytes`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<Option<u64>>,
    /// See [`Quota::build_minutes_per_day`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub build_minutes_per_day: Option<Option<u32>>,
}

impl Quota {
    /// This quota after a change.
    #[must_use]
    pub fn changed(self, change: QuotaChange) -> Self {
        Self {
            functions: change.functions.unwrap_or(self.functions),
            concurrent_calls: change.concurrent_calls.unwrap_or(self.concurrent_calls),
            calls_per_minute: change.calls_per_minute.unwrap_or(self.calls_per_minute),
            memory_bytes: change.memory_bytes.unwrap_or(self.memory_bytes),
            stored_bytes: change.stored_bytes.unwrap_or(self.stored_bytes),
            build_minutes_per_day: change.build_minutes_per_day.unwrap_or(self.build_minutes_per_day),
        }
    }

    /// Of so many calls those that callers without a credential may make: half.
    pub fn anonymous(calls: u32) -> u32 {
        calls / 2
    }
}

/// The part of a worker's slots and memory that a namespace may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceShare {
    /// Slots are shared between namespaces in the ratio of their weights; 1 to [`MAX_WEIGHT`].
    pub weight: u32,
    /// See [`Quota::memory_bytes`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

impl Default for NamespaceShare {
    fn default() -> Self {
        Self { weight: 1, memory_bytes: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_what_it_changes() {
        let quota = Quota { functions: Some(3), calls_per_minute: Some(60), ..Quota::default() };
        let after = |text: &str| quota.changed(serde_json::from_str(text).unwrap());
        assert_eq!(after("{}"), quota);
        assert_eq!(after(r#"{"functions":5}"#), Quota { functions: Some(5), ..quota });
        assert_eq!(after(r#"{"callsPerMinute":null}"#), Quota { calls_per_minute: None, ..quota });
        assert_eq!(after(r#"{"memoryBytes":7}"#), Quota { memory_bytes: Some(7), ..quota });
        assert!(serde_json::from_str::<QuotaChange>(r#"{"calls":1}"#).is_err());
    }
}
