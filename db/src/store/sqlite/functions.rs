//! Functions and their versions.

use faena_domain::{
    BlobKey, BuildFailure, EngineKind, FunctionId, FunctionName, Limits, Manifest, Namespace, NodeSelector, Revision,
    Timestamp, Version,
};
use faena_protocol::db::VersionPut;
use faena_protocol::records::{RuntimeRecord, VersionRecord};
use rusqlite::Row;

use super::nodes::selector;
use super::rows::{Hex, Json, Text, function_key};
use super::tx::SqliteTx;
use crate::tx::{FunctionHead, FunctionRows, StoreResult, StoredVersion};

const VERSION_COLUMNS: &str = "v.version, r.spec ->> 'name', v.revision, v.source, v.source_bytes, v.manifest, v.limits, \
     v.status, v.engine, v.image_id, v.artifact, v.error, v.log_tail, v.created_at, v.built_at, v.root";

/// A version with its runtime's revision.
const VERSIONS: &str = "versions v JOIN runtime_revisions r
     ON r.namespace = v.namespace AND r.runtime = v.runtime AND r.revision = v.revision";

fn version_record(row: &Row<'_>) -> rusqlite::Result<VersionRecord> {
    let (Json(manifest), Json(limits)): (Json<Manifest>, Json<Limits>) = (row.get(5)?, row.get(6)?);
    let (Text(source), Text(status)) = (row.get(3)?, row.get(7)?);
    Ok(VersionRecord {
        version: Version(row.get(0)?),
        runtime: row.get(1)?,
        revision: Revision(row.get(2)?),
        source,
        source_bytes: row.get(4)?,
        root: row.get(15)?,
        manifest,
        limits,
        status,
        engine: row.get::<_, Option<Text<EngineKind>>>(8)?.map(|text| text.0),
        image_id: row.get(9)?,
        artifact: row.get::<_, Option<Text<BlobKey>>>(10)?.map(|text| text.0),
        error: row.get::<_, Option<Json<_>>>(11)?.map(|json| json.0),
        log_tail: row.get(12)?,
        created_at: Timestamp(row.get(13)?),
        built_at: row.get::<_, Option<i64>>(14)?.map(Timestamp),
    })
}

