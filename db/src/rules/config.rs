//! Configuration: leaves of a namespace's tree.

use std::collections::BTreeMap;

use faena_domain::config::{ConfigPath, ConfigProblem, MAX_BOUND, SecretText, as_text, assemble, leaves};
use faena_domain::{Bindings, FunctionId, Namespace, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{ConfigChange, ConfigDelete, ConfigGet, ConfigHistory, ConfigPut, ConfigValue, Resource};
use faena_protocol::records::BoundConfig;
use serde_json::Value;

use super::{Read, Request, RequestContext, RuleResult, Write, conflict, not_found, read, refuse, secrets, write};
use crate::tx::{Leaf, LeafValue, SecretPlace, StoreResult, Tx};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] =
    &[write::<ConfigPut>(), write::<ConfigDelete>(), read::<ConfigGet>(), read::<ConfigHistory>()];

/// The most leaves of a namespace, and the bytes of all of them.
const MAX_LEAVES: u64 = 10_000;
const MAX_BYTES: u64 = 1024 * 1024;
/// Changes of a namespace that are kept.
const CHANGES: u32 = 10_000;
/// The most changes that one request returns.
const TOLD: u32 = 200;
/// What stands for a secret where it is not to be seen.
const SECRET: &str = "[secret]";

/// What changes a configuration: its namespace, and who does it.
struct Change<'a> {
    namespace: &'a Namespace,
    account: &'a str,
}

impl Change<'_> {
    /// Notes what was at a path before.
    fn note(&self, tx: &dyn Tx, path: &ConfigPath, old: Option<&Leaf>, at: i64) -> StoreResult<()> {
        let change = ConfigChange {
            path: path.clone(),
            at: Timestamp(at),
            account: self.account.to_owned(),
            old: old.and_then(|old| old.value.clear()).cloned(),
            was_secret: old.is_some_and(|old| old.value.is_secret()),
        };
        tx.insert_config_change(self.namespace, &change)
    }

    /// Ends a change: instances of functions that use the configuration are replaced.
    fn end(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> StoreResult<()> {
        tx.trim_config_changes(self.namespace, CHANGES)?;
        for name in tx.functions_with_config(self.namespace)? {
            context.changes_function(FunctionId::new(self.namespace, &name));
        }
        Ok(())
    }
}

fn check_size(tx: &dyn Tx, namespace: &Namespace) -> RuleResult<()> {
    let (leaves, bytes) = tx.config_size(namespace)?;
    if leaves > MAX_LEAVES || bytes > MAX_BYTES {
        let message =
            format!("the configuration of {namespace} would have more than {MAX_LEAVES} values or {MAX_BYTES} bytes");
        return refuse(DbError::TooMuch { message });
    }
    Ok(())
}

/// What is wrong with values that are to be put in clear: they would silently replace secrets.
fn check_clear(new: &BTreeMap<ConfigPath, Value>, before: &[Leaf]) -> RuleResult<()> {
    for (path, value) in new {
        if value == SECRET {
            return conflict(format!(
                "{path}: {SECRET:?} only stands for a hidden secret, and cannot be stored as a value"
            ));
        }
        if before.iter().any(|old| old.path == *path && old.value.is_secret()) {
            return conflict(format!("{path} is a secret: put it with ?secret=true, or delete it first"));
        }
    }
    Ok(())
}

/// A value as it is stored.
fn leaf_value(
    request: &ConfigPut,
    (path, value): (&ConfigPath, &Value),
    context: &RequestContext<'_>,
) -> StoreResult<LeafValue> {
    if !request.secret {
        return Ok(LeafValue::Clear(value.clone()));
    }
    let place = SecretPlace::Config(request.namespace.clone(), path.clone());
    secrets::seal(context, &place, &value.to_string()).map(LeafValue::Sealed)
}

/// Puts one leaf; what it replaces is noted. An object without members changes nothing where an object is.
fn put_leaf(
    request: &ConfigPut,
    (path, value): (&ConfigPath, &Value),
    tx: &dyn Tx,
    context: &RequestContext<'_>,
) -> StoreResult<()> {
    let ConfigPut { namespace, secret, account, .. } = request;
    let there = tx.leaves(namespace, Some(path))?;
    let is_object = there.iter().any(|leaf| leaf.path != *path);
    let is_same = !secret && there.iter().any(|leaf| leaf.path == *path && leaf.value.clear() == Some(value));
    if is_same || (is_object && *value == Value::Object(serde_json::Map::new())) {
        return Ok(());
    }
    // A value replaces an object at its path, and an object a value above it.
    let mut replaced: Vec<Leaf> = there;
    for above in path.above().filter_map(|above| above.parse::<ConfigPath>().ok()) {
        replaced.extend(tx.leaves(namespace, Some(&above))?.into_iter().filter(|leaf| leaf.path == above));
    }
    let change = Change { namespace, account };
    let paths: Vec<&ConfigPath> = replaced.iter().map(|leaf| &leaf.path).collect();
    tx.delete_leaves(namespace, &paths)?;
    for leaf in replaced.iter().filter(|leaf| leaf.path != *path) {
        change.note(tx, &leaf.path, Some(leaf), context.wall)?;
    }
    tx.put_leaf(namespace, path, &leaf_value(request, (path, value), context)?)?;
    change.note(tx, path, replaced.iter().find(|leaf| leaf.path == *path), context.wall)?;
    // What it was before may be the same secret, in clear.
    if *secret { tx.hide_config_changes(namespace, path) } else { Ok(()) }
}

