//! Namespaces and their rules.

use faena_auth::Rule;
use faena_domain::{Namespace, NamespaceShare, NodeSelector, Quota, RuleId, Timestamp};
use faena_protocol::records::{NamespaceRecord, StoredUsage};

use super::nodes::selector;
use super::rows::{Json, Text};
use super::tx::SqliteTx;
use crate::tx::{NamespaceContent, NamespaceRows, RuleRows, StoreResult};

impl NamespaceRows for SqliteTx<'_> {
    fn namespace(&self, name: &Namespace, day: i64) -> StoreResult<Option<NamespaceRecord>> {
        self.first(
            "SELECT name, created_at, allow, quota, weight, (SELECT count(*) FROM functions f WHERE f.namespace = ?1),
                 (SELECT count(*) FROM calls c INDEXED BY calls_leased WHERE c.status = 'RUNNING' AND c.namespace = ?1),
                 (SELECT coalesce(sum(source_bytes), 0) FROM versions v WHERE v.namespace = ?1),
                 (SELECT coalesce(sum(ms), 0) / 60000 FROM build_time b WHERE b.namespace = ?1 AND b.day = ?2), nodes
             FROM namespaces WHERE name = ?1 AND NOT deleted",
            (name.as_str(), day),
            |row| {
                let (Text(name), Json(allow), Json(quota)) = (row.get(0)?, row.get(2)?, row.get(3)?);
                let usage = StoredUsage {
                    functions: row.get(5)?,
                    queued_calls: row.get(6)?,
                    stored_bytes: row.get(7)?,
                    build_minutes_per_day: row.get(8)?,
                };
                let (created_at, weight) = (Timestamp(row.get(1)?), row.get(4)?);
                let nodes: Option<Json<NodeSelector>> = row.get(9)?;
                let node_selector = nodes.map(|Json(nodes)| nodes).unwrap_or_default();
                Ok(NamespaceRecord { name, created_at, allow, quota, weight, node_selector, usage })
            },
        )
    }

    fn quota(&self, name: &Namespace) -> StoreResult<Option<Quota>> {
        self.first("SELECT quota FROM namespaces WHERE name = ?1 AND NOT deleted", [name.as_str()], |row| {
            Ok(row.get::<_, Json<_>>(0)?.0)
        })
    }

    fn share(&self, name: &Namespace) -> StoreResult<Option<(NamespaceShare, Option<NodeSelector>)>> {
        self.first(
            "SELECT weight, quota ->> 'memoryBytes', nodes FROM namespaces WHERE name = ?1",
            [name.as_str()],
            |row| {
                let share = NamespaceShare { weight: row.get(0)?, memory_bytes: row.get(1)? };
                Ok((share, row.get::<_, Option<Json<NodeSelector>>>(2)?.map(|Json(nodes)| nodes)))
            },
        )
    }

    fn namespaces(&self) -> StoreResult<Vec<Namespace>> {
        self.all("SELECT name FROM namespaces WHERE NOT deleted ORDER BY name", [], |row| {
            Ok(row.get::<_, Text<_>>(0)?.0)
        })
    }

    fn insert_namespace(&self, namespace: &NamespaceRecord) -> StoreResult<bool> {
        let NamespaceRecord { name, created_at, allow, quota, weight, node_selector, .. } = namespace;
        let inserted = self.execute(
            "INSERT INTO namespaces (name, created_at, allow, quota, weight, nodes) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO NOTHING",
            (name.as_str(), created_at.0, Json(allow), Json(quota), weight, selector(node_selector)),
        )?;
        Ok(inserted > 0)
    }

    fn update_namespace(&self, namespace: &NamespaceRecord) -> StoreResult<()> {
        let NamespaceRecord { name, allow, quota, weight, node_selector, .. } = namespace;
        self.execute(
            "UPDATE namespaces SET allow = ?2, quota = ?3, weight = ?4, nodes = ?5 WHERE name = ?1",
            (name.as_str(), Json(allow), Json(quota), weight, selector(node_selector)),
        )?;
        Ok(())
    }

    fn first_content(&self, name: &Namespace) -> StoreResult<Option<NamespaceContent>> {
        for (content, table) in [
            (NamespaceContent::Functions, "functions"),
            (NamespaceContent::Runtimes, "runtimes"),
            (NamespaceContent::Calls, "calls"),
            (NamespaceContent::Calls, "completed_batches"),
            (NamespaceContent::Configuration, "config"),
        ] {
            if self.exists(&format!("SELECT 1 FROM {table} WHERE namespace = ?1 LIMIT 1"), [name.as_str()])? {
                return Ok(Some(content));
            }
        }
        Ok(None)
    }

    fn delete_namespace(&self, name: &Namespace) -> StoreResult<()> {
        self.execute("DELETE FROM accounts WHERE namespace = ?1", [name.as_str()])?;
        self.execute("DELETE FROM rules WHERE namespace = ?1", [name.as_str()])?;
        self.execute("UPDATE namespaces SET deleted = 1 WHERE name = ?1", [name.as_str()]).map(drop)
    }
}

impl RuleRows for SqliteTx<'_> {
    fn rules(&self, namespace: &Namespace) -> StoreResult<Vec<Rule>> {
        self.all("SELECT rule FROM rules WHERE namespace = ?1 ORDER BY key", [namespace.as_str()], |row| {
            Ok(row.get::<_, Json<_>>(0)?.0)
        })
    }

    fn put_rule(&self, namespace: &Namespace, rule: &Rule) -> StoreResult<()> {
        self.execute(
            "INSERT INTO rules (namespace, key, rule) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET rule = ?3",
            (namespace.as_str(), rule.id.key(), Json(rule)),
        )?;
        Ok(())
    }

    fn delete_rule(&self, namespace: &Namespace, id: &RuleId) -> StoreResult<bool> {
        Ok(self.execute("DELETE FROM rules WHERE namespace = ?1 AND key = ?2", (namespace.as_str(), id.key()))? > 0)
    }
}
