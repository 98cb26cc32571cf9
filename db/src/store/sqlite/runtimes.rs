//! Runtimes and their revisions.

use faena_domain::{FunctionName, Namespace, Revision, RuntimeName, RuntimeSpec, Timestamp};
use faena_protocol::records::RuntimeRecord;

use super::rows::{Json, Text};
use super::tx::SqliteTx;
use crate::tx::{RuntimeRows, StoreResult};

impl RuntimeRows for SqliteTx<'_> {
    fn runtime(&self, namespace: &Namespace, name: &RuntimeName) -> StoreResult<Option<RuntimeRecord>> {
        self.first(
            "SELECT v.spec, v.revision, v.created_at FROM runtimes r
             JOIN runtime_revisions v ON v.namespace = r.namespace AND v.runtime = r.key AND v.revision = r.revision
             WHERE r.namespace = ?1 AND r.key = ?2",
            (namespace.as_str(), name.key()),
            |row| {
                let Json(spec) = row.get(0)?;
                Ok(RuntimeRecord { spec, revision: Revision(row.get(1)?), created_at: Timestamp(row.get(2)?) })
            },
        )
    }

    fn runtimes(&self, namespace: &Namespace) -> StoreResult<Vec<RuntimeName>> {
        self.all("SELECT name FROM runtimes WHERE namespace = ?1 ORDER BY key", [namespace.as_str()], |row| {
            Ok(row.get::<_, Text<_>>(0)?.0)
        })
    }

    fn insert_revision(&self, namespace: &Namespace, spec: &RuntimeSpec, now: i64) -> StoreResult<()> {
        let key = spec.name.key();
        let revision: i64 = self.value(
            "SELECT coalesce(max(revision), 0) + 1 FROM runtime_revisions WHERE namespace = ?1 AND runtime = ?2",
            (namespace.as_str(), &key),
        )?;
        self.execute(
            "INSERT INTO runtime_revisions (namespace, runtime, revision, spec, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
            (namespace.as_str(), &key, revision, Json(spec), now),
        )?;
        self.execute(
            "INSERT INTO runtimes (namespace, key, name, revision) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (namespace, key) DO UPDATE SET revision = ?4",
            (namespace.as_str(), &key, spec.name.as_str(), revision),
        )?;
        Ok(())
    }

    fn user_of_runtime(&self, namespace: &Namespace, name: &RuntimeName) -> StoreResult<Option<FunctionName>> {
        self.first(
            "SELECT f.name FROM versions v JOIN functions f ON f.namespace = v.namespace AND f.key = v.function
             WHERE v.namespace = ?1 AND v.runtime = ?2 LIMIT 1",
            (namespace.as_str(), name.key()),
            |row| Ok(row.get::<_, Text<_>>(0)?.0),
        )
    }

    fn delete_runtime(&self, namespace: &Namespace, name: &RuntimeName) -> StoreResult<bool> {
        let deleted =
            self.execute("DELETE FROM runtimes WHERE namespace = ?1 AND key = ?2", (namespace.as_str(), name.key()))?;
        Ok(deleted > 0)
    }

    fn delete_runtimes(&self, namespace: &Namespace) -> StoreResult<()> {
        self.execute("DELETE FROM runtimes WHERE namespace = ?1", [namespace.as_str()])?;
        self.execute("DELETE FROM runtime_revisions WHERE namespace = ?1", [namespace.as_str()]).map(drop)
    }
}
