//! Ended calls, which are kept for a while.

use faena_domain::{CallNum, FunctionId, Payload};
use rusqlite::Row;

use super::rows::{Json, Text, function_key};
use super::tx::SqliteTx;
use crate::tx::{KeptCalls, KeptLog, RetentionRows, StoreResult};

/// A call that is no dead letter.
const NO_LETTER: &str = "NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.num = c.num)";
/// A call that no idempotency key stands for, and whose callback does not wait.
const UNNEEDED: &str = "NOT EXISTS (SELECT 1 FROM keys k WHERE k.call = c.num)
     AND NOT EXISTS (SELECT 1 FROM callbacks b WHERE b.num = c.num AND b.status = 'WAITING')";

fn number(row: &Row<'_>) -> rusqlite::Result<CallNum> {
    row.get(0).map(CallNum)
}

impl RetentionRows for SqliteTx<'_> {
    fn calls_ended_before(&self, before: i64, letters_before: i64, limit: u32) -> StoreResult<Vec<CallNum>> {
        let sql = format!(
            "SELECT num FROM calls c WHERE ended_at < ?1 AND (ended_at < ?2 OR {NO_LETTER}) AND {UNNEEDED}
             ORDER BY ended_at LIMIT ?3"
        );
        self.all(&sql, (before, letters_before, limit), number)
    }

    fn done_calls_ended_before(&self, before: i64, limit: u32) -> StoreResult<Vec<CallNum>> {
        let sql = format!(
            "SELECT num FROM calls c WHERE ended_at < ?1 AND {NO_LETTER} AND {UNNEEDED} ORDER BY ended_at LIMIT ?2"
        );
        self.all(&sql, (before, limit), number)
    }

    fn count_ended(&self) -> StoreResult<u64> {
        self.value("SELECT ended FROM totals", [])
    }

    fn end_of_oldest(&self, count: u64, limit: u32) -> StoreResult<Option<i64>> {
        if count == 0 {
            return Ok(None);
        }
        let sql = format!(
            "SELECT max(ended_at) FROM (SELECT ended_at, sum(calls) OVER (ORDER BY ended_at ROWS UNBOUNDED PRECEDING) AS so_far FROM (
                 SELECT * FROM (SELECT ended_at, calls FROM completed_batches ORDER BY ended_at LIMIT ?2)
                 UNION ALL
                 SELECT * FROM (SELECT ended_at, 1 AS calls FROM calls c WHERE ended_at IS NOT NULL AND {NO_LETTER} AND {UNNEEDED}
                     ORDER BY ended_at LIMIT ?2)
                 ORDER BY ended_at LIMIT ?2)) WHERE so_far <= ?1"
        );
        self.value(&sql, (i64::try_from(count).unwrap_or(i64::MAX), limit))
    }

    fn delete_calls(&self, calls: &[CallNum]) -> StoreResult<()> {
        for num in calls {
            self.execute(
                "DELETE FROM blobs WHERE owner = (SELECT 'call/' || namespace || '/' || num FROM calls WHERE num = ?1)",
                [num.0],
            )?;
            self.execute("DELETE FROM calls WHERE num = ?1", [num.0])?;
        }
        Ok(())
    }

    fn delete_batches_ended_before(&self, before: i64, most: u32) -> StoreResult<u64> {
        let calls = self.all(
            "DELETE FROM completed_batches WHERE first IN
             (SELECT first FROM completed_batches WHERE ended_at < ?1 ORDER BY ended_at LIMIT ?2) RETURNING calls",
            (before, most),
            |row| row.get::<_, u64>(0),
        )?;
        Ok(calls.into_iter().sum())
    }

    fn delete_batches(&self, firsts: &[CallNum]) -> StoreResult<()> {
        for first in firsts {
            self.execute("DELETE FROM completed_batches WHERE first = ?1", [first.0])?;
        }
        Ok(())
    }

    fn kept_bytes(&self) -> StoreResult<u64> {
        self.value("SELECT coalesce(sum(bytes), 0) FROM kept", [])
    }

    fn heaviest_functions(&self, above: u64, limit: u32) -> StoreResult<Vec<(FunctionId, u64)>> {
        self.all(
            "SELECT namespace, function, bytes FROM kept WHERE bytes > ?1 ORDER BY bytes DESC LIMIT ?2",
            (above, limit),
            |row| {
                let (Text(namespace), Text(name)) = (row.get(0)?, row.get(1)?);
                Ok((FunctionId { namespace, name }, row.get(2)?))
            },
        )
    }

    fn oldest_logs(&self, function: &FunctionId, at_least: u64, limit: u32) -> StoreResult<Vec<KeptLog>> {
        let (namespace, key) = function_key(function);
        self.all(
            "SELECT num, result, logs FROM calls INDEXED BY calls_kept WHERE namespace = ?1 AND function = ?2 AND kept_bytes > 0
             AND log_bytes >= ?4 ORDER BY num LIMIT ?3",
            (namespace, key, limit, at_least),
            |row| {
                let (Json(result), Json(log)) = (row.get(1)?, row.get(2)?);
                Ok(KeptLog { num: number(row)?, result, log })
            },
        )
    }

    fn replace_log(&self, num: CallNum, remark: &Payload, kept_bytes: u64) -> StoreResult<()> {
        self.execute(
            "UPDATE calls SET logs = ?2, kept_bytes = ?3, log_bytes = 0 WHERE num = ?1",
            (num.0, Json(remark), kept_bytes),
        )?;
        Ok(())
    }

    fn oldest_calls(&self, function: &FunctionId, limit: u32) -> StoreResult<Vec<KeptCalls>> {
        let sql = format!(
            "SELECT num, kept_bytes, 1, 0 FROM (SELECT num, kept_bytes FROM calls c INDEXED BY calls_kept
                 WHERE namespace = ?1 AND function = ?2 AND kept_bytes > 0 AND {NO_LETTER} AND {UNNEEDED} ORDER BY num LIMIT ?3)
             UNION ALL
             SELECT first, length(records), calls, 1 FROM (SELECT first, records, calls FROM completed_batches INDEXED BY completed_of_function
                 WHERE namespace = ?1 AND function = ?2 ORDER BY span LIMIT ?3)
             ORDER BY 1"
        );
        let (namespace, key) = function_key(function);
        self.all(&sql, (namespace, key, limit), |row| {
            Ok(KeptCalls { num: number(row)?, bytes: row.get(1)?, calls: row.get(2)?, is_batch: row.get(3)? })
        })
    }
}
