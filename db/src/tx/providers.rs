//! Identity providers, and the accounts of who signs in with them.

use faena_auth::AccountId;
use faena_domain::{Namespace, ProviderName, Timestamp};
use faena_protocol::records::{AccountRecord, ProviderRecord};

use super::StoreResult;

/// A provider, and the secret of its client.
#[derive(Debug)]
pub(crate) struct StoredProvider {
    pub(crate) provider: ProviderRecord,
    /// Sealed; none of a public client.
    pub(crate) secret: Option<Vec<u8>>,
}

/// The account that an identity has in a namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdentityAccount<'a> {
    pub(crate) issuer: &'a str,
    pub(crate) subject: &'a str,
    pub(crate) namespace: &'a Namespace,
    pub(crate) account: &'a AccountId,
    /// By which it has signed in last.
    pub(crate) provider: &'a ProviderName,
    pub(crate) signed_in_at: i64,
    pub(crate) keys_end_at: Timestamp,
}

/// Rows of providers and identities.
pub(crate) trait ProviderRows {
    /// A provider.
    fn provider(&self, name: &ProviderName) -> StoreResult<Option<StoredProvider>>;

    /// All providers, by name.
    fn providers(&self) -> StoreResult<Vec<ProviderRecord>>;

    /// Adds a provider, or replaces the one of the same name. The secret is sealed.
    fn put_provider(&self, provider: &ProviderRecord, secret: Option<&[u8]>) -> StoreResult<()>;

    /// Replaces a provider; its secret stays.
    fn update_provider(&self, provider: &ProviderRecord) -> StoreResult<()>;

    /// Removes a provider; false where there is none.
    fn delete_provider(&self, name: &ProviderName) -> StoreResult<bool>;

    /// Ends the sessions and keys of all who have signed in with a provider.
    fn end_access_by(&self, provider: &ProviderName) -> StoreResult<()>;

    /// Ends the sessions and keys of one identity.
    fn end_access_of(&self, provider: &ProviderName, issuer: &str, subject: &str) -> StoreResult<()>;

    /// The account of an identity in a namespace.
    fn identity_account(
        &self,
        issuer: &str,
        subject: &str,
        namespace: &Namespace,
    ) -> StoreResult<Option<AccountRecord>>;

    /// Notes a sign-in.
    fn put_identity(&self, identity: IdentityAccount<'_>) -> StoreResult<()>;
}
