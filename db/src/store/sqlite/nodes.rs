//! Nodes, and the tokens that they join by.

use faena_domain::{Fingerprint, Labels, NodeName, NodeSelector, Owner, Timestamp};
use faena_protocol::db::NodeJoin;
use faena_protocol::records::{NodeCertificate, NodeRecord, NodeTokenRecord};
use rusqlite::Row;

use super::rows::{Json, Text};
use super::tx::SqliteTx;
use crate::tx::{NodeRows, StoreResult, StoredNodeToken};

/// Under which key of `meta` the changes are counted.
const CHANGES: &str = "nodes";

const NODE: &str = "name, labels, cordoned, cordon_reason, draining, stopped, fingerprint, previous, certificate_ends_at, joined_at, seen_at, incarnation";

fn record(row: &Row<'_>) -> rusqlite::Result<NodeRecord> {
    let (fingerprint, previous): (Option<Text<_>>, Option<Text<_>>) = (row.get(6)?, row.get(7)?);
    let ends_at: Option<i64> = row.get(8)?;
    let certificate = fingerprint.zip(ends_at).map(|(Text(fingerprint), ends_at)| NodeCertificate {
        fingerprint,
        previous: previous.map(|Text(previous)| previous),
        ends_at: Timestamp(ends_at),
    });
    Ok(NodeRecord {
        name: row.get::<_, Text<_>>(0)?.0,
        labels: row.get::<_, Json<_>>(1)?.0,
        is_cordoned: row.get(2)?,
        cordon_reason: row.get(3)?,
        is_draining: row.get(4)?,
        is_stopped: row.get(5)?,
        incarnation: row.get(11)?,
        certificate,
        joined_at: Timestamp(row.get(9)?),
        seen_at: Timestamp(row.get(10)?),
    })
}

/// A selector as its column has it: NULL permits every node.
pub(super) fn selector(selector: &NodeSelector) -> Option<Json<&NodeSelector>> {
    (!selector.is_empty()).then_some(Json(selector))
}

/// A condition of SQL: a node whose labels are this parameter is permitted by the selector in this column.
pub(super) fn permits(column: &str, labels: &str) -> String {
    format!(
        "({column} IS NULL OR NOT EXISTS (SELECT 1 FROM json_each({column}) asked
             LEFT JOIN json_each({labels}) had ON had.key = asked.key WHERE had.value IS NOT asked.value))"
    )
}

