//! Whether the platform is locked, and the token of its set-up.

use faena_protocol::db::{AccessState, AccessStateGet, SetupGet, SetupPut};

use super::{Read, Request, RequestContext, RuleResult, Write, read, write};
use crate::tx::Tx;

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[read::<AccessStateGet>(), write::<SetupPut>(), read::<SetupGet>()];

impl Read for AccessStateGet {
    fn read(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<AccessState> {
        Ok(AccessState { locked: tx.is_locked()?, seen: context.access_seen })
    }
}

impl Write for SetupPut {
    fn write(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<()> {
        Ok(tx.put_setup_token(&self.hash)?)
    }
}

impl Read for SetupGet {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Option<String>> {
        Ok(tx.setup_token()?)
    }
}
