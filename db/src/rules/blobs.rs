//! Blobs that nothing refers to any more.

use faena_domain::{BlobKey, CallNum, Namespace, Payload};
use faena_protocol::db::{BlobsReleased, BlobsRemoved, BlobsUnused};

use super::{Read, Request, RequestContext, RuleResult, Write, read, write};
use crate::tx::{BlobOwner, StoreResult, Tx};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[read::<BlobsUnused>(), read::<BlobsReleased>(), write::<BlobsRemoved>()];

/// Notes the blobs among these payloads as an owner's.
pub(super) fn refer<'a>(
    tx: &dyn Tx,
    owner: &BlobOwner,
    payloads: impl IntoIterator<Item = &'a Payload>,
) -> StoreResult<()> {
    let key = |payload: &Payload| if let Payload::Blob { key, .. } = payload { Some(*key) } else { None };
    let keys: Vec<BlobKey> = payloads.into_iter().filter_map(key).collect();
    if keys.is_empty() { Ok(()) } else { tx.refer(owner, &keys) }
}

/// Forgets the log that a call refers to. Its lines have times, so no other call is about to refer to the same bytes, and
/// it is given out for removal at once.
pub(super) fn release_log(
    tx: &dyn Tx,
    (namespace, num): (&Namespace, CallNum),
    (log, result): (&Payload, &Payload),
    now: i64,
) -> StoreResult<()> {
    let Payload::Blob { key, .. } = log else { return Ok(()) };
    if matches!(result, Payload::Blob { key: other, .. } if other == key) {
        return Ok(());
    }
    tx.release_one(&BlobOwner::Call(namespace.clone(), num), key)?;
    tx.note_released(key, now)
}

impl Read for BlobsUnused {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Vec<BlobKey>> {
        Ok(tx.unused_blobs(&self.keys)?)
    }
}

impl Read for BlobsReleased {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Vec<BlobKey>> {
        Ok(tx.released(self.limit)?)
    }
}

impl Write for BlobsRemoved {
    fn write(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<()> {
        Ok(tx.forget_released(&self.keys)?)
    }
}
