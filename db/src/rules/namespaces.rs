//! Namespaces: what administrators say of them, and their end.

use faena_auth::RuleSet;
use faena_domain::{FunctionId, FunctionName, Namespace, Timestamp};
use faena_protocol::db::{
    FunctionDelete, NamespaceDelete, NamespaceGet, NamespaceList, NamespacePatch, NamespacePut, Put,
};
use faena_protocol::records::{NamespaceRecord, StoredUsage};

use super::quotas::{namespace, quota};
use super::{Read, Request, RequestContext, RuleResult, Write, conflict, providers, read, write};
use crate::clock::day;
use crate::tx::Tx;

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    write::<NamespacePut>(),
    write::<NamespacePatch>(),
    read::<NamespaceGet>(),
    read::<NamespaceList>(),
    write::<NamespaceDelete>(),
];

impl Write for NamespacePut {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Put<NamespaceRecord>> {
        context.changes_access();
        let created = tx.insert_namespace(&NamespaceRecord {
            name: self.name.clone(),
            created_at: Timestamp(context.wall),
            allow: self.allow,
            quota: self.quota,
            weight: self.weight,
            node_selector: self.node_selector.clone(),
            usage: StoredUsage::default(),
        })?;
        let Some(record) = tx.namespace(&self.name, day(context.wall))? else {
            return conflict(format!("the namespace {} was deleted, and its name cannot be used again", self.name));
        };
        if created {
            RuleSet::beginning().rules().iter().try_for_each(|rule| tx.put_rule(&self.name, rule))?;
        }
        Ok(Put { record, created })
    }
}

impl Write for NamespacePatch {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<NamespaceRecord> {
        let found = namespace(tx, &self.name, context.wall)?;
        let changed = NamespaceRecord {
            allow: found.allow.changed(self.allow),
            quota: found.quota.changed(self.quota),
            weight: self.weight.unwrap_or(found.weight),
            node_selector: self.node_selector.clone().unwrap_or_else(|| found.node_selector.clone()),
            ..found.clone()
        };
        tx.update_namespace(&changed)?;
        context.changes_access();
        let is_known_by_workers =
            |record: &NamespaceRecord| (record.weight, record.quota.memory_bytes, record.node_selector.clone());
        if is_known_by_workers(&changed) != is_known_by_workers(&found) {
            // Workers know these by what they run.
            for name in tx.functions(&self.name)? {
                context.changes_function(FunctionId::new(&self.name, &name));
            }
        }
        Ok(changed)
    }
}

impl Read for NamespaceGet {
    fn read(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<NamespaceRecord> {
        namespace(tx, &self.name, context.wall)
    }
}

impl Read for NamespaceList {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Vec<Namespace>> {
        Ok(tx.namespaces()?)
    }
}

impl Write for NamespaceDelete {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Vec<FunctionName>> {
        context.changes_access();
        let name = &self.name;
        quota(tx, name)?;
        if *name == Namespace::default() {
            return conflict("the namespace default belongs to the platform, and cannot be deleted");
        }
        let deleted = if self.force { delete_content(tx, context, name)? } else { Vec::new() };
        if !self.force
            && let Some(content) = tx.first_content(name)?
        {
            return conflict(format!("the namespace {name} still has {content}; it can be deleted once they are gone"));
        }
        providers::remove_mappings(tx, name)?;
        tx.delete_namespace(name)?;
        Ok(deleted)
    }
}

/// Deletes the functions, runtimes and configuration of a namespace; returns the functions.
fn delete_content(tx: &dyn Tx, context: &RequestContext<'_>, namespace: &Namespace) -> RuleResult<Vec<FunctionName>> {
    let functions = tx.functions(namespace)?;
    for name in &functions {
        FunctionDelete { namespace: namespace.clone(), name: name.clone() }.write(tx, context)?;
        context.changes_function(FunctionId::new(namespace, name));
    }
    tx.delete_runtimes(namespace)?;
    tx.delete_config(namespace)?;
    Ok(functions)
}