fn stored_version(row: &Row<'_>) -> rusqlite::Result<StoredVersion> {
    let (Text(status), Json(runtime), Json(manifest), Json(limits)) =
        (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
    Ok(StoredVersion {
        status,
        runtime,
        manifest,
        limits,
        engine: row.get::<_, Option<Text<EngineKind>>>(4)?.map(|text| text.0),
        image_id: row.get(5)?,
        image: row.get::<_, Option<Json<_>>>(6)?.map(|Json(content)| content),
        archive: row.get::<_, Text<_>>(7)?.0,
        root: row.get(8)?,
        nodes: row.get::<_, Option<Json<NodeSelector>>>(9)?.map(|Json(nodes)| nodes),
        created_at: row.get(10)?,
    })
}

impl FunctionRows for SqliteTx<'_> {
    fn function(&self, function: &FunctionId) -> StoreResult<Option<FunctionHead>> {
        self.first(
            "SELECT name, current, created_at FROM functions WHERE namespace = ?1 AND key = ?2",
            function_key(function),
            |row| {
                let Text(name) = row.get(0)?;
                let current = row.get::<_, Option<i64>>(1)?.map(Version);
                Ok(FunctionHead { name, current, created_at: Timestamp(row.get(2)?) })
            },
        )
    }

    fn functions(&self, namespace: &Namespace) -> StoreResult<Vec<FunctionName>> {
        self.all("SELECT name FROM functions WHERE namespace = ?1 ORDER BY key", [namespace.as_str()], |row| {
            Ok(row.get::<_, Text<_>>(0)?.0)
        })
    }

    fn insert_function(&self, function: &FunctionId, secret: &[u8], now: i64) -> StoreResult<()> {
        let (namespace, key) = function_key(function);
        self.execute(
            "INSERT INTO functions (namespace, key, name, secret, created_at) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
            (namespace, key, function.name.as_str(), hex::encode_upper(secret), now),
        )?;
        Ok(())
    }

    fn function_secret(&self, function: &FunctionId) -> StoreResult<Option<Vec<u8>>> {
        self.first("SELECT secret FROM functions WHERE namespace = ?1 AND key = ?2", function_key(function), |row| {
            Ok(row.get::<_, Hex>(0)?.0)
        })
    }

    fn raise_current(&self, function: &FunctionId, version: Version) -> StoreResult<bool> {
        let (namespace, key) = function_key(function);
        let raised = self.execute(
            "UPDATE functions SET current = ?3 WHERE namespace = ?1 AND key = ?2 AND coalesce(current, 0) < ?3",
            (namespace, key, version.0),
        )?;
        Ok(raised > 0)
    }

    fn delete_function(&self, function: &FunctionId) -> StoreResult<()> {
        let key = function_key(function);
        self.execute("DELETE FROM versions WHERE namespace = ?1 AND function = ?2", (key.0, &key.1))?;
        self.execute("DELETE FROM keys WHERE namespace = ?1 AND function = ?2", (key.0, &key.1))?;
        self.execute("DELETE FROM functions WHERE namespace = ?1 AND key = ?2", key).map(drop)
    }

    fn insert_version(&self, request: &VersionPut, runtime: &RuntimeRecord, now: i64) -> StoreResult<Version> {
        let (namespace, key) = (request.namespace.as_str(), request.function.key());
        self.execute(
            "INSERT INTO versions (namespace, function, version, runtime, revision, source, source_bytes, manifest, limits,
                 status, created_at, request, epoch, root, nodes)
             SELECT ?1, ?2, coalesce(max(version), 0) + 1, ?3, ?4, ?5, ?6, ?7, ?8, 'PENDING', ?9, ?10, ?9, ?11, ?12
             FROM versions WHERE namespace = ?1 AND function = ?2",
            (
                namespace,
                &key,
                runtime.spec.name.key(),
                runtime.revision.0,
                Text(request.source),
                request.source_bytes,
                Json(&request.manifest),
                Json(&request.limits),
                now,
                &request.request,
                &request.root,
                selector(&request.nodes),
            ),
        )?;
        self.value("SELECT max(version) FROM versions WHERE namespace = ?1 AND function = ?2", (namespace, key))
            .map(Version)
    }

    fn is_version_request(&self, request: &str) -> StoreResult<bool> {
        self.exists("SELECT 1 FROM versions WHERE request = ?1", [request])
    }

    fn count_unbuilt(&self, function: &FunctionId) -> StoreResult<u64> {
        self.value(
            "SELECT count(*) FROM versions WHERE namespace = ?1 AND function = ?2 AND status IN ('PENDING', 'BUILDING')",
            function_key(function),
        )
    }

    fn versions(&self, function: &FunctionId) -> StoreResult<Vec<VersionRecord>> {
        let sql = format!(
            "SELECT {VERSION_COLUMNS} FROM {VERSIONS} WHERE v.namespace = ?1 AND v.function = ?2 ORDER BY v.version"
        );
        self.all(&sql, function_key(function), version_record)
    }

    fn newest_version(&self, function: &FunctionId) -> StoreResult<Option<VersionRecord>> {
        let sql = format!(
            "SELECT {VERSION_COLUMNS} FROM {VERSIONS} WHERE v.namespace = ?1 AND v.function = ?2
             ORDER BY v.version DESC LIMIT 1"
        );
        self.first(&sql, function_key(function), version_record)
    }

    fn version(&self, function: &FunctionId, version: Version) -> StoreResult<Option<StoredVersion>> {
        let sql = format!(
            "SELECT v.status, r.spec, v.manifest, v.limits, v.engine, v.image_id, v.image, coalesce(v.artifact, v.source),
                 iif(coalesce(v.artifact, v.source) = v.source, v.root, ''), v.nodes, v.created_at
             FROM {VERSIONS} WHERE v.namespace = ?1 AND v.function = ?2 AND v.version = ?3"
        );
        let (namespace, key) = function_key(function);
        self.first(&sql, (namespace, key, version.0), stored_version)
    }

    fn build_failure(&self, function: &FunctionId, version: Version) -> StoreResult<Option<BuildFailure>> {
        let (namespace, key) = function_key(function);
        let failure = self.first(
            "SELECT error FROM versions WHERE namespace = ?1 AND function = ?2 AND version = ?3",
            (namespace, key, version.0),
            |row| row.get::<_, Option<Json<_>>>(0),
        )?;
        Ok(failure.flatten().map(|Json(failure)| failure))
    }

    fn has_public_version(&self, function: &FunctionId) -> StoreResult<bool> {
        self.exists(
            "SELECT 1 FROM versions WHERE namespace = ?1 AND function = ?2 AND manifest ->> 'access' = 'public' LIMIT 1",
            function_key(function),
        )
    }

    fn public_functions(&self, namespace: &Namespace) -> StoreResult<Vec<FunctionName>> {
        self.all(
            "SELECT f.name FROM versions v JOIN functions f
             ON f.namespace = v.namespace AND f.key = v.function AND f.current = v.version
             WHERE v.namespace = ?1 AND v.manifest ->> 'access' = 'public' ORDER BY f.key",
            [namespace.as_str()],
            |row| Ok(row.get::<_, Text<_>>(0)?.0),
        )
    }

    fn versions_with_minimum(&self) -> StoreResult<Vec<(FunctionId, Version)>> {
        self.all(
            "SELECT f.namespace, f.name, f.current FROM versions v JOIN functions f
             ON f.namespace = v.namespace AND f.key = v.function AND f.current = v.version
             WHERE v.manifest ->> 'minimum' > 0",
            [],
            |row| {
                let (Text(namespace), Text(name)) = (row.get(0)?, row.get(1)?);
                Ok((FunctionId { namespace, name }, Version(row.get(2)?)))
            },
        )
    }
}
