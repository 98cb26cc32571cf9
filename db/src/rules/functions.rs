//! Functions, their versions, and which one a call runs.

use std::collections::BTreeMap;

use faena_domain::queue::Event;
use faena_domain::{CallStatus, FunctionId, FunctionName, Manifest, Namespace, Serving, Version};
use faena_protocol::DbError;
use faena_protocol::db::{
    ChangedFunctions, FunctionChanges, FunctionDelete, FunctionGet, FunctionList, Put, Resource, VersionList,
    VersionPut, VersionResolve, VersionsMinimum,
};
use faena_protocol::records::{BoundConfig, Code, FunctionRecord, ResolvedVersion, VersionRecord};

use super::transitions::{Cause, apply_same};
use super::{Read, Request, RequestContext, RuleResult, Write, conflict, not_found, read, refuse, write};
use super::{config, quotas, runtimes, secrets};
use crate::tx::{BlobOwner, CallSelection, FunctionHead, SecretPlace, StoreResult, StoredVersion, Tx};

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
const MAX_UNBUILT: u64 = 32;

fn head(tx: &dyn Tx, function: &FunctionId) -> RuleResult<FunctionHead> {
    Ok(tx.function(function)?.ok_or_else(|| not_found(Resource::Function, &function.name))?)
}

fn find(tx: &dyn Tx, function: &FunctionId) -> RuleResult<FunctionRecord> {
    let FunctionHead { name, current, created_at } = head(tx, function)?;
    let newest = tx.newest_version(function)?.ok_or_else(|| not_found(Resource::Function, &name))?;
    Ok(FunctionRecord { name, current, newest, created_at })
}

/// Notes that access may change with a function that has a public version.
pub(super) fn note_public(tx: &dyn Tx, context: &RequestContext<'_>, function: &FunctionId) -> RuleResult<()> {
    if tx.has_public_version(function)? {
        context.changes_access();
    }
    Ok(())
}

fn insert(request: &VersionPut, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
    let function = FunctionId::new(&request.namespace, &request.function);
    let runtime = runtimes::find(tx, &request.namespace, &request.runtime)?;
    let secret = secrets::seal(context, &SecretPlace::Function(function.clone()), &request.secret)?;
    tx.insert_function(&function, &secret, context.now)?;
    let version = tx.insert_version(request, &runtime, context.now)?;
    Ok(tx.refer(&BlobOwner::Version(function, version), &[request.source])?)
}

impl Write for VersionPut {
    fn changed_function(&self) -> Option<FunctionId> {
        Some(FunctionId::new(&self.namespace, &self.function))
    }

    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Self::Reply> {
        let function = FunctionId::new(&self.namespace, &self.function);
        let is_repeated = tx.is_version_request(&self.request)?;
        let old = tx.function(&function)?.map(|head| head.name);
        if let Some(old) = old.as_ref().filter(|old| old.as_str() != self.function.as_str()) {
            return conflict(format!("the function {old} exists already; names differ by more than case"));
        }
        if !is_repeated {
            if tx.count_unbuilt(&function)? >= MAX_UNBUILT {
                let message = format!("{MAX_UNBUILT} versions of {} wait for their builds already", self.function);
                return refuse(DbError::QueueFull { message });
            }
            context.takes_new_work()?;
            quotas::check_quota(tx, self, old.is_none(), context.wall)?;
            insert(self, tx, context)?;
        }
        let record = find(tx, &function)?;
        let created = record.newest.version == Version(1);
        Ok(Put { record, created })
    }
}

impl Read for FunctionGet {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<FunctionRecord> {
        find(tx, &FunctionId::new(&self.namespace, &self.name))
    }
}

impl Read for FunctionList {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Vec<FunctionName>> {
        Ok(tx.functions(&self.namespace)?)
    }
}

impl Read for VersionList {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Vec<VersionRecord>> {
        let function = FunctionId::new(&self.namespace, &self.function);
        head(tx, &function)?;
        Ok(tx.versions(&function)?)
    }
}

