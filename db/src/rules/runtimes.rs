//! Runtimes and their revisions.

use faena_domain::{Namespace, RuntimeName};
use faena_protocol::db::{Put, Resource, RuntimeDelete, RuntimeGet, RuntimeList, RuntimePut};
use faena_protocol::records::RuntimeRecord;

use super::{Read, Request, RequestContext, RuleResult, Write, conflict, not_found, read, refuse, write};
use crate::tx::Tx;

/// The requests of this module.
pub(super) const REQUESTS: &[Request] =
    &[write::<RuntimePut>(), write::<RuntimeDelete>(), read::<RuntimeGet>(), read::<RuntimeList>()];

/// The revision that new functions are bound to.
pub(super) fn find(tx: &dyn Tx, namespace: &Namespace, name: &RuntimeName) -> RuleResult<RuntimeRecord> {
    Ok(tx.runtime(namespace, name)?.ok_or_else(|| not_found(Resource::Runtime, name))?)
}

impl Write for RuntimePut {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Self::Reply> {
        let old = tx.runtime(&self.namespace, &self.spec.name)?;
        if let Some(old) = &old {
            if old.spec.name.as_str() != self.spec.name.as_str() {
                return conflict(format!(
                    "the runtime {} exists already; names differ by more than case",
                    old.spec.name
                ));
            }
            if old.spec == self.spec {
                return Ok(Put { record: old.clone(), created: false });
            }
        }
        tx.insert_revision(&self.namespace, &self.spec, context.now)?;
        Ok(Put { record: find(tx, &self.namespace, &self.spec.name)?, created: old.is_none() })
    }
}

impl Write for RuntimeDelete {
    fn write(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<()> {
        if let Some(user) = tx.user_of_runtime(&self.namespace, &self.name)? {
            return conflict(format!("the runtime {} is used by the function {user}; delete that first", self.name));
        }
        if tx.delete_runtime(&self.namespace, &self.name)? {
            Ok(())
        } else {
            refuse(not_found(Resource::Runtime, &self.name))
        }
    }
}

impl Read for RuntimeGet {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<RuntimeRecord> {
        find(tx, &self.namespace, &self.name)
    }
}

impl Read for RuntimeList {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Vec<RuntimeName>> {
        Ok(tx.runtimes(&self.namespace)?)
    }
}
