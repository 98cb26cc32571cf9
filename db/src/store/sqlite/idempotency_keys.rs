//! Idempotency keys.

use faena_domain::{CallNum, FunctionId};

use super::rows::{Text, function_key};
use super::tx::SqliteTx;
use crate::tx::{IdempotencyKeyRows, StoreResult, StoredKey};

impl IdempotencyKeyRows for SqliteTx<'_> {
    fn stored_keys(&self, keys: &[(FunctionId, String)]) -> StoreResult<Vec<StoredKey>> {
        let mut stored = Vec::new();
        for (function, text) in keys {
            let (namespace, key) = function_key(function);
            stored.extend(self.first(
                "SELECT hash, call, expires_at FROM keys WHERE namespace = ?1 AND function = ?2 AND key = ?3",
                (namespace, key, text),
                |row| {
                    let Text(hash) = row.get(0)?;
                    let call = CallNum(row.get(1)?);
                    let (function, text) = (function.clone(), text.clone());
                    Ok(StoredKey { function, text, hash, call, expires_at: row.get(2)? })
                },
            )?);
        }
        Ok(stored)
    }

    fn count_keys(&self, function: &FunctionId, most: u64) -> StoreResult<u64> {
        let (namespace, key) = function_key(function);
        self.value(
            "SELECT count(*) FROM (SELECT 1 FROM keys WHERE namespace = ?1 AND function = ?2 LIMIT ?3)",
            (namespace, key, most),
        )
    }

    fn insert_keys(&self, keys: &[StoredKey]) -> StoreResult<()> {
        for StoredKey { function, text, hash, call, expires_at } in keys {
            let (namespace, key) = function_key(function);
            self.execute(
                "INSERT INTO keys (namespace, function, key, hash, call, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                (namespace, key, text, Text(*hash), call.0, expires_at),
            )?;
        }
        Ok(())
    }

    fn forget_keys(&self, now: i64) -> StoreResult<()> {
        self.execute(
            "DELETE FROM keys WHERE expires_at <= ?1
             AND NOT EXISTS (SELECT 1 FROM calls c WHERE c.num = keys.call AND c.ended_at IS NULL)",
            [now],
        )?;
        Ok(())
    }
}