impl Write for FunctionDelete {
    fn changed_function(&self) -> Option<FunctionId> {
        Some(FunctionId::new(&self.namespace, &self.name))
    }

    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        let function = FunctionId::new(&self.namespace, &self.name);
        head(tx, &function)?;
        let why = format!("the function {} was deleted before this call ran", self.name);
        let cause = Cause::cancelled(CallStatus::Pending, &why);
        let waiting = tx.select_calls(CallSelection::WaitingOf(&function))?;
        apply_same(tx, context, &waiting, &Event::Cancel, &cause)?;
        note_public(tx, context, &function)?;
        // Running calls may end; no retry or redelivery may run a later function of this name.
        tx.stop_retries(&function, context.now)?;
        tx.release_versions(&function)?;
        Ok(tx.delete_function(&function)?)
    }
}

/// The version that a call accepted now would run: the named one, else the newest READY one, else the newest.
pub(super) fn resolve(
    tx: &dyn Tx,
    context: &RequestContext<'_>,
    function: &FunctionId,
    version: Option<Version>,
) -> RuleResult<ResolvedVersion> {
    let head = head(tx, function)?;
    let wanted = match version.or(head.current) {
        Some(version) => version,
        None => find(tx, function)?.newest.version,
    };
    // Calls tell the function's name as it was registered.
    let function = FunctionId { namespace: function.namespace.clone(), name: head.name };
    let missing = || not_found(Resource::Version, &format!("{wanted} of {}", function.name));
    Ok(code(tx, context, &function, wanted)?.ok_or_else(missing)?)
}

/// What instances need to know of one version.
pub(super) fn code(
    tx: &dyn Tx,
    context: &RequestContext<'_>,
    function: &FunctionId,
    version: Version,
) -> StoreResult<Option<ResolvedVersion>> {
    let Some(stored) = tx.version(function, version)? else { return Ok(None) };
    let config = config::bound(tx, context, &function.namespace, &stored.manifest.bindings())?;
    let (share, selector) = tx.share(&function.namespace)?.unwrap_or_default();
    let StoredVersion { status, runtime, manifest, limits, engine, image_id, image, archive, root, nodes, created_at } =
        stored;
    let mut env = runtime.env;
    env.extend(manifest.fixed_env());
    let code = Code {
        namespace: function.namespace.clone(),
        function: function.name.clone(),
        version,
        engine,
        image: runtime.image.to_string(),
        image_id,
        image_content: image,
        path: runtime.path,
        run: runtime.run,
        archive,
        root,
        env,
        config,
        limits,
        network: manifest.network,
        networks: runtime.allow.networks,
        calls: manifest.identity.calls,
        scopes: manifest.identity.scopes,
        concurrency: manifest.limits.concurrency.or(runtime.limits.concurrency),
        serving: Serving { preload: manifest.serving.preload.or(runtime.preload), ..manifest.serving },
        nodes: nodes.into_iter().chain(selector).collect(),
        share,
        since: created_at,
    };
    Ok(Some(ResolvedVersion { status, code, retries: manifest.retries }))
}

/// What the build of a version gets besides the version: its variables, and what it asks for of the configuration.
pub(super) fn build_env(
    tx: &dyn Tx,
    context: &RequestContext<'_>,
    namespace: &Namespace,
    manifest: &Manifest,
) -> StoreResult<(BTreeMap<String, String>, Option<BoundConfig>)> {
    Ok((manifest.fixed_build_env(), config::bound(tx, context, namespace, &manifest.build_bindings())?))
}

impl Read for VersionResolve {
    fn read(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<ResolvedVersion> {
        context.takes_new_work()?;
        resolve(tx, context, &FunctionId::new(&self.namespace, &self.function), self.version)
    }
}

impl Read for VersionsMinimum {
    fn read(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Vec<Code>> {
        let labels = tx.labels_of(&self.owner.worker)?;
        let mut codes = Vec::new();
        for (function, version) in tx.versions_with_minimum()? {
            // A node is told of nothing that it may not run.
            let resolved = code(tx, context, &function, version)?;
            codes.extend(resolved.map(|resolved| resolved.code).filter(|code| code.is_permitted_on(&labels)));
        }
        Ok(codes)
    }
}

impl Read for FunctionChanges {
    fn read(&self, _tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<ChangedFunctions> {
        Ok(context.changes.since(self.since))
    }
}
