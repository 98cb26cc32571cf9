//! What proves that a request comes from an account: tokens of sessions, and keys.

use faena_auth::{AccountId, CredentialHash, CredentialId};
use faena_domain::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Seen, requests};
use crate::records::{AccountRecord, CredentialRecord, KeyRecord, SecretHash, TokenRecord};

/// What became of a token that was to be exchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Refreshed {
    /// It was exchanged.
    Done(Box<AccountRecord>),
    /// It had been exchanged before: someone else has a copy, so its session has ended.
    Reused,
}

/// The last use of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyUse {
    /// Which key.
    pub id: CredentialId,
    /// When.
    pub at: Timestamp,
}

requests! {
    /// What a credential stands for: an access token, one that is to be exchanged, or a key.
    Read CredentialGet = "credential.get" by [Api] -> Seen<CredentialRecord> {
        /// Its id.
        id: CredentialId,
    }
    /// Begins a session. Of too many of one account the oldest ends.
    Write SessionBegin = "session.begin" by [Api] -> () {
        /// Its id.
        session: String,
        /// Whose it is.
        account: AccountId,
        /// The hash of the secret that was proven: one that was changed meanwhile begins nothing.
        proven: SecretHash,
        /// When it ends, whatever is exchanged meanwhile.
        ends_at: Timestamp,
        /// Its first token.
        access: TokenRecord,
        /// The token that is exchanged for the next.
        refresh: TokenRecord,
    }
    /// Exchanges a token for new ones; if it was exchanged before, its session ends.
    Write SessionRefresh = "session.refresh" by [Api] -> Refreshed {
        /// The token that is exchanged.
        used: CredentialId,
        /// The new access token.
        access: TokenRecord,
        /// The token that is exchanged for the next. It ends with the session at the latest.
        refresh: TokenRecord,
    }
    /// Ends a session.
    Write SessionEnd = "session.end" by [Api] -> () {
        /// Which.
        session: String,
    }
    /// Makes a key.
    Write KeyPut = "key.put" by [Api] -> KeyRecord {
        /// The key.
        key: KeyRecord,
        /// What its secret is judged by.
        hash: CredentialHash,
    }
    /// The keys of an account, by name.
    Read KeyList = "key.list" by [Api] -> Vec<KeyRecord> {
        /// The account.
        account: AccountId,
    }
    /// Ends a key of an account.
    Write KeyDelete = "key.delete" by [Api] -> () {
        /// Its account.
        account: AccountId,
        /// Its id.
        id: CredentialId,
    }
    /// Notes when keys were used.
    Write KeysUsed = "keys.used" by [Api] -> () {
        /// Their last uses.
        uses: Vec<KeyUse>,
    }
}
