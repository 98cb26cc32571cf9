//! Identity providers, and the accounts of who signs in with them.

use faena_domain::{Namespace, ProviderName};
use faena_protocol::records::{AccountRecord, ProviderRecord};
use rusqlite::Params;

use super::accounts::{ACCOUNT, account_record};
use super::rows::Json;
use super::tx::SqliteTx;
use crate::tx::{IdentityAccount, ProviderRows, StoreResult, StoredProvider};

impl SqliteTx<'_> {
    /// Ends the sessions and keys of the identities that a condition selects.
    fn end_access(&self, condition: &str, params: impl Params + Clone) -> StoreResult<()> {
        for table in ["sessions", "api_keys"] {
            let sql =
                format!("DELETE FROM {table} WHERE account IN (SELECT account FROM identities WHERE {condition})");
            self.execute(&sql, params.clone())?;
        }
        Ok(())
    }
}

impl ProviderRows for SqliteTx<'_> {
    fn provider(&self, name: &ProviderName) -> StoreResult<Option<StoredProvider>> {
        self.first("SELECT provider, secret FROM providers WHERE key = ?1", [name.key()], |row| {
            Ok(StoredProvider { provider: row.get::<_, Json<_>>(0)?.0, secret: row.get(1)? })
        })
    }

    fn providers(&self) -> StoreResult<Vec<ProviderRecord>> {
        self.all("SELECT provider FROM providers ORDER BY key", [], |row| Ok(row.get::<_, Json<_>>(0)?.0))
    }

    fn put_provider(&self, provider: &ProviderRecord, secret: Option<&[u8]>) -> StoreResult<()> {
        self.execute(
            "INSERT INTO providers (key, provider, secret, created_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET provider = excluded.provider, secret = excluded.secret, created_at = excluded.created_at",
            (provider.name.key(), Json(provider), secret, provider.created_at.0),
        )?;
        Ok(())
    }

    fn update_provider(&self, provider: &ProviderRecord) -> StoreResult<()> {
        self.execute("UPDATE providers SET provider = ?2 WHERE key = ?1", (provider.name.key(), Json(provider)))
            .map(drop)
    }

    fn delete_provider(&self, name: &ProviderName) -> StoreResult<bool> {
        Ok(self.execute("DELETE FROM providers WHERE key = ?1", [name.key()])? > 0)
    }

    fn end_access_by(&self, provider: &ProviderName) -> StoreResult<()> {
        self.end_access("provider = ?1", [provider.key()])
    }

    fn end_access_of(&self, provider: &ProviderName, issuer: &str, subject: &str) -> StoreResult<()> {
        self.end_access("provider = ?1 AND issuer = ?2 AND subject = ?3", (provider.key(), issuer, subject))
    }

    fn identity_account(
        &self,
        issuer: &str,
        subject: &str,
        namespace: &Namespace,
    ) -> StoreResult<Option<AccountRecord>> {
        let sql = format!(
            "SELECT {ACCOUNT} FROM identities i JOIN accounts a ON a.id = i.account
             WHERE i.issuer = ?1 AND i.subject = ?2 AND i.namespace = ?3"
        );
        self.first(&sql, (issuer, subject, namespace.as_str()), account_record)
    }

    fn put_identity(&self, identity: IdentityAccount<'_>) -> StoreResult<()> {
        let IdentityAccount { issuer, subject, namespace, account, provider, signed_in_at, keys_end_at } = identity;
        self.execute(
            "INSERT INTO identities (issuer, subject, namespace, account, provider, signed_in_at, keys_end_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT DO UPDATE SET provider = ?5, signed_in_at = ?6, keys_end_at = ?7",
            (issuer, subject, namespace.as_str(), &*account.0, provider.key(), signed_in_at, keys_end_at.0),
        )?;
        Ok(())
    }
}
