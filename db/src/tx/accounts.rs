//! Accounts.

use faena_auth::{AccountId, Scopes};
use faena_domain::{AccountName, Namespace};
use faena_protocol::records::{AccountRecord, LoginRecord, SecretHash};
use serde_json::{Map, Value};

use super::StoreResult;

/// Rows of accounts.
pub(crate) trait AccountRows {
    /// An account of a namespace by its id or its name, and the hash of its secret.
    fn login(&self, namespace: &Namespace, account: &str) -> StoreResult<Option<LoginRecord>>;

    /// The namespace of an account.
    fn account_namespace(&self, account: &AccountId) -> StoreResult<Option<Namespace>>;

    /// All accounts of a namespace, by name.
    fn accounts(&self, namespace: &Namespace) -> StoreResult<Vec<AccountRecord>>;

    /// Those that need no provider to sign in.
    fn accounts_with_secrets(&self, namespace: &Namespace) -> StoreResult<Vec<AccountRecord>>;

    /// Whether an account of a namespace has this name.
    fn is_account_name_taken(&self, namespace: &Namespace, name: &AccountName) -> StoreResult<bool>;

    /// Adds an account.
    fn insert_account(&self, account: &AccountRecord, secret: &SecretHash) -> StoreResult<()>;

    /// Sets what a provider says of an account.
    fn update_account(&self, account: &AccountId, scopes: &Scopes, metadata: &Map<String, Value>) -> StoreResult<()>;

    /// Removes an account, with its sessions and keys.
    fn delete_account(&self, account: &AccountId) -> StoreResult<()>;

    /// Whether an account has this secret now.
    fn has_secret(&self, account: &AccountId, secret: &SecretHash) -> StoreResult<bool>;

    /// Replaces the secret of an account that has one, where it is the proven one; false where nothing was replaced.
    fn replace_secret(
        &self,
        account: &AccountId,
        secret: &SecretHash,
        proven: Option<&SecretHash>,
    ) -> StoreResult<bool>;
}
