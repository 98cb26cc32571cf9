//! Functions, their versions, and which one a call runs.

use std::collections::BTreeMap;

use faena_domain::queue::Event;
use faena_domain::{
    Bindings, BlobKey, CallStatus, EngineKind, FunctionId, FunctionName, Limits, Manifest, Namespace, NamespaceShare,
    NodeSelector, Quota, Revision, RuntimeSpec, Serving, Timestamp, Version,
};
use faena_protocol::DbError;
use faena_protocol::db::{
    ChangedFunctions, FunctionChanges, FunctionDelete, FunctionGet, FunctionList, Put, Resource, VersionList,
    VersionPut, VersionResolve, VersionsMinimum,
};
use faena_protocol::records::{BoundConfig, Code, FunctionRecord, NamespaceRecord, ResolvedVersion, VersionRecord};
use rusqlite::{Connection, OptionalExtension, Row};

use super::access::{namespace_quota, note_public};
use super::queue::{TransitionContext, apply};
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, Text, not_found};
use super::{blobs, call_rows, config, internal, namespaces, nodes, runtimes};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    read::<FunctionChanges>(),
    write::<VersionPut>(),
    read::<FunctionGet>(),
    read::<FunctionList>(),
    read::<VersionList>(),
    write::<FunctionDelete>(),
    read::<VersionResolve>(),
    read::<VersionsMinimum>(),
];

/// The most versions whose builds may wait for one function.
const MAX_UNBUILT: i64 = 32;

const VERSION_COLUMNS: &str = "v.version, r.spec ->> 'name', v.revision, v.source, v.source_bytes, v.manifest, v.limits, \
     v.status, v.engine, v.image_id, v.artifact, v.error, v.log_tail, v.created_at, v.built_at, v.root";

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

/// All versions, oldest first, or only the newest.
fn versions(
    connection: &Connection,
    namespace: &Namespace,
    function: &str,
    newest: bool,
) -> rusqlite::Result<Vec<VersionRecord>> {
    let order = if newest { "DESC LIMIT 1" } else { "ASC" };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {VERSION_COLUMNS} FROM versions v JOIN runtime_revisions r
         ON r.namespace = v.namespace AND r.runtime = v.runtime AND r.revision = v.revision
         WHERE v.namespace = ?1 AND v.function = ?2 ORDER BY v.version {order}"
    ))?;
    statement.query_map((namespace.as_str(), function), version_record)?.collect()
}

/// A function as it was named, with the version that calls run.
fn head(
    connection: &Connection,
    namespace: &Namespace,
    name: &FunctionName,
) -> Result<(FunctionName, Option<Version>, Timestamp), DbError> {
    connection
        .prepare_cached("SELECT name, current, created_at FROM functions WHERE namespace = ?1 AND key = ?2")
        .and_then(|mut statement| {
            statement
                .query_row((namespace.as_str(), name.key()), |row| {
                    let Text(name) = row.get(0)?;
                    Ok((name, row.get::<_, Option<i64>>(1)?.map(Version), Timestamp(row.get(2)?)))
                })
                .optional()
        })
        .map_err(|error| internal("reading a function", &error))?
        .ok_or_else(|| not_found(Resource::Function, name))
}

fn find(connection: &Connection, namespace: &Namespace, name: &FunctionName) -> Result<FunctionRecord, DbError> {
    let (name, current, created_at) = head(connection, namespace, name)?;
    let newest = versions(connection, namespace, &name.key(), true)
        .map_err(|error| internal("reading a version", &error))?
        .pop()
        .ok_or_else(|| not_found(Resource::Function, &name))?;
    Ok(FunctionRecord { name, current, newest, created_at })
}

/// Refuses a version where its namespace has as much as it may.
fn check_quota(request: &VersionPut, is_new: bool, connection: &Connection, wall: i64) -> Result<(), DbError> {
    let quota = namespace_quota(connection, &request.namespace)?;
    if quota == Quota::default() {
        return Ok(());
    }
    let NamespaceRecord { usage, name, .. } = namespaces::namespace(connection, &request.namespace, wall)?;
    let over = |message: String| Err(DbError::OverQuota { message: format!("the namespace {name} {message}") });
    let functions = usage.functions;
    let stored = usage.stored_bytes + request.source_bytes;
    if let Some(most) = quota.memory_bytes.filter(|most| request.limits.memory.0 > *most) {
        let bytes = request.limits.memory.0;
        return over(format!(
            "may use {most} bytes of memory, and one instance of this version {bytes} (quota memoryBytes)"
        ));
    }
    if let Some(most) = quota.functions.filter(|most| is_new && functions >= *most) {
        return over(format!("has {functions} functions, and may have {most} (quota functions)"));
    }
    if let Some(most) = quota.stored_bytes.filter(|most| stored > *most) {
        return over(format!("would have archives of {stored} bytes, and may have {most} (quota storedBytes)"));
    }
    check_build_time(connection, &request.namespace, wall)
}

