//! Configurations, and everything that is sealed.

use faena_domain::config::ConfigPath;
use faena_domain::{CallNum, FunctionId, FunctionName, Namespace, Timestamp};
use faena_protocol::db::ConfigChange;
use rusqlite::Row;
use serde_json::Value;

use super::rows::{Hex, Json, Text};
use super::tx::SqliteTx;
use crate::tx::{ConfigRows, Leaf, LeafValue, SealedSecret, SecretPlace, SecretRows, StoreResult};

/// A row at a path or below it: `.` is followed by `/` in ASCII. Parameters: the namespace, and the path or NULL.
const BELOW: &str = "namespace = ?1 AND (?2 IS NULL OR path = ?2 OR (path >= ?2 || '.' AND path < ?2 || '/'))";

impl ConfigRows for SqliteTx<'_> {
    fn leaves(&self, namespace: &Namespace, path: Option<&ConfigPath>) -> StoreResult<Vec<Leaf>> {
        let sql = format!("SELECT path, value, sealed FROM config WHERE {BELOW} ORDER BY path");
        self.all(&sql, (namespace.as_str(), path.map(ConfigPath::as_str)), |row| {
            let value = match row.get::<_, Option<Json<Value>>>(1)? {
                Some(Json(value)) => LeafValue::Clear(value),
                None => LeafValue::Sealed(row.get(2)?),
            };
            Ok(Leaf { path: row.get::<_, Text<_>>(0)?.0, value })
        })
    }

    fn put_leaf(&self, namespace: &Namespace, path: &ConfigPath, value: &LeafValue) -> StoreResult<()> {
        let (clear, sealed) = match value {
            LeafValue::Clear(value) => (Some(Json(value)), None),
            LeafValue::Sealed(sealed) => (None, Some(sealed)),
        };
        self.execute(
            "INSERT INTO config (namespace, path, value, sealed) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET value = excluded.value, sealed = excluded.sealed",
            (namespace.as_str(), path.as_str(), clear, sealed),
        )?;
        Ok(())
    }

    fn delete_leaves(&self, namespace: &Namespace, paths: &[&ConfigPath]) -> StoreResult<()> {
        for path in paths {
            self.execute("DELETE FROM config WHERE namespace = ?1 AND path = ?2", (namespace.as_str(), path.as_str()))?;
        }
        Ok(())
    }

    fn insert_config_change(&self, namespace: &Namespace, change: &ConfigChange) -> StoreResult<()> {
        let ConfigChange { path, at, account, old, was_secret } = change;
        self.execute(
            "INSERT INTO config_changes (namespace, path, at, account, old, was_secret) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            (namespace.as_str(), path.as_str(), at.0, account, old.as_ref().map(Json), was_secret),
        )?;
        Ok(())
    }

    fn hide_config_changes(&self, namespace: &Namespace, path: &ConfigPath) -> StoreResult<()> {
        self.execute(
            "UPDATE config_changes SET old = NULL, was_secret = 1 WHERE namespace = ?1 AND path = ?2 AND old IS NOT NULL",
            (namespace.as_str(), path.as_str()),
        )?;
        Ok(())
    }

    fn trim_config_changes(&self, namespace: &Namespace, keep: u32) -> StoreResult<()> {
        self.execute(
            "DELETE FROM config_changes WHERE namespace = ?1 AND number <=
                 (SELECT number FROM config_changes WHERE namespace = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
            (namespace.as_str(), keep),
        )?;
        Ok(())
    }

    fn config_changes(&self, namespace: &Namespace, path: &ConfigPath, limit: u32) -> StoreResult<Vec<ConfigChange>> {
        let sql = format!(
            "SELECT path, at, account, old, was_secret FROM config_changes WHERE {BELOW} ORDER BY number DESC LIMIT ?3"
        );
        self.all(&sql, (namespace.as_str(), path.as_str(), limit), |row| {
            Ok(ConfigChange {
                path: row.get::<_, Text<_>>(0)?.0,
                at: Timestamp(row.get(1)?),
                account: row.get(2)?,
                old: row.get::<_, Option<Json<Value>>>(3)?.map(|Json(value)| value),
                was_secret: row.get(4)?,
            })
        })
    }

    fn config_revision(&self, namespace: &Namespace) -> StoreResult<i64> {
        self.value("SELECT coalesce(max(number), 0) FROM config_changes WHERE namespace = ?1", [namespace.as_str()])
    }

    fn config_size(&self, namespace: &Namespace) -> StoreResult<(u64, u64)> {
        let size = self.first(
            "SELECT count(*), coalesce(sum(length(path) + coalesce(length(value), length(sealed))), 0)
             FROM config WHERE namespace = ?1",
            [namespace.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        Ok(size.unwrap_or_default())
    }

    fn functions_with_config(&self, namespace: &Namespace) -> StoreResult<Vec<FunctionName>> {
        self.all(
            "SELECT DISTINCT f.name FROM functions f JOIN versions v ON v.namespace = f.namespace AND v.function = f.key
             WHERE f.namespace = ?1 AND v.manifest LIKE '%\"config\":%'",
            [namespace.as_str()],
            |row| Ok(row.get::<_, Text<_>>(0)?.0),
        )
    }

    fn delete_config(&self, namespace: &Namespace) -> StoreResult<()> {
        self.execute("DELETE FROM config WHERE namespace = ?1", [namespace.as_str()])?;
        self.execute("DELETE FROM config_changes WHERE namespace = ?1", [namespace.as_str()]).map(drop)
    }
}

fn function_of(row: &Row<'_>, first: usize) -> rusqlite::Result<FunctionId> {
    let (Text(namespace), Text(name)) = (row.get(first)?, row.get(first + 1)?);
    Ok(FunctionId { namespace, name })
}

impl SecretRows for SqliteTx<'_> {
    fn sealed_prefixes(&self, bytes: usize) -> StoreResult<Vec<Vec<u8>>> {
        let mut prefixes = self.all(
            "SELECT DISTINCT substr(sealed, 1, ?1) FROM config WHERE sealed IS NOT NULL
             UNION SELECT DISTINCT substr(secret, 1, ?1) FROM providers WHERE secret IS NOT NULL",
            [bytes],
            |row| row.get(0),
        )?;
        prefixes.extend(self.all(
            "SELECT DISTINCT substr(secret, 1, 2 * ?1) FROM functions
             UNION SELECT DISTINCT substr(secret, 1, 2 * ?1) FROM callbacks WHERE status = 'WAITING'",
            [bytes],
            |row| Ok(row.get::<_, Hex>(0)?.0),
        )?);
        Ok(prefixes)
    }

    fn sealed_secrets_for_update(&self) -> StoreResult<Vec<SealedSecret>> {
        let mut secrets =
            self.all("SELECT namespace, path, sealed FROM config WHERE sealed IS NOT NULL", [], |row| {
                let (Text(namespace), Text(path)) = (row.get(0)?, row.get(1)?);
                Ok(SealedSecret { place: SecretPlace::Config(namespace, path), sealed: row.get(2)? })
            })?;
        secrets.extend(self.all("SELECT key, secret FROM providers WHERE secret IS NOT NULL", [], |row| {
            let Text(name) = row.get(0)?;
            Ok(SealedSecret { place: SecretPlace::Provider(name), sealed: row.get(1)? })
        })?);
        secrets.extend(self.all("SELECT namespace, key, secret FROM functions", [], |row| {
            let Hex(sealed) = row.get(2)?;
            Ok(SealedSecret { place: SecretPlace::Function(function_of(row, 0)?), sealed })
        })?);
        Ok(secrets)
    }

    fn sealed_callbacks_for_update(&self, after: CallNum, limit: u32) -> StoreResult<Vec<SealedSecret>> {
        self.all(
            "SELECT c.namespace, c.function, b.num, b.secret FROM callbacks b JOIN calls c ON c.num = b.num
             WHERE b.status = 'WAITING' AND b.num > ?1 ORDER BY b.num LIMIT ?2",
            (after.0, limit),
            |row| {
                let Hex(sealed) = row.get(3)?;
                let place = SecretPlace::Callback(CallNum(row.get(2)?), function_of(row, 0)?);
                Ok(SealedSecret { place, sealed })
            },
        )
    }

    fn replace_sealed(&self, secrets: &[SealedSecret]) -> StoreResult<()> {
        for SealedSecret { place, sealed } in secrets {
            match place {
                SecretPlace::Config(namespace, path) => self.execute(
                    "UPDATE config SET sealed = ?3 WHERE namespace = ?1 AND path = ?2",
                    (namespace.as_str(), path.as_str(), sealed),
                ),
                SecretPlace::Provider(name) => {
                    self.execute("UPDATE providers SET secret = ?2 WHERE key = ?1", (name.key(), sealed))
                }
                SecretPlace::Function(FunctionId { namespace, name }) => self.execute(
                    "UPDATE functions SET secret = ?3 WHERE namespace = ?1 AND key = ?2",
                    (namespace.as_str(), name.key(), hex::encode_upper(sealed)),
                ),
                SecretPlace::Callback(num, _) => {
                    self.execute("UPDATE callbacks SET secret = ?2 WHERE num = ?1", (num.0, hex::encode_upper(sealed)))
                }
            }?;
        }
        Ok(())
    }
}
