//! Sessions, their tokens, and keys.

use faena_auth::{AccountId, CredentialHash, CredentialId, CredentialKind, Scopes};
use faena_domain::{KeyName, Timestamp};
use faena_protocol::db::KeyUse;
use faena_protocol::records::{CredentialRecord, KeyRecord, TokenRecord};
use rusqlite::Row;

use super::accounts::{ACCOUNT, account_record};
use super::rows::{Json, Text};
use super::tx::SqliteTx;
use crate::tx::{CredentialRows, StoreResult, TokenSession};

/// Later than any instant.
const NEVER: i64 = i64::MAX;

fn credential(row: &Row<'_>) -> rusqlite::Result<CredentialRecord> {
    Ok(CredentialRecord {
        kind: row.get::<_, Text<CredentialKind>>("credential")?.0,
        hash: row.get::<_, Text<CredentialHash>>("hash")?.0,
        expires_at: row.get::<_, Option<i64>>("expires_at")?.map(Timestamp),
        scopes: row.get::<_, Option<Json<Scopes>>>("own_scopes")?.map(|Json(scopes)| scopes),
        session: row.get("session")?,
        session_ends_at: row.get::<_, Option<i64>>("session_ends_at")?.map(Timestamp),
        account: account_record(row)?,
    })
}

fn key_record(row: &Row<'_>) -> rusqlite::Result<KeyRecord> {
    Ok(KeyRecord {
        id: row.get::<_, Text<_>>(0)?.0,
        name: row.get::<_, Text<KeyName>>(1)?.0,
        account: AccountId(row.get::<_, String>(2)?.into()),
        scopes: row.get::<_, Json<Scopes>>(3)?.0,
        created_at: Timestamp(row.get(4)?),
        expires_at: row.get::<_, Option<i64>>(5)?.map(Timestamp),
        last_used_at: row.get::<_, Option<i64>>(6)?.map(Timestamp),
    })
}

impl CredentialRows for SqliteTx<'_> {
    fn credential(&self, id: &CredentialId) -> StoreResult<Option<CredentialRecord>> {
        let sql = format!(
            "SELECT {ACCOUNT}, t.kind AS credential, t.hash AS hash, min(t.expires_at, s.ends_at) AS expires_at,
                 NULL AS own_scopes, s.id AS session, s.ends_at AS session_ends_at
             FROM tokens t JOIN sessions s ON s.id = t.session JOIN accounts a ON a.id = s.account WHERE t.id = ?1
             UNION ALL
             SELECT {ACCOUNT}, 'key', k.hash,
                 nullif(min(coalesce(k.expires_at, {NEVER}), coalesce(i.keys_end_at, {NEVER})), {NEVER}), k.scopes, NULL, NULL
             FROM api_keys k JOIN accounts a ON a.id = k.account LEFT JOIN identities i ON i.account = a.id WHERE k.id = ?1"
        );
        self.first(&sql, [id.to_string()], credential)
    }

    fn is_token(&self, id: &CredentialId) -> StoreResult<bool> {
        self.exists("SELECT 1 FROM tokens WHERE id = ?1", [id.to_string()])
    }

    fn insert_session(&self, session: &str, account: &AccountId, began_at: i64, ends_at: Timestamp) -> StoreResult<()> {
        self.execute(
            "INSERT INTO sessions (id, account, began_at, ends_at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
            (session, &*account.0, began_at, ends_at.0),
        )?;
        Ok(())
    }

    fn end_oldest_sessions(&self, account: &AccountId, keep: u32) -> StoreResult<bool> {
        let ended = self.execute(
            "DELETE FROM sessions WHERE account = ?1 AND id IN
                 (SELECT id FROM sessions WHERE account = ?1 ORDER BY began_at DESC, id LIMIT -1 OFFSET ?2)",
            (&*account.0, keep),
        )?;
        Ok(ended > 0)
    }

    fn insert_tokens(&self, session: &str, tokens: &[(CredentialKind, &TokenRecord)]) -> StoreResult<()> {
        for (kind, token) in tokens {
            self.execute(
                "INSERT INTO tokens (id, session, kind, hash, expires_at) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
                (token.id.to_string(), session, Text(kind), Text(&token.hash), token.expires_at.0),
            )?;
        }
        Ok(())
    }

    fn session_of_token(&self, id: &CredentialId) -> StoreResult<Option<TokenSession>> {
        let sql = format!(
            "SELECT {ACCOUNT}, s.id AS session, t.successor AS successor FROM tokens t
             JOIN sessions s ON s.id = t.session JOIN accounts a ON a.id = s.account WHERE t.id = ?1"
        );
        self.first(&sql, [id.to_string()], |row| {
            Ok(TokenSession {
                session: row.get("session")?,
                account: account_record(row)?,
                successor: row.get("successor")?,
            })
        })
    }

    fn count_tokens(&self, session: &str) -> StoreResult<u32> {
        self.value("SELECT count(*) FROM tokens WHERE session = ?1", [session])
    }

    fn set_successor(&self, used: &CredentialId, next: &CredentialId) -> StoreResult<()> {
        self.execute("UPDATE tokens SET successor = ?2 WHERE id = ?1", (used.to_string(), next.to_string())).map(drop)
    }

    fn delete_session(&self, session: &str) -> StoreResult<bool> {
        Ok(self.execute("DELETE FROM sessions WHERE id = ?1", [session])? > 0)
    }

    fn delete_sessions_of(&self, account: &AccountId) -> StoreResult<()> {
        self.execute("DELETE FROM sessions WHERE account = ?1", [&*account.0]).map(drop)
    }

    fn api_keys(&self, account: &AccountId) -> StoreResult<Vec<KeyRecord>> {
        self.all(
            "SELECT id, name, account, scopes, created_at, expires_at, used_at FROM api_keys WHERE account = ?1 ORDER BY key",
            [&*account.0],
            key_record,
        )
    }

    fn insert_api_key(&self, key: &KeyRecord, hash: &CredentialHash) -> StoreResult<()> {
        self.execute(
            "INSERT INTO api_keys (id, account, key, name, scopes, hash, created_at, expires_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            (
                key.id.to_string(),
                &*key.account.0,
                key.name.key(),
                key.name.as_str(),
                Json(&key.scopes),
                Text(hash),
                key.created_at.0,
                key.expires_at.map(|at| at.0),
            ),
        )?;
        Ok(())
    }

    fn delete_api_key(&self, account: &AccountId, id: &CredentialId) -> StoreResult<bool> {
        Ok(self.execute("DELETE FROM api_keys WHERE account = ?1 AND id = ?2", (&*account.0, id.to_string()))? > 0)
    }

    fn delete_api_keys_of(&self, account: &AccountId) -> StoreResult<()> {
        self.execute("DELETE FROM api_keys WHERE account = ?1", [&*account.0]).map(drop)
    }

    fn note_key_uses(&self, uses: &[KeyUse]) -> StoreResult<()> {
        for used in uses {
            self.execute(
                "UPDATE api_keys SET used_at = max(coalesce(used_at, 0), ?2) WHERE id = ?1",
                (used.id.to_string(), used.at.0),
            )?;
        }
        Ok(())
    }

    fn forget_sessions(&self, now: i64, tokens_before: i64) -> StoreResult<()> {
        self.execute("DELETE FROM sessions WHERE ends_at <= ?1", [now])?;
        self.execute("DELETE FROM tokens WHERE expires_at <= ?1", [tokens_before]).map(drop)
    }
}