/// Refuses a build where its namespace has built for as long as it may today.
pub(super) fn check_build_time(connection: &Connection, namespace: &Namespace, wall: i64) -> Result<(), DbError> {
    let Some(most) = namespace_quota(connection, namespace)?.build_minutes_per_day else { return Ok(()) };
    let minutes = namespaces::namespace(connection, namespace, wall)?.usage.build_minutes_per_day;
    if minutes < most {
        return Ok(());
    }
    let message = format!(
        "the namespace {namespace} has built for {minutes} minutes today, and may for {most} (quota buildMinutesPerDay)"
    );
    Err(DbError::OverQuota { message })
}

fn insert(request: &VersionPut, connection: &Connection, now: i64) -> Result<(), DbError> {
    let runtime = runtimes::find(connection, &request.namespace, &request.runtime)?;
    let (namespace, key) = (request.namespace.as_str(), request.function.key());
    let write = || -> rusqlite::Result<()> {
        connection.execute(
            "INSERT INTO functions (namespace, key, name, secret, created_at)
             VALUES (?1, ?2, ?3, hex(seal(?1, 'callbacks/' || ?2, ?4)), ?5) ON CONFLICT DO NOTHING",
            (namespace, &key, request.function.as_str(), &request.secret, now),
        )?;
        connection.execute(
            "INSERT INTO versions (namespace, function, version, runtime, revision, source, source_bytes, manifest, limits,
                 status, created_at, request, epoch, root, nodes)
             SELECT ?1, ?2, coalesce(max(version), 0) + 1, ?3, ?4, ?5, ?6, ?7, ?8, 'PENDING', ?9, ?10, ?9, ?11, ?12
             FROM versions WHERE namespace = ?1 AND function = ?2",
            (namespace, &key, runtime.spec.name.key(), runtime.revision.0, Text(request.source), request.source_bytes,
                Json(&request.manifest), Json(&request.limits), now, &request.request, &request.root, nodes::selector(&request.nodes)),
        )?;
        let number: i64 = connection.query_row(
            "SELECT max(version) FROM versions WHERE namespace = ?1 AND function = ?2",
            (namespace, &key),
            |row| row.get(0),
        )?;
        blobs::refer_to(connection, &format!("{}{number}", blobs::of_function(namespace, &key)), &request.source)?;
        Ok(())
    };
    write().map_err(|error| internal("writing a version", &error))
}

fn unbuilt(request: &VersionPut, connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row(
        "SELECT count(*) FROM versions WHERE namespace = ?1 AND function = ?2 AND status IN ('PENDING', 'BUILDING')",
        (request.namespace.as_str(), request.function.key()),
        |row| row.get(0),
    )
}

