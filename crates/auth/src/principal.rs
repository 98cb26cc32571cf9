//! Principals, and what operations require of them.

use std::fmt;
use std::sync::Arc;

use faena_domain::{FunctionName, Namespace};
use serde::{Deserialize, Serialize};

use crate::scope::{Scope, Scopes};

/// Names an account for ever: ids are never used again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AccountId(pub Arc<str>);

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whom an account is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AccountKind {
    /// A person.
    User,
    /// A program.
    Service,
}

/// Who a principal is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Account {
    /// A user of the machine that the platform runs on, while no account was ever made.
    Operator,
    /// Someone who has sent no credential.
    Anonymous,
    /// An account of a namespace.
    Named {
        /// Its id.
        id: AccountId,
        /// Its name.
        name: Arc<str>,
        /// Whom it is for.
        kind: AccountKind,
    },
    /// A function that calls another one of its namespace.
    Function(FunctionName),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::Anonymous => f.write_str("an anonymous caller"),
            Self::Named { name, .. } => f.write_str(name),
            Self::Function(name) => write!(f, "the function {name}"),
        }
    }
}

/// Who makes a request: an account of a namespace, with its scopes, and the namespace that the request concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Whose functions, runtimes and calls the request concerns. Those of other namespaces do not exist for it.
    pub namespace: Namespace,
    /// The namespace of the account; none for who has no account.
    pub home: Option<Namespace>,
    /// Who it is.
    pub account: Account,
    /// What it may do.
    pub scopes: Scopes,
}

/// What an operation requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Nothing: anyone may, without a credential.
    Nothing,
    /// To be known: it concerns the account itself.
    Account,
    /// A scope in the namespace that the request concerns.
    Scope(Scope),
    /// To call a function; a rule can permit that by itself.
    Call,
    /// A scope, or `invoke` for a call that the account has made itself.
    OwnCall(Scope),
    /// The scope `admin` in the root namespace: the operation concerns the whole platform.
    Root,
}

impl Principal {
    /// The local operator, who may do everything.
    pub fn operator() -> Self {
        Self {
            namespace: Namespace::default(),
            home: Some(Namespace::default()),
            account: Account::Operator,
            scopes: Scopes::NONE.with(Scope::Admin),
        }
    }

    /// Someone who has sent no credential, and wants what is public in a namespace.
    pub fn anonymous(namespace: Namespace) -> Self {
        Self { namespace, home: None, account: Account::Anonymous, scopes: Scopes::NONE }
    }

    /// A function, which may call others of its namespace. Which of them is for its `faena.toml` to say, and is judged where
    /// its connections are made.
    pub fn function(namespace: Namespace, name: FunctionName, scopes: Scopes) -> Self {
        let home = Some(namespace.clone());
        Self { namespace, home, account: Account::Function(name), scopes }
    }

    /// The id of its account, where it has one.
    pub fn account_id(&self) -> Option<&AccountId> {
        match &self.account {
            Account::Named { id, .. } => Some(id),
            Account::Operator | Account::Anonymous | Account::Function(_) => None,
        }
    }

    /// Whether it may do with a call what requires this scope, or has made the call.
    pub fn may_touch_call(&self, scope: Scope, made_by: Option<&AccountId>) -> bool {
        let is_own = made_by.is_some() && made_by == self.account_id();
        self.scopes.include(scope) || (is_own && self.scopes.include(Scope::Invoke))
    }

    /// Whether it acts in another namespace than that of its account.
    pub fn is_in_foreign_namespace(&self) -> bool {
        self.home.as_ref() != Some(&self.namespace)
    }

    /// Whether it administers the platform: `admin` of the root namespace, which is the default one.
    pub fn is_root(&self) -> bool {
        self.home == Some(Namespace::default()) && self.scopes.include(Scope::Admin)
    }
}
