//! Namespaces, accounts, and what proves that a request comes from one.

use std::fmt;

use faena_auth::{AccountId, AccountKind, CredentialHash, CredentialId, CredentialKind, Scopes};
use faena_domain::{AccountName, Grants, KeyName, Namespace, NodeSelector, Quota, Timestamp};
use serde::{Deserialize, Serialize};

/// A namespace: what is in it exists for its own accounts alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceRecord {
    /// Its name.
    pub name: Namespace,
    /// When it was made.
    pub created_at: Timestamp,
    /// What its runtimes may let functions ask for.
    pub allow: Grants,
    /// What it may have and do.
    pub quota: Quota,
    /// Its weight ([`faena_domain::NamespaceShare`]).
    pub weight: u32,
    /// Labels that a node must have to build and run its functions.
    #[serde(default, skip_serializing_if = "NodeSelector::is_empty")]
    pub node_selector: NodeSelector,
    /// What it has.
    pub usage: StoredUsage,
}

/// What a namespace has and does, as far as db knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredUsage {
    /// Functions.
    pub functions: u32,
    /// Queued calls that run.
    pub queued_calls: u32,
    /// The archives of its versions.
    pub stored_bytes: u64,
    /// What its builds have taken today.
    pub build_minutes_per_day: u32,
}

/// An account of a person or a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountRecord {
    /// Names it for ever.
    pub id: AccountId,
    /// Its name, unique in its namespace.
    pub name: AccountName,
    /// Its namespace.
    pub namespace: Namespace,
    /// Whom it is for.
    #[serde(rename = "type")]
    pub kind: AccountKind,
    /// What it may do.
    pub scopes: Scopes,
    /// What its maker noted about it.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// The slow hash of a secret that a person chose, as a PHC string.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretHash(pub String);

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash")
    }
}

/// An account, and what its secret is judged by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoginRecord {
    /// The account.
    pub account: AccountRecord,
    /// The hash of its secret; none of who signs in with a provider.
    pub secret: Option<SecretHash>,
}

/// A key of an account. Its secret is told once, when it is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRecord {
    /// Its id.
    pub id: CredentialId,
    /// Its name.
    pub name: KeyName,
    /// Its account.
    pub account: AccountId,
    /// What it may do, as far as its account may.
    pub scopes: Scopes,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was used last, within a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
}

/// A token as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    /// Its id.
    pub id: CredentialId,
    /// What its secret is judged by.
    pub hash: CredentialHash,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// What a credential stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialRecord {
    /// What it is for.
    pub kind: CredentialKind,
    /// What its secret is judged by.
    pub hash: CredentialHash,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// Whose it is.
    pub account: AccountRecord,
    /// What it may do, where that is less than the account may.
    pub scopes: Option<Scopes>,
    /// Its session, where it has one.
    pub session: Option<String>,
    /// When that ends.
    pub session_ends_at: Option<Timestamp>,
}

/// One line of the audit log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRecord {
    /// When it happened; of several, the first.
    pub at: Timestamp,
    /// The namespace that it concerned.
    pub namespace: Namespace,
    /// The name of the account; none for who sent no credential that is known.
    pub account: Option<String>,
    /// What was asked for: the method and the route.
    pub action: String,
    /// The name of the thing.
    pub target: String,
    /// Where the request came from.
    pub address: String,
    /// The status of the reply.
    pub outcome: u16,
    /// How many requests this line stands for.
    pub count: u64,
}
