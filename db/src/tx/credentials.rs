//! Sessions, their tokens, and keys.

use faena_auth::{AccountId, CredentialHash, CredentialId, CredentialKind};
use faena_domain::Timestamp;
use faena_protocol::db::KeyUse;
use faena_protocol::records::{AccountRecord, CredentialRecord, KeyRecord, TokenRecord};

use super::StoreResult;

/// The session of a token.
#[derive(Debug)]
pub(crate) struct TokenSession {
    pub(crate) session: String,
    pub(crate) account: AccountRecord,
    /// The token that replaced it.
    pub(crate) successor: Option<String>,
}

/// Rows of sessions, tokens and keys.
pub(crate) trait CredentialRows {
    /// A token or a key, with its account.
    fn credential(&self, id: &CredentialId) -> StoreResult<Option<CredentialRecord>>;

    /// Whether there is a token of this id.
    fn is_token(&self, id: &CredentialId) -> StoreResult<bool>;

    /// Adds a session, unless it is there already.
    fn insert_session(&self, session: &str, account: &AccountId, began_at: i64, ends_at: Timestamp) -> StoreResult<()>;

    /// Keeps the newest `keep` sessions of an account, and ends the rest; whether any ended.
    fn end_oldest_sessions(&self, account: &AccountId, keep: u32) -> StoreResult<bool>;

    /// Adds tokens to a session, each with what it is for; those that are there already stay.
    fn insert_tokens(&self, session: &str, tokens: &[(CredentialKind, &TokenRecord)]) -> StoreResult<()>;

    /// The session of a token.
    fn session_of_token(&self, id: &CredentialId) -> StoreResult<Option<TokenSession>>;

    /// How many tokens a session has.
    fn count_tokens(&self, session: &str) -> StoreResult<u32>;

    /// Notes which token a token was exchanged for.
    fn set_successor(&self, used: &CredentialId, next: &CredentialId) -> StoreResult<()>;

    /// Ends a session, with its tokens; false where there is none.
    fn delete_session(&self, session: &str) -> StoreResult<bool>;

    /// Ends all sessions of an account.
    fn delete_sessions_of(&self, account: &AccountId) -> StoreResult<()>;

    /// The keys of an account, by name.
    fn api_keys(&self, account: &AccountId) -> StoreResult<Vec<KeyRecord>>;

    /// Adds a key.
    fn insert_api_key(&self, key: &KeyRecord, hash: &CredentialHash) -> StoreResult<()>;

    /// Removes a key of an account; false where there is none.
    fn delete_api_key(&self, account: &AccountId, id: &CredentialId) -> StoreResult<bool>;

    /// Removes all keys of an account.
    fn delete_api_keys_of(&self, account: &AccountId) -> StoreResult<()>;

    /// Notes when keys were used; the latest use stays.
    fn note_key_uses(&self, uses: &[KeyUse]) -> StoreResult<()>;

    /// Removes sessions that have ended, and tokens that expired before an instant.
    fn forget_sessions(&self, now: i64, tokens_before: i64) -> StoreResult<()>;
}
