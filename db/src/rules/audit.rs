//! The audit log: lines are appended and read.

use faena_protocol::db::{AuditAppend, AuditLine, AuditList};

use super::{Read, Request, RequestContext, RuleResult, Write, read, write};
use crate::tx::Tx;

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[write::<AuditAppend>(), read::<AuditList>()];

impl Write for AuditAppend {
    fn write(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<()> {
        Ok(tx.append_audit(&self.id, &self.lines)?)
    }
}

impl Read for AuditList {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Vec<AuditLine>> {
        Ok(tx.audit(self)?)
    }
}