impl Write for VersionPut {
    fn changed_function(&self) -> Option<FunctionId> {
        Some(FunctionId::new(&self.namespace, &self.function))
    }

    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Self::Reply, DbError> {
        let repeated = connection
            .query_row("SELECT 1 FROM versions WHERE request = ?1", [&self.request], |_| Ok(()))
            .optional()
            .map_err(|error| internal("looking for a request", &error))?
            .is_some();
        let old = match head(connection, &self.namespace, &self.function) {
            Ok((name, ..)) => Some(name),
            Err(DbError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(old) = old.as_ref().filter(|old| old.as_str() != self.function.as_str()) {
            let message = format!("the function {old} exists already; names differ by more than case");
            return Err(DbError::Conflict { message });
        }
        if !repeated {
            if unbuilt(&self, connection).map_err(|error| internal("counting builds", &error))? >= MAX_UNBUILT {
                let message = format!("{MAX_UNBUILT} versions of {} wait for their builds already", self.function);
                return Err(DbError::QueueFull { message });
            }
            context.takes_new_work()?;
            check_quota(&self, old.is_none(), connection, context.wall)?;
            insert(&self, connection, context.now)?;
        }
        let record = find(connection, &self.namespace, &self.function)?;
        let created = record.newest.version == Version(1);
        Ok(Put { record, created })
    }
}

impl Read for FunctionGet {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<FunctionRecord, DbError> {
        find(connection, &self.namespace, &self.name)
    }
}

impl Read for FunctionList {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<FunctionName>, DbError> {
        let names = |connection: &Connection| -> rusqlite::Result<Vec<FunctionName>> {
            let mut statement =
                connection.prepare_cached("SELECT name FROM functions WHERE namespace = ?1 ORDER BY key")?;
            let rows = statement.query_map([self.namespace.as_str()], |row| row.get(0).map(|Text(name)| name))?;
            rows.collect()
        };
        names(connection).map_err(|error| internal("listing functions", &error))
    }
}

impl Read for VersionList {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<VersionRecord>, DbError> {
        let (name, ..) = head(connection, &self.namespace, &self.function)?;
        versions(connection, &self.namespace, &name.key(), false).map_err(|error| internal("listing versions", &error))
    }
}

impl Write for FunctionDelete {
    fn changed_function(&self) -> Option<FunctionId> {
        Some(FunctionId::new(&self.namespace, &self.name))
    }

    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        let key = (self.namespace.as_str(), self.name.key());
        head(connection, &self.namespace, &self.name)?;
        let waiting = "SELECT num FROM calls INDEXED BY calls_waiting WHERE namespace = ?1 AND function = ?2 AND status = 'PENDING'";
        let why = format!("the function {} was deleted before this call ran", self.name);
        for num in call_rows::numbers(connection, waiting, (key.0, &key.1))? {
            apply(connection, num, &Event::Cancel, context, TransitionContext::cancelled(CallStatus::Pending, &why))?;
        }
        let delete = || -> rusqlite::Result<()> {
            note_public(connection, context, &FunctionId::new(&self.namespace, &self.name))?;
            // What runs may end; neither a retry nor a redelivery runs whatever is registered under this name next.
            connection.execute(
                "UPDATE calls SET retries = 0, expires_at = ?3 WHERE namespace = ?1 AND function = ?2 AND status = 'RUNNING'",
                (key.0, &key.1, context.now),
            )?;
            blobs::release_function(connection, key.0, &key.1)?;
            for table in ["versions", "keys"] {
                let sql = format!("DELETE FROM {table} WHERE namespace = ?1 AND function = ?2");
                connection.execute(&sql, (key.0, &key.1))?;
            }
            connection.execute("DELETE FROM functions WHERE namespace = ?1 AND key = ?2", (key.0, &key.1))?;
            Ok(())
        };
        delete().map_err(|error| internal("deleting a function", &error))
    }
}

/// The version that a call accepted now would run: the named one, else the newest READY one, else the newest.
pub(super) fn resolve(
    connection: &Connection,
    namespace: &Namespace,
    function: &FunctionName,
    version: Option<Version>,
) -> Result<ResolvedVersion, DbError> {
    let (name, current, _) = head(connection, namespace, function)?;
    let wanted = match version.or(current) {
        Some(version) => version,
        None => find(connection, namespace, &name)?.newest.version,
    };
    code(connection, namespace, &name, wanted)?
        .ok_or_else(|| not_found(Resource::Version, &format!("{wanted} of {name}")))
}

/// What instances need to know of one version.
pub(super) fn code(
    connection: &Connection,
    namespace: &Namespace,
    name: &FunctionName,
    version: Version,
) -> Result<Option<ResolvedVersion>, DbError> {
    let mut bindings = Bindings::default();
    let resolved = connection
        .prepare_cached(
            "SELECT v.status, r.spec, v.manifest, v.limits, v.engine, v.image_id, coalesce(v.artifact, v.source), v.created_at,
                 iif(coalesce(v.artifact, v.source) = v.source, v.root, ''), v.nodes, v.image
             FROM versions v JOIN runtime_revisions r
             ON r.namespace = v.namespace AND r.runtime = v.runtime AND r.revision = v.revision
             WHERE v.namespace = ?1 AND v.function = ?2 AND v.version = ?3",
        )
        .and_then(|mut statement| {
            statement
                .query_row((namespace.as_str(), name.key(), version.0), |row| {
                    let (Json(spec), Json(manifest)): (Json<RuntimeSpec>, Json<Manifest>) = (row.get(1)?, row.get(2)?);
                    let (Text(status), Json(limits), Text(archive)) = (row.get(0)?, row.get(3)?, row.get(6)?);
                    let concurrency = manifest.limits.concurrency.or(spec.limits.concurrency);
                    let mut env = spec.env;
                    env.extend(manifest.fixed_env());
                    bindings = manifest.bindings();
                    let preload = manifest.serving.preload.or(spec.preload);
                    let code = Code {
                        namespace: namespace.clone(),
                        function: name.clone(),
                        version,
                        engine: row.get::<_, Option<Text<EngineKind>>>(4)?.map(|text| text.0),
                        image: spec.image.to_string(),
                        image_id: row.get(5)?,
                        image_content: row.get::<_, Option<Json<_>>>(10)?.map(|Json(content)| content),
                        path: spec.path,
                        run: spec.run,
                        archive,
                        root: row.get(8)?,
                        env,
                        config: None,
                        limits,
                        network: manifest.network,
                        networks: spec.allow.networks,
                        calls: manifest.identity.calls,
                        scopes: manifest.identity.scopes,
                        concurrency,
                        serving: Serving { preload, ..manifest.serving },
                        nodes: row.get::<_, Option<Json<NodeSelector>>>(9)?.map(|Json(nodes)| nodes).into_iter().collect(),
                        share: NamespaceShare::default(),
                        since: row.get(7)?,
                    };
                    Ok(ResolvedVersion { status, code, retries: manifest.retries })
                })
                .optional()
        })
        .map_err(|error| internal("reading a version", &error))?;
    let Some(mut resolved) = resolved else { return Ok(None) };
    resolved.code.config = config::bound(connection, namespace, &bindings)?;
    let (share, nodes) = share(connection, namespace).map_err(|error| internal("reading a namespace", &error))?;
    resolved.code.share = share;
    resolved.code.nodes.extend(nodes);
    Ok(Some(resolved))
}

/// What the build of a version gets besides the version: its variables, and what it asks for of the configuration.
pub(super) fn build_env(
    connection: &Connection,
    (namespace, function, version): (&Namespace, &FunctionName, Version),
) -> Result<(BTreeMap<String, String>, Option<BoundConfig>), DbError> {
    let Json(manifest): Json<Manifest> = connection
        .prepare_cached("SELECT manifest FROM versions WHERE namespace = ?1 AND function = ?2 AND version = ?3")
        .and_then(|mut statement| {
            statement.query_row((namespace.as_str(), function.key(), version.0), |row| row.get(0))
        })
        .map_err(|error| internal("reading a version", &error))?;
    Ok((manifest.fixed_build_env(), config::bound(connection, namespace, &manifest.build_bindings())?))
}

/// The part of a worker's slots and memory that a namespace may use, and the labels of the nodes that it is bound to.
fn share(connection: &Connection, namespace: &Namespace) -> rusqlite::Result<(NamespaceShare, Option<NodeSelector>)> {
    let found = connection
        .prepare_cached("SELECT weight, quota ->> 'memoryBytes', nodes FROM namespaces WHERE name = ?1")?
        .query_row([namespace.as_str()], |row| {
            let share = NamespaceShare { weight: row.get(0)?, memory_bytes: row.get(1)? };
            Ok((share, row.get::<_, Option<Json<NodeSelector>>>(2)?.map(|Json(nodes)| nodes)))
        })
        .optional()?;
    Ok(found.unwrap_or_default())
}

/// The runtime that a version is bound to.
pub(super) fn runtime_of(
    connection: &Connection,
    namespace: &str,
    function: &str,
    version: i64,
) -> rusqlite::Result<RuntimeSpec> {
    connection
        .prepare_cached(
            "SELECT r.spec FROM versions v JOIN runtime_revisions r
             ON r.namespace = v.namespace AND r.runtime = v.runtime AND r.revision = v.revision
             WHERE v.namespace = ?1 AND v.function = ?2 AND v.version = ?3",
        )?
        .query_row((namespace, function, version), |row| row.get(0).map(|Json(spec)| spec))
}

impl Read for VersionResolve {
    fn read(self, connection: &Connection, context: &RequestContext<'_>) -> Result<ResolvedVersion, DbError> {
        context.takes_new_work()?;
        resolve(connection, &self.namespace, &self.function, self.version)
    }
}

impl Read for VersionsMinimum {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<Code>, DbError> {
        let labels = nodes::labels_of(connection, &self.owner)?;
        let current = |connection: &Connection| -> rusqlite::Result<Vec<(Namespace, FunctionName, Version)>> {
            let mut statement = connection.prepare_cached(
                "SELECT f.namespace, f.name, f.current FROM versions v JOIN functions f
                 ON f.namespace = v.namespace AND f.key = v.function AND f.current = v.version
                 WHERE v.manifest ->> 'minimum' > 0",
            )?;
            let names = |row: &Row<'_>| {
                let (Text(namespace), Text(name)) = (row.get(0)?, row.get(1)?);
                Ok((namespace, name, Version(row.get(2)?)))
            };
            statement.query_map([], names)?.collect()
        };
        let current = current(connection).map_err(|error| internal("listing versions", &error))?;
        let codes = current.into_iter().filter_map(|(namespace, name, version)| {
            let resolved = code(connection, &namespace, &name, version).transpose()?;
            Some(resolved.map(|resolved| resolved.code))
        });
        // A node is told of nothing that it may not run.
        codes.filter(|code| code.as_ref().map_or(true, |code| code.is_permitted_on(&labels))).collect()
    }
}

impl Read for FunctionChanges {
    fn read(self, _connection: &Connection, context: &RequestContext<'_>) -> Result<ChangedFunctions, DbError> {
        Ok(context.changes.since(self.since))
    }
}
