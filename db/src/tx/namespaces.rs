//! Namespaces and their rules.

use std::fmt;

use faena_auth::Rule;
use faena_domain::{Namespace, NamespaceShare, NodeSelector, Quota, RuleId};
use faena_protocol::records::NamespaceRecord;

use super::StoreResult;

/// What a namespace has that keeps it from being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NamespaceContent {
    Functions,
    Runtimes,
    Calls,
    Configuration,
}

impl fmt::Display for NamespaceContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Functions => "functions",
            Self::Runtimes => "runtimes",
            Self::Calls => "calls",
            Self::Configuration => "configuration",
        })
    }
}

/// Rows of namespaces. One that was deleted is not found, and its name stays taken.
pub(crate) trait NamespaceRows {
    /// A namespace and its usage; its build time is that of `day`.
    fn namespace(&self, name: &Namespace, day: i64) -> StoreResult<Option<NamespaceRecord>>;

    /// What it may have and do.
    fn quota(&self, name: &Namespace) -> StoreResult<Option<Quota>>;

    /// The part of a worker that it may use, and the nodes that it is bound to.
    fn share(&self, name: &Namespace) -> StoreResult<Option<(NamespaceShare, Option<NodeSelector>)>>;

    /// All names, sorted.
    fn namespaces(&self) -> StoreResult<Vec<Namespace>>;

    /// Adds a namespace; false where the name is taken.
    fn insert_namespace(&self, namespace: &NamespaceRecord) -> StoreResult<bool>;

    /// Writes what administrators say of it.
    fn update_namespace(&self, namespace: &NamespaceRecord) -> StoreResult<()>;

    /// The first thing that it still has.
    fn first_content(&self, name: &Namespace) -> StoreResult<Option<NamespaceContent>>;

    /// Removes its accounts and rules, and marks it as deleted.
    fn delete_namespace(&self, name: &Namespace) -> StoreResult<()>;
}

/// Rows of rules.
pub(crate) trait RuleRows {
    /// The rules of a namespace, by id.
    fn rules(&self, namespace: &Namespace) -> StoreResult<Vec<Rule>>;

    /// Adds a rule, or replaces the one of the same id.
    fn put_rule(&self, namespace: &Namespace, rule: &Rule) -> StoreResult<()>;

    /// Removes a rule; false where there is none.
    fn delete_rule(&self, namespace: &Namespace, id: &RuleId) -> StoreResult<bool>;
}
