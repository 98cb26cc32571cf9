//! References to blobs.

use faena_domain::{BlobKey, FunctionId, Version};

use super::rows::Text;
use super::tx::SqliteTx;
use crate::tx::{BlobOwner, BlobRows, StoreResult};

impl BlobRows for SqliteTx<'_> {
    fn refer(&self, owner: &BlobOwner, keys: &[BlobKey]) -> StoreResult<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let owner = owner.to_string();
        for key in keys {
            self.execute("INSERT OR IGNORE INTO blobs (key, owner) VALUES (?1, ?2)", (Text(*key), &owner))?;
        }
        Ok(())
    }

    fn release(&self, owner: &BlobOwner) -> StoreResult<()> {
        self.execute("DELETE FROM blobs WHERE owner = ?1", [owner.to_string()]).map(drop)
    }

    fn release_one(&self, owner: &BlobOwner, key: &BlobKey) -> StoreResult<()> {
        self.execute("DELETE FROM blobs WHERE key = ?1 AND owner = ?2", (Text(*key), owner.to_string())).map(drop)
    }

    fn release_versions(&self, function: &FunctionId) -> StoreResult<()> {
        let first = BlobOwner::Version(function.clone(), Version(0)).to_string();
        let folder = first.trim_end_matches('0');
        // '0' is the character after the slash at its end.
        let end = format!("{}0", folder.trim_end_matches('/'));
        self.execute("DELETE FROM blobs WHERE owner >= ?1 AND owner < ?2", (folder, end)).map(drop)
    }

    fn unused_blobs(&self, keys: &[BlobKey]) -> StoreResult<Vec<BlobKey>> {
        let mut unused = Vec::new();
        for key in keys {
            if !self.exists("SELECT 1 FROM blobs WHERE key = ?1", [Text(*key)])? {
                unused.push(*key);
            }
        }
        Ok(unused)
    }

    fn note_released(&self, key: &BlobKey, at: i64) -> StoreResult<()> {
        self.execute(
            "INSERT INTO released (key, at) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET at = excluded.at",
            (Text(*key), at),
        )?;
        Ok(())
    }

    fn released(&self, limit: u32) -> StoreResult<Vec<BlobKey>> {
        self.all(
            "SELECT key FROM released r WHERE NOT EXISTS (SELECT 1 FROM blobs b WHERE b.key = r.key) ORDER BY at LIMIT ?1",
            [limit],
            |row| Ok(row.get::<_, Text<_>>(0)?.0),
        )
    }

    fn forget_released(&self, keys: &[BlobKey]) -> StoreResult<()> {
        for key in keys {
            self.execute("DELETE FROM released WHERE key = ?1", [Text(*key)])?;
        }
        Ok(())
    }
}