impl Write for ConfigPut {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<bool> {
        let ConfigValue(value) = self.value.clone();
        let new = leaves(&self.path, value).map_err(|error| DbError::Invalid { message: error.to_string() })?;
        let before = tx.leaves(&self.namespace, Some(&self.path))?;
        if !self.secret {
            check_clear(&new, &before)?;
        }
        new.iter().try_for_each(|leaf| put_leaf(self, leaf, tx, context))?;
        Change { namespace: &self.namespace, account: &self.account }.end(tx, context)?;
        check_size(tx, &self.namespace)?;
        Ok(before.is_empty())
    }
}

impl Write for ConfigDelete {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        let Self { namespace, path, account } = self;
        let gone = tx.leaves(namespace, Some(path))?;
        if gone.is_empty() {
            return refuse(not_found(Resource::Config, path));
        }
        let paths: Vec<&ConfigPath> = gone.iter().map(|leaf| &leaf.path).collect();
        tx.delete_leaves(namespace, &paths)?;
        let change = Change { namespace, account };
        for leaf in &gone {
            change.note(tx, &leaf.path, Some(leaf), context.wall)?;
        }
        Ok(change.end(tx, context)?)
    }
}

impl Read for ConfigGet {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Value> {
        let shown = tx.leaves(&self.namespace, self.path.as_ref())?.into_iter().map(|leaf| match leaf.value {
            LeafValue::Clear(value) => (leaf.path, value),
            LeafValue::Sealed(_) => (leaf.path, SECRET.into()),
        });
        match &self.path {
            None => Ok(assemble("", shown).unwrap_or_else(|| Value::Object(serde_json::Map::new()))),
            Some(path) => Ok(assemble(path.as_str(), shown).ok_or_else(|| not_found(Resource::Config, path))?),
        }
    }
}

impl Read for ConfigHistory {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Vec<ConfigChange>> {
        let changes = tx.config_changes(&self.namespace, &self.path, TOLD)?;
        if changes.is_empty() { refuse(not_found(Resource::Config, &self.path)) } else { Ok(changes) }
    }
}

/// What a version gets of its namespace's configuration; none where it asks for nothing.
pub(super) fn bound(
    tx: &dyn Tx,
    context: &RequestContext<'_>,
    namespace: &Namespace,
    bindings: &Bindings,
) -> StoreResult<Option<BoundConfig>> {
    if bindings.paths().next().is_none() {
        return Ok(None);
    }
    let mut config = BoundConfig { revision: tx.config_revision(namespace)?, ..BoundConfig::default() };
    let mut bytes = 0;
    let env = bindings.env.iter().map(|(name, path)| (false, name, path));
    let files = bindings.files.iter().map(|(name, path)| (true, name, path));
    for (is_file, name, path) in env.chain(files) {
        match opened(tx, context, namespace, path)? {
            Opened::Value(value) => {
                let text = as_text(value);
                bytes += text.len();
                let values = if is_file { &mut config.files } else { &mut config.env };
                values.insert(name.clone(), SecretText(text));
            }
            Opened::Nothing => config.problem = Some(ConfigProblem::Missing(path.clone())),
            Opened::Sealed => config.problem = Some(ConfigProblem::Sealed(path.clone())),
        }
        if bytes > MAX_BOUND {
            config.problem = Some(ConfigProblem::TooLarge);
        }
        if config.problem.is_some() {
            (config.env, config.files) = (BTreeMap::new(), BTreeMap::new());
            break;
        }
    }
    Ok(Some(config))
}

/// A value with its secrets.
enum Opened {
    Value(Value),
    /// There is none.
    Nothing,
    /// A secret in it cannot be opened: one secret stops no other function.
    Sealed,
}

fn opened(tx: &dyn Tx, context: &RequestContext<'_>, namespace: &Namespace, path: &ConfigPath) -> StoreResult<Opened> {
    let clear = |Leaf { path, value }: Leaf| match value {
        LeafValue::Clear(value) => Some((path, value)),
        LeafValue::Sealed(sealed) => {
            let text = secrets::open(context, &SecretPlace::Config(namespace.clone(), path.clone()), &sealed)?;
            serde_json::from_str(&text).ok().map(|value| (path, value))
        }
    };
    let leaves: Option<Vec<(ConfigPath, Value)>> = tx.leaves(namespace, Some(path))?.into_iter().map(clear).collect();
    let Some(leaves) = leaves else { return Ok(Opened::Sealed) };
    Ok(assemble(path.as_str(), leaves).map_or(Opened::Nothing, Opened::Value))
}
