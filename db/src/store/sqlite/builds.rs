//! Builds: columns of the versions that they make.

use faena_domain::build_queue::BuildEntry;
use faena_domain::lease::Lease;
use faena_domain::{BuildFailure, EngineKind, Epoch, FunctionId, Labels, Namespace, Owner, Payload, Version};
use faena_protocol::records::{BuildRecord, BuildRef, ImageContent};
use rusqlite::Row;

use super::nodes::permits;
use super::rows::{Json, Text, function_key, owner};
use super::tx::SqliteTx;
use crate::tx::{BuildEnd, BuildRows, StoreResult};

fn key(build: &BuildRef) -> (&str, String, i64) {
    (build.namespace.as_str(), build.function.key(), build.version.0)
}

/// Namespace, function and version as the first columns of a row.
fn reference(row: &Row<'_>) -> rusqlite::Result<BuildRef> {
    let (Text(namespace), Text(function)) = (row.get(0)?, row.get(1)?);
    Ok(BuildRef { namespace, function, version: Version(row.get(2)?) })
}

impl BuildRows for SqliteTx<'_> {
    fn newest_build(&self, function: &FunctionId) -> StoreResult<Option<BuildRecord>> {
        self.first(
            "SELECT version, status, error, log FROM versions WHERE namespace = ?1 AND function = ?2
             ORDER BY version DESC LIMIT 1",
            function_key(function),
            |row| {
                let Text(status) = row.get(1)?;
                let log = row.get::<_, Option<Json<Payload>>>(3)?.map_or_else(Payload::empty, |json| json.0);
                let error = row.get::<_, Option<Json<_>>>(2)?.map(|json| json.0);
                Ok(BuildRecord { version: Version(row.get(0)?), status, error, log })
            },
        )
    }

    fn build_for_update(&self, build: &BuildRef) -> StoreResult<Option<BuildEntry>> {
        self.first(
            "SELECT status, epoch, worker, incarnation, lease_end, redeliveries FROM versions
             WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            key(build),
            |row| {
                let Text(status) = row.get(0)?;
                let end = row.get::<_, Option<i64>>(4)?.unwrap_or(0);
                let lease = Lease { epoch: Epoch(row.get(1)?), owner: owner(row, 2)?, end };
                Ok(BuildEntry { status, lease, redeliveries: row.get(5)? })
            },
        )
    }

    fn save_build(&self, build: &BuildRef, entry: &BuildEntry) -> StoreResult<()> {
        let (namespace, function, version) = key(build);
        let owner = entry.lease.owner.as_ref();
        self.execute(
            "UPDATE versions SET status = ?4, epoch = ?5, worker = ?6, incarnation = ?7, lease_end = ?8, redeliveries = ?9
             WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            (
                namespace,
                function,
                version,
                entry.status.as_str(),
                entry.lease.epoch.0,
                owner.map(|owner| &owner.worker),
                owner.map(|owner| &owner.incarnation),
                entry.lease.end,
                entry.redeliveries,
            ),
        )?;
        Ok(())
    }

    fn clear_build(&self, build: &BuildRef) -> StoreResult<()> {
        self.execute(
            "UPDATE versions SET error = NULL, log = NULL, log_tail = ''
             WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            key(build),
        )?;
        Ok(())
    }

    fn begin_build(&self, build: &BuildRef, claim: &str, at: i64) -> StoreResult<()> {
        let (namespace, function, version) = key(build);
        self.execute(
            "UPDATE versions SET claim = ?4, building_since = ?5 WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            (namespace, function, version, claim, at),
        )?;
        Ok(())
    }

    fn building_since(&self, build: &BuildRef) -> StoreResult<Option<i64>> {
        let since = self.first(
            "SELECT building_since FROM versions WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            key(build),
            |row| row.get(0),
        )?;
        Ok(since.flatten())
    }

    fn add_build_time(&self, namespace: &Namespace, day: i64, millis: i64) -> StoreResult<()> {
        self.execute(
            "INSERT INTO build_time (namespace, day, ms) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET ms = ms + excluded.ms",
            (namespace.as_str(), day, millis),
        )?;
        self.execute("DELETE FROM build_time WHERE day < ?1", [day]).map(drop)
    }

    fn pending_builds(&self, engines: &[EngineKind], labels: &Labels, limit: u32) -> StoreResult<Vec<BuildRef>> {
        let (of_version, of_namespace) = (permits("v.nodes", "?3"), permits("n.nodes", "?3"));
        let sql = format!(
            "SELECT v.namespace, v.function, v.version FROM versions v JOIN runtime_revisions r
             ON r.namespace = v.namespace AND r.runtime = v.runtime AND r.revision = v.revision
             LEFT JOIN namespaces n ON n.name = v.namespace
             WHERE v.status = 'PENDING' AND coalesce(r.spec ->> 'engine' IN (SELECT value FROM json_each(?1)), 1)
             AND {of_version} AND {of_namespace}
             ORDER BY row_number() OVER (PARTITION BY v.namespace ORDER BY v.created_at), v.created_at LIMIT ?2",
        );
        self.all(&sql, (Json(engines), limit, Json(labels)), reference)
    }

    fn claimed_builds(&self, claim: &str) -> StoreResult<Vec<(BuildRef, Epoch)>> {
        self.all(
            "SELECT v.namespace, f.name, v.version, v.epoch FROM versions v
             JOIN functions f ON f.namespace = v.namespace AND f.key = v.function
             WHERE v.claim = ?1 AND v.status = 'BUILDING' ORDER BY v.created_at",
            [claim],
            |row| Ok((reference(row)?, Epoch(row.get(3)?))),
        )
    }

    fn builds_of_earlier_runs(&self, owner: &Owner) -> StoreResult<Vec<BuildRef>> {
        self.all(
            "SELECT namespace, function, version FROM versions
             WHERE status = 'BUILDING' AND worker = ?1 AND incarnation <> ?2",
            (&owner.worker, &owner.incarnation),
            reference,
        )
    }

    fn builds_with_ended_leases(&self, before: i64) -> StoreResult<Vec<BuildRef>> {
        self.all(
            "SELECT namespace, function, version FROM versions WHERE status = 'BUILDING' AND lease_end < ?1",
            [before],
            reference,
        )
    }

    fn end_build(&self, build: &BuildRef, BuildEnd { outcome, log_tail, at }: BuildEnd<'_>) -> StoreResult<()> {
        let (namespace, function, version) = key(build);
        let (artifact, failure) = match &outcome.result {
            Ok(artifact) => (Some(Text(*artifact)), None),
            Err(failure) => (None, Some(Json(failure))),
        };
        let (engine, log) = (outcome.engine.map(Text), Json(&outcome.log));
        self.execute(
            "UPDATE versions SET engine = ?4, image_id = ?5, artifact = ?6, error = ?7, log = ?8, log_tail = ?9, built_at = ?10
             WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            (namespace, function, version, engine, &outcome.image_id, artifact, failure, log, log_tail, at),
        )?;
        Ok(())
    }

    fn fail_build(&self, build: &BuildRef, failure: &BuildFailure, at: i64) -> StoreResult<()> {
        let (namespace, function, version) = key(build);
        self.execute(
            "UPDATE versions SET error = ?4, built_at = ?5 WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            (namespace, function, version, Json(failure), at),
        )?;
        Ok(())
    }

    fn bound_image(&self, build: &BuildRef) -> StoreResult<Option<ImageContent>> {
        let bound = self.first(
            "SELECT image FROM versions WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            key(build),
            |row| row.get::<_, Option<Json<_>>>(0),
        )?;
        Ok(bound.flatten().map(|Json(content)| content))
    }

    fn bind_image(&self, build: &BuildRef, content: Option<&ImageContent>) -> StoreResult<()> {
        let (namespace, function, version) = key(build);
        self.execute(
            "UPDATE versions SET image = ?4 WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            (namespace, function, version, content.map(Json)),
        )?;
        Ok(())
    }
}
