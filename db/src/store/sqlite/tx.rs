//! A transaction of SQLite, as the rules see it. The rows of each resource are in a file beside this one.

use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension, Params, Row};

use crate::tx::{PlatformRows, StoreError, StoreResult, Tx};

/// Under which key of `meta` db time is kept.
pub(super) const CLOCK: &str = "clock";

/// A connection: in a transaction where it writes, and without one where it only reads.
#[derive(Clone, Copy)]
pub(super) struct SqliteTx<'c> {
    pub(super) connection: &'c Connection,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::new(error)
    }
}

impl SqliteTx<'_> {
    /// Runs a statement that changes rows; how many it changed.
    pub(super) fn execute(&self, sql: &str, params: impl Params) -> StoreResult<usize> {
        Ok(self.connection.prepare_cached(sql)?.execute(params)?)
    }

    /// The first row of a query.
    pub(super) fn first<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> StoreResult<Option<T>> {
        Ok(self.connection.prepare_cached(sql)?.query_row(params, read).optional()?)
    }

    /// All rows of a query.
    pub(super) fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> StoreResult<Vec<T>> {
        Ok(self.connection.prepare_cached(sql)?.query_map(params, read)?.collect::<Result<_, _>>()?)
    }

    /// The first column of a query that always finds a row.
    pub(super) fn value<T: FromSql>(&self, sql: &str, params: impl Params) -> StoreResult<T> {
        Ok(self.connection.prepare_cached(sql)?.query_row(params, |row| row.get(0))?)
    }

    /// Whether a query finds any row.
    pub(super) fn exists(&self, sql: &str, params: impl Params) -> StoreResult<bool> {
        Ok(self.connection.prepare_cached(sql)?.exists(params)?)
    }

    /// Adds one to a number of `meta`.
    pub(super) fn count_up(&self, key: &str) -> StoreResult<()> {
        self.execute(
            "INSERT INTO meta (key, value) VALUES (?1, 1) ON CONFLICT (key) DO UPDATE SET value = value + 1",
            [key],
        )?;
        Ok(())
    }
}

impl Tx for SqliteTx<'_> {}

impl PlatformRows for SqliteTx<'_> {
    fn ping(&self) -> StoreResult<()> {
        self.value::<i64>("SELECT 1", []).map(drop)
    }

    fn keep_clock(&self, now: i64) -> StoreResult<()> {
        self.execute(
            "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
            (CLOCK, now),
        )?;
        Ok(())
    }

    fn is_locked(&self) -> StoreResult<bool> {
        self.value("SELECT locked FROM access", [])
    }

    fn lock_platform(&self) -> StoreResult<()> {
        self.execute("UPDATE access SET locked = 1, setup = NULL", []).map(drop)
    }

    fn setup_token(&self) -> StoreResult<Option<String>> {
        Ok(self.first("SELECT setup FROM access WHERE NOT locked", [], |row| row.get(0))?.flatten())
    }

    fn put_setup_token(&self, hash: &str) -> StoreResult<()> {
        self.execute("UPDATE access SET setup = ?1 WHERE NOT locked", [hash]).map(drop)
    }
}
