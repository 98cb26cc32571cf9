//! Namespaces, their rules, and accounts.

use faena_auth::{AccountId, Rule};
use faena_domain::{FunctionName, Grants, GrantsChange, Namespace, NodeSelector, Quota, QuotaChange, RuleId};
use serde::{Deserialize, Serialize};

use super::Put;
use super::requests;
use crate::records::{AccountRecord, LoginRecord, NamespaceRecord, SecretHash};

/// What decides who is let in at all, and how new the word of it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessState {
    /// Whether an account was ever made: from then on every request needs a credential.
    pub locked: bool,
    /// Rises whenever an account, a credential, a rule or a namespace has changed. What was read when it was lower may be
    /// out of date.
    pub seen: AccessSeen,
}

/// How often what decides about access has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AccessSeen(pub u64);

/// What was read, and how often access had changed before that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen<T> {
    /// Before it was read.
    pub seen: AccessSeen,
    /// What was read.
    pub record: T,
}

/// By what the calls of a namespace are judged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceRules {
    /// Its rules, and those that functions make by themselves.
    pub rules: Vec<Rule>,
    /// What it may have and do.
    pub quota: Quota,
}

requests! {
    /// Asks who is let in.
    Read AccessStateGet = "access.state" by [Api] -> AccessState {}
    /// Keeps the hash of a token with which the first account can be made. Nothing happens where there is one.
    Write SetupPut = "setup.put" by [Api] -> () {
        /// The hash.
        hash: String,
    }
    /// The hash of the token with which the first account can be made; none where there is an account, or no token.
    Read SetupGet = "setup.get" by [Api] -> Option<String> {}
    /// Makes a namespace.
    Write NamespacePut = "namespace.put" by [Api] -> Put<NamespaceRecord> {
        /// Its name, in lower case.
        name: Namespace,
        /// What its runtimes may let functions ask for.
        allow: Grants,
        /// What it may have and do.
        quota: Quota,
        /// Its weight.
        weight: u32,
        /// Labels that a node must have to build and run its functions.
        node_selector: NodeSelector,
    }
    /// Changes what a namespace may. Runtimes and functions that exist already are not affected.
    Write NamespacePatch = "namespace.patch" by [Api] -> NamespaceRecord {
        /// Its name.
        name: Namespace,
        /// What its runtimes may let functions ask for.
        allow: GrantsChange,
        /// What it may have and do.
        quota: QuotaChange,
        /// Its weight; none leaves it as it is.
        weight: Option<u32>,
        /// Its labels of nodes; none leaves them as they are.
        node_selector: Option<NodeSelector>,
    }
    /// One namespace.
    Read NamespaceGet = "namespace.get" by [Api] -> NamespaceRecord {
        /// Its name.
        name: Namespace,
    }
    /// The names of all namespaces, sorted.
    Read NamespaceList = "namespace.list" by [Api] -> Vec<Namespace> {}
    /// Deletes a namespace that has only accounts and rules, or with `force` any. The reply names the functions that were deleted
    /// with it.
    Write NamespaceDelete = "namespace.delete" by [Api] -> Vec<FunctionName> {
        /// Its name.
        name: Namespace,
        /// Whether its functions, runtimes and configuration are deleted too. Call records are removed by their age.
        force: bool,
    }
    /// The rules of a namespace, and what it may do.
    Read RuleList = "rule.list" by [Api] -> Seen<NamespaceRules> {
        /// The namespace.
        namespace: Namespace,
    }
    /// Adds a rule, or replaces the one with its id.
    Write RulePut = "rule.put" by [Api] -> Put<Rule> {
        /// Its namespace.
        namespace: Namespace,
        /// The rule.
        rule: Rule,
    }
    /// Removes a rule.
    Write RuleDelete = "rule.delete" by [Api] -> () {
        /// Its namespace.
        namespace: Namespace,
        /// Its id.
        id: RuleId,
    }
    /// Makes an account. The first of all must be an administrator of the root namespace.
    Write AccountPut = "account.put" by [Api] -> AccountRecord {
        /// The account.
        account: AccountRecord,
        /// The hash of its secret.
        secret: SecretHash,
        /// Whether it has to be the first one: it is made with the token of the set-up.
        first: bool,
    }
    /// One account.
    Read AccountGet = "account.get" by [Api] -> AccountRecord {
        /// Its namespace.
        namespace: Namespace,
        /// Its id or its name.
        account: String,
    }
    /// All accounts of a namespace, by name.
    Read AccountList = "account.list" by [Api] -> Vec<AccountRecord> {
        /// The namespace.
        namespace: Namespace,
    }
    /// Forgets an account, its sessions and its keys. The last administrator of a namespace stays.
    Write AccountDelete = "account.delete" by [Api] -> () {
        /// Its id.
        id: AccountId,
    }
    /// An account, and what its secret is judged by.
    Read LoginGet = "login.get" by [Api] -> LoginRecord {
        /// Its namespace.
        namespace: Namespace,
        /// Its id or its name.
        account: String,
    }
    /// Changes an account's secret, and ends its sessions.
    Write SecretPut = "secret.put" by [Api] -> () {
        /// The account.
        id: AccountId,
        /// The hash of the new secret.
        secret: SecretHash,
        /// The hash of the old one, where that was proven and has to be so still.
        proven: Option<SecretHash>,
        /// Whether its keys end too.
        ends_keys: bool,
    }
}
