//! What a namespace may have and do.

use serde::{Deserialize, Serialize};

use crate::json::present;

/// The bounds of a namespace; none is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Quota {
    /// Functions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub functions: Option<u32>,
    /// Calls that each api accepts in a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls_per_minute: Option<u32>,
}

/// Changes of a quota: a member that is left out stays as it is, and null is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct QuotaChange {
    /// See [`Quota::functions`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub functions: Option<Option<u32>>,
    /// See [`Quota::calls_per_minute`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub calls_per_minute: Option<Option<u32>>,
}

impl Quota {
    /// This quota after a change.
    #[must_use]
    pub fn changed(self, change: QuotaChange) -> Self {
        Self {
            functions: change.functions.unwrap_or(self.functions),
            calls_per_minute: change.calls_per_minute.unwrap_or(self.calls_per_minute),
        }
    }

    /// Calls that callers without a credential may make of them: half.
    pub fn anonymous_calls_per_minute(&self) -> Option<u32> {
        self.calls_per_minute.map(|calls| calls / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_what_it_does_not_name() {
        let quota = Quota { functions: Some(3), calls_per_minute: Some(60) };
        let after = |text: &str| quota.changed(serde_json::from_str(text).unwrap());
        assert_eq!(after("{}"), quota);
        assert_eq!(after(r#"{"functions":5}"#), Quota { functions: Some(5), ..quota });
        assert_eq!(after(r#"{"callsPerMinute":null}"#), Quota { calls_per_minute: None, ..quota });
        assert!(serde_json::from_str::<QuotaChange>(r#"{"calls":1}"#).is_err());
    }
}