impl NodeRows for SqliteTx<'_> {
    fn node(&self, name: &NodeName) -> StoreResult<Option<NodeRecord>> {
        self.first(&format!("SELECT {NODE} FROM nodes WHERE key = ?1"), [name.key()], record)
    }

    fn nodes(&self) -> StoreResult<Vec<NodeRecord>> {
        self.all(&format!("SELECT {NODE} FROM nodes ORDER BY key"), [], record)
    }

    fn count_nodes(&self) -> StoreResult<u64> {
        self.value("SELECT count(*) FROM nodes", [])
    }

    fn node_changes(&self) -> StoreResult<u64> {
        Ok(self.first("SELECT value FROM meta WHERE key = ?1", [CHANGES], |row| row.get(0))?.unwrap_or(0))
    }

    fn count_node_change(&self) -> StoreResult<()> {
        self.count_up(CHANGES)
    }

    fn insert_node(&self, join: &NodeJoin, labels: &Labels, now: i64) -> StoreResult<bool> {
        let NodeJoin { name, fingerprint, ends_at, .. } = join;
        let inserted = self.execute(
            "INSERT INTO nodes (key, name, labels, fingerprint, certificate_ends_at, joined_at, seen_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6) ON CONFLICT DO NOTHING",
            (name.key(), name.as_str(), Json(labels), fingerprint.to_string(), ends_at.0, now),
        )?;
        Ok(inserted > 0)
    }

    fn rejoin_node(&self, join: &NodeJoin, labels: &Labels, now: i64) -> StoreResult<bool> {
        let NodeJoin { name, fingerprint, ends_at, .. } = join;
        let updated = self.execute(
            "UPDATE nodes SET name = ?2, labels = ?3, fingerprint = ?4, certificate_ends_at = ?5, joined_at = ?6
             WHERE key = ?1 AND incarnation = ''",
            (name.key(), name.as_str(), Json(labels), fingerprint.to_string(), ends_at.0, now),
        )?;
        Ok(updated > 0)
    }

    fn renew_certificate(
        &self,
        name: &NodeName,
        from: &Fingerprint,
        to: &Fingerprint,
        ends_at: i64,
    ) -> StoreResult<bool> {
        let renewed = self.execute(
            "UPDATE nodes SET fingerprint = ?3, previous = ?2, certificate_ends_at = ?4
             WHERE key = ?1 AND (fingerprint IN (?2, ?3) OR previous = ?2)",
            (name.key(), from.to_string(), to.to_string(), ends_at),
        )?;
        Ok(renewed > 0)
    }

    fn update_node(&self, node: &NodeRecord) -> StoreResult<()> {
        self.execute(
            "UPDATE nodes SET cordoned = ?2, cordon_reason = ?3, draining = ?4, labels = ?5 WHERE key = ?1",
            (node.name.key(), node.is_cordoned, &node.cordon_reason, node.is_draining, Json(&node.labels)),
        )?;
        Ok(())
    }

    fn delete_node(&self, name: &NodeName) -> StoreResult<bool> {
        Ok(self.execute("DELETE FROM nodes WHERE key = ?1", [name.key()])? > 0)
    }

    fn see_nodes(&self, names: &[NodeName], at: i64) -> StoreResult<()> {
        for name in names {
            self.execute("UPDATE nodes SET seen_at = ?2 WHERE key = ?1", (name.key(), at))?;
        }
        Ok(())
    }

    fn has_node(&self, worker: &str) -> StoreResult<bool> {
        self.exists("SELECT 1 FROM nodes WHERE key = ?1", [worker.to_ascii_lowercase()])
    }

    fn begin_run(&self, owner: &Owner, now: i64) -> StoreResult<()> {
        self.execute(
            "INSERT INTO nodes (key, name, labels, incarnation, joined_at, seen_at) VALUES (?1, ?2, '{}', ?3, ?4, ?4)
             ON CONFLICT DO UPDATE SET incarnation = ?3, stopped = 0, draining = 0, seen_at = ?4",
            (owner.worker.to_ascii_lowercase(), &owner.worker, &owner.incarnation, now),
        )?;
        Ok(())
    }

    fn stop_run(&self, owner: &Owner, now: i64) -> StoreResult<bool> {
        let stopped = self.execute(
            "UPDATE nodes SET stopped = 1, seen_at = ?3 WHERE key = ?1 AND incarnation = ?2",
            (owner.worker.to_ascii_lowercase(), &owner.incarnation, now),
        )?;
        Ok(stopped > 0)
    }

    fn labels_of(&self, worker: &str) -> StoreResult<Labels> {
        let found = self.first("SELECT labels FROM nodes WHERE key = ?1", [worker.to_ascii_lowercase()], |row| {
            Ok(row.get::<_, Json<Labels>>(0)?.0)
        })?;
        Ok(found.unwrap_or_default())
    }

    fn are_any_bound_to_nodes(&self) -> StoreResult<bool> {
        self.value(
            "SELECT EXISTS (SELECT 1 FROM versions WHERE nodes IS NOT NULL)
                 OR EXISTS (SELECT 1 FROM namespaces WHERE nodes IS NOT NULL AND NOT deleted)",
            [],
        )
    }

    fn node_token(&self, id: &str) -> StoreResult<Option<StoredNodeToken>> {
        self.first(
            "SELECT secret, labels, expires_at, spent_by, spent_for FROM node_tokens WHERE id = ?1",
            [id],
            |row| {
                let (by, of): (Option<String>, Option<String>) = (row.get(3)?, row.get(4)?);
                let token = NodeTokenRecord {
                    id: id.to_owned(),
                    secret_sha256: row.get(0)?,
                    labels: row.get::<_, Json<_>>(1)?.0,
                    expires_at: Timestamp(row.get(2)?),
                };
                Ok(StoredNodeToken { token, spent: by.zip(of) })
            },
        )
    }

    fn count_waiting_node_tokens(&self, now: i64, without: &str) -> StoreResult<u64> {
        self.value(
            "SELECT count(*) FROM node_tokens WHERE spent_by IS NULL AND expires_at > ?1 AND id <> ?2",
            (now, without),
        )
    }

    fn insert_node_token(&self, token: &NodeTokenRecord) -> StoreResult<()> {
        self.execute(
            "INSERT INTO node_tokens (id, secret, labels, expires_at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
            (&token.id, &token.secret_sha256, Json(&token.labels), token.expires_at.0),
        )?;
        Ok(())
    }

    fn spend_node_token(&self, join: &NodeJoin) -> StoreResult<()> {
        self.execute(
            "UPDATE node_tokens SET spent_by = ?2, spent_for = ?3 WHERE id = ?1",
            (&join.token, join.key.to_string(), join.name.key()),
        )?;
        Ok(())
    }

    fn delete_node_tokens_of(&self, name: &NodeName) -> StoreResult<()> {
        self.execute("DELETE FROM node_tokens WHERE spent_for = ?1", [name.key()]).map(drop)
    }

    fn forget_node_tokens(&self, before: i64) -> StoreResult<()> {
        self.execute("DELETE FROM node_tokens WHERE expires_at < ?1", [before]).map(drop)
    }
}
