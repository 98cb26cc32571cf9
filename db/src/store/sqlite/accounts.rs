//! Accounts.

use faena_auth::{AccountId, Scopes};
use faena_domain::{AccountName, Namespace, Timestamp};
use faena_protocol::records::{AccountRecord, LoginRecord, SecretHash};
use rusqlite::Row;
use serde_json::{Map, Value};

use super::rows::{Json, Text};
use super::tx::SqliteTx;
use crate::tx::{AccountRows, StoreResult};

/// An account's columns, in the order that [`account_record`] reads them.
pub(super) const ACCOUNT: &str = "a.id, a.name, a.namespace, a.kind, a.scopes, a.metadata, a.created_at";

/// Reads the columns of [`ACCOUNT`].
pub(super) fn account_record(row: &Row<'_>) -> rusqlite::Result<AccountRecord> {
    Ok(AccountRecord {
        id: AccountId(row.get::<_, String>(0)?.into()),
        name: row.get::<_, Text<AccountName>>(1)?.0,
        namespace: row.get::<_, Text<Namespace>>(2)?.0,
        kind: row.get::<_, Text<_>>(3)?.0,
        scopes: row.get::<_, Json<Scopes>>(4)?.0,
        metadata: row.get::<_, Json<_>>(5)?.0,
        created_at: Timestamp(row.get(6)?),
    })
}

impl AccountRows for SqliteTx<'_> {
    fn login(&self, namespace: &Namespace, account: &str) -> StoreResult<Option<LoginRecord>> {
        let sql = format!(
            "SELECT {ACCOUNT}, a.secret AS secret FROM accounts a WHERE a.namespace = ?1 AND (a.id = ?2 OR a.key = ?3)"
        );
        self.first(&sql, (namespace.as_str(), account, account.to_ascii_lowercase()), |row| {
            let secret: String = row.get("secret")?;
            let secret = (!secret.is_empty()).then_some(SecretHash(secret));
            Ok(LoginRecord { account: account_record(row)?, secret })
        })
    }

    fn account_namespace(&self, account: &AccountId) -> StoreResult<Option<Namespace>> {
        let namespace = |row: &Row<'_>| Ok(row.get::<_, Text<_>>(0)?.0);
        self.first("SELECT namespace FROM accounts WHERE id = ?1", [&*account.0], namespace)
    }

    fn accounts(&self, namespace: &Namespace) -> StoreResult<Vec<AccountRecord>> {
        let sql = format!("SELECT {ACCOUNT} FROM accounts a WHERE a.namespace = ?1 ORDER BY a.key");
        self.all(&sql, [namespace.as_str()], account_record)
    }

    fn accounts_with_secrets(&self, namespace: &Namespace) -> StoreResult<Vec<AccountRecord>> {
        let sql = format!("SELECT {ACCOUNT} FROM accounts a WHERE a.namespace = ?1 AND a.secret <> ''");
        self.all(&sql, [namespace.as_str()], account_record)
    }

    fn is_account_name_taken(&self, namespace: &Namespace, name: &AccountName) -> StoreResult<bool> {
        self.exists("SELECT 1 FROM accounts WHERE namespace = ?1 AND key = ?2", (namespace.as_str(), name.key()))
    }

    fn insert_account(&self, account: &AccountRecord, secret: &SecretHash) -> StoreResult<()> {
        let row = (
            &*account.id.0,
            account.namespace.as_str(),
            account.name.key(),
            account.name.as_str(),
            Text(account.kind),
            Json(&account.scopes),
            Json(&account.metadata),
            &secret.0,
            account.created_at.0,
        );
        self.execute(
            "INSERT INTO accounts (id, namespace, key, name, kind, scopes, metadata, secret, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            row,
        )?;
        Ok(())
    }

    fn update_account(&self, account: &AccountId, scopes: &Scopes, metadata: &Map<String, Value>) -> StoreResult<()> {
        self.execute(
            "UPDATE accounts SET scopes = ?2, metadata = ?3 WHERE id = ?1",
            (&*account.0, Json(scopes), Json(metadata)),
        )?;
        Ok(())
    }

    fn delete_account(&self, account: &AccountId) -> StoreResult<()> {
        self.execute("DELETE FROM accounts WHERE id = ?1", [&*account.0]).map(drop)
    }

    fn has_secret(&self, account: &AccountId, secret: &SecretHash) -> StoreResult<bool> {
        self.exists("SELECT 1 FROM accounts WHERE id = ?1 AND secret = ?2", (&*account.0, &secret.0))
    }

    fn replace_secret(
        &self,
        account: &AccountId,
        secret: &SecretHash,
        proven: Option<&SecretHash>,
    ) -> StoreResult<bool> {
        let changed = self.execute(
            "UPDATE accounts SET secret = ?2 WHERE id = ?1 AND secret <> '' AND (?3 IS NULL OR secret = ?3)",
            (&*account.0, &secret.0, proven.map(|proven| &proven.0)),
        )?;
        Ok(changed > 0)
    }
}
