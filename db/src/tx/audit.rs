//! The audit log.

use faena_protocol::db::{AuditLine, AuditList};
use faena_protocol::records::AuditRecord;

use super::StoreResult;

/// Rows of the audit log.
pub(crate) trait AuditRows {
    /// Appends the lines of one message; those that are there already stay as they are.
    fn append_audit(&self, message: &str, lines: &[AuditRecord]) -> StoreResult<()>;

    /// The lines that a request asks for, newest first.
    fn audit(&self, request: &AuditList) -> StoreResult<Vec<AuditLine>>;

    /// Removes the oldest lines from before an instant, so many at most.
    fn forget_audit(&self, before: i64, most: u32) -> StoreResult<()>;
}
