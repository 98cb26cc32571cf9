//! The queues of functions. Triggers keep their counts when a call changes; `add_waiting` counts calls that were inserted.

use faena_domain::{CallNum, FunctionId, Namespace, Version};
use rusqlite::{OptionalExtension, Row};

use super::nodes::permits;
use super::rows::{Json, Text, function_key};
use super::tx::SqliteTx;
use crate::tx::{Candidate, Offer, QueueRows, StoreResult, Waiting, WaitingNamespace, WaitingQueue};

/// A condition on a call `c`: its version permits the node whose labels are `?5`. Every query of a claim names the labels, so
/// that all of them have the same parameters.
fn permitted(offer: &Offer) -> String {
    if !offer.are_any_bound {
        return "?5 IS NOT NULL".to_owned();
    }
    format!(
        "EXISTS (SELECT 1 FROM versions v WHERE v.namespace = c.namespace AND v.function = c.function
         AND v.version = c.version AND {})",
        permits("v.nodes", "?5")
    )
}

/// A condition on a call `c`: it is due and this worker can run it. Parameters: db time, the engines, the labels.
fn claimable(offer: &Offer) -> String {
    format!(
        "c.status = 'PENDING' AND c.due = 1 AND c.expires_at > ?3 AND c.engine IN (SELECT value FROM json_each(?4)) AND {}",
        permitted(offer)
    )
}

impl QueueRows for SqliteTx<'_> {
    fn waiting_in(&self, functions: &[FunctionId]) -> StoreResult<Vec<Waiting>> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT pending, bytes FROM function_queues WHERE namespace = ?1 AND function = ?2")?;
        let waiting = |row: &Row<'_>| Ok(Waiting { calls: row.get(0)?, bytes: row.get(1)?, due: 0 });
        let read = |function| Ok(statement.query_row(function_key(function), waiting).optional()?.unwrap_or_default());
        functions.iter().map(read).collect()
    }

    fn waiting_everywhere(&self) -> StoreResult<Waiting> {
        let waiting = self.first("SELECT pending, bytes FROM totals", [], |row| {
            Ok(Waiting { calls: row.get(0)?, bytes: row.get(1)?, due: 0 })
        })?;
        Ok(waiting.unwrap_or_default())
    }

    fn add_waiting(&self, added: &[(FunctionId, Waiting)]) -> StoreResult<()> {
        for (function, Waiting { calls, bytes, due }) in added {
            let (namespace, key) = function_key(function);
            self.execute(
                "INSERT INTO function_queues (namespace, function, pending, bytes, due) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (namespace, function) DO UPDATE
                     SET pending = pending + excluded.pending, bytes = bytes + excluded.bytes, due = due + excluded.due",
                (namespace, key, calls, bytes, due),
            )?;
            self.execute("UPDATE totals SET pending = pending + ?1, bytes = bytes + ?2", (calls, bytes))?;
        }
        Ok(())
    }

    fn set_concurrency(&self, function: &FunctionId, concurrency: Option<u32>) -> StoreResult<()> {
        let (namespace, key) = function_key(function);
        self.execute(
            "INSERT INTO function_queues (namespace, function, concurrency) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET concurrency = excluded.concurrency",
            (namespace, key, concurrency),
        )?;
        Ok(())
    }

    fn waiting_namespaces(&self, offer: &Offer) -> StoreResult<Vec<WaitingNamespace>> {
        // From one name to the next by the index: as many steps as namespaces, however many functions they have.
        let sql = format!(
            "WITH RECURSIVE waiting (name) AS (
                 SELECT min(namespace) FROM function_queues WHERE due > 0
                 UNION ALL
                 SELECT (SELECT min(namespace) FROM function_queues WHERE due > 0 AND namespace > waiting.name) FROM waiting
                 WHERE waiting.name IS NOT NULL
             )
             SELECT w.name, coalesce(n.weight, 1),
                 iif(n.quota ->> 'concurrentCalls' IS NULL, NULL, n.quota ->> 'concurrentCalls'
                     - (SELECT count(*) FROM calls c INDEXED BY calls_leased WHERE c.status = 'RUNNING' AND c.namespace = w.name))
             FROM waiting w LEFT JOIN namespaces n ON n.name = w.name WHERE w.name IS NOT NULL AND {}",
            permits("n.nodes", "?1")
        );
        self.all(&sql, [Json(&offer.labels)], |row| {
            let room: Option<i64> = row.get(2)?;
            Ok(WaitingNamespace {
                name: row.get::<_, Text<_>>(0)?.0,
                weight: row.get(1)?,
                room: room.map(|room| u32::try_from(room).unwrap_or(0)),
            })
        })
    }

    fn waiting_queues(&self, namespace: &Namespace, offer: &Offer, limit: u32) -> StoreResult<Vec<WaitingQueue>> {
        let sql = format!(
            "SELECT function, min(coalesce(concurrency - running, ?2), ?2) FROM function_queues l
             WHERE namespace = ?1 AND due > 0 AND (concurrency IS NULL OR running < concurrency)
             AND EXISTS (SELECT 1 FROM calls c WHERE c.namespace = l.namespace AND c.function = l.function AND {})
             ORDER BY turn LIMIT ?2",
            claimable(offer)
        );
        let params = (namespace.as_str(), limit, offer.now, Json(&offer.engines), Json(&offer.labels));
        self.all(&sql, params, |row| {
            let function = FunctionId { namespace: namespace.clone(), name: row.get::<_, Text<_>>(0)?.0 };
            Ok(WaitingQueue { function, room: row.get(1)? })
        })
    }

    fn candidates_for_update(&self, function: &FunctionId, offer: &Offer, limit: u32) -> StoreResult<Vec<Candidate>> {
        let sql = format!(
            "SELECT num, version, length(spec) FROM calls c WHERE namespace = ?1 AND function = ?2 AND {}
             ORDER BY priority DESC, num LIMIT ?6",
            claimable(offer)
        );
        let (namespace, key) = function_key(function);
        self.all(&sql, (namespace, key, offer.now, Json(&offer.engines), Json(&offer.labels), limit), |row| {
            Ok(Candidate { num: CallNum(row.get(0)?), version: Version(row.get(1)?), bytes: row.get(2)? })
        })
    }

    fn end_turn(&self, function: &FunctionId) -> StoreResult<()> {
        self.execute("UPDATE totals SET turn = turn + 1", [])?;
        self.execute(
            "UPDATE function_queues SET turn = (SELECT turn FROM totals) WHERE namespace = ?1 AND function = ?2",
            function_key(function),
        )?;
        Ok(())
    }
}
