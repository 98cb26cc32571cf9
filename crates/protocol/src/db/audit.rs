//! What was changed and what was refused, for the record.

use faena_domain::{Namespace, Timestamp};
use serde::{Deserialize, Serialize};

use super::requests;
use crate::records::AuditRecord;

/// A line of the audit log and its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditLine {
    /// Rises from line to line.
    pub number: i64,
    /// What happened.
    #[serde(flatten)]
    pub record: AuditRecord,
}

requests! {
    /// Appends lines.
    Write AuditAppend = "audit.append" by [Api] -> () {
        /// Names this message: a line is appended once, also if it is sent again.
        id: String,
        /// The lines.
        lines: Vec<AuditRecord>,
    }
    /// Lines of a namespace, the newest first.
    Read AuditList = "audit.list" by [Api] -> Vec<AuditLine> {
        /// The namespace.
        namespace: Namespace,
        /// Only lines since then.
        since: Option<Timestamp>,
        /// Only those of this account.
        account: Option<String>,
        /// Only those of this action.
        action: Option<String>,
        /// Only lines with a lower number.
        before: Option<i64>,
        /// How many at most.
        limit: u32,
    }
}
