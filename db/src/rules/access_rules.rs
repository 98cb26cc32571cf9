//! The rules of a namespace, which say who may do what.

use faena_auth::Rule;
use faena_protocol::db::{NamespaceRules, Put, Resource, RuleDelete, RuleList, RulePut, Seen};

use super::quotas::quota;
use super::{Read, Request, RequestContext, RuleResult, Write, conflict, not_found, read, refuse, write};
use crate::tx::Tx;

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[read::<RuleList>(), write::<RulePut>(), write::<RuleDelete>()];

/// The most rules of a namespace.
const MAX_RULES: usize = 1000;

impl Read for RuleList {
    fn read(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Seen<NamespaceRules>> {
        let quota = quota(tx, &self.namespace)?;
        let mut rules = tx.rules(&self.namespace)?;
        // A function whose faena.toml says so has a rule of its own.
        rules.extend(tx.public_functions(&self.namespace)?.iter().map(Rule::public));
        Ok(Seen { seen: context.access_seen, record: NamespaceRules { rules, quota } })
    }
}

impl Write for RulePut {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Put<Rule>> {
        context.changes_access();
        quota(tx, &self.namespace)?;
        let rules = tx.rules(&self.namespace)?;
        let is_there = rules.iter().any(|rule| rule.id == self.rule.id);
        if !is_there && rules.len() >= MAX_RULES {
            return conflict(format!("the namespace {} has {MAX_RULES} rules, which is the most", self.namespace));
        }
        tx.put_rule(&self.namespace, &self.rule)?;
        Ok(Put { record: self.rule.clone(), created: !is_there })
    }
}

impl Write for RuleDelete {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        context.changes_access();
        if tx.delete_rule(&self.namespace, &self.id)? { Ok(()) } else { refuse(not_found(Resource::Rule, &self.id)) }
    }
}
