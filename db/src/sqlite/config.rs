//! Configuration: leaves of a namespace's tree, secrets sealed. SQL reaches the keyring by two functions, so that no query has to
//! carry it.

use std::collections::BTreeMap;

use faena_domain::config::{ConfigPath, ConfigProblem, MAX_BOUND, SecretText, as_text, assemble, leaves};
use faena_domain::{Bindings, FunctionId, FunctionName, Namespace, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{
    ConfigChange, ConfigDelete, ConfigGet, ConfigHistory, ConfigPut, ConfigValue, Resource, SecretsRotate,
};
use faena_protocol::records::BoundConfig;
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::{Connection, Row};
use serde_json::Value;

use super::internal;
use super::keyring::Keyring;
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, Text, not_found};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    write::<ConfigPut>(),
    write::<ConfigDelete>(),
    read::<ConfigGet>(),
    read::<ConfigHistory>(),
    write::<SecretsRotate>(),
];

/// The most leaves of a namespace, and the bytes of all of them.
const MAX_LEAVES: u64 = 10_000;
const MAX_BYTES: u64 = 1024 * 1024;
/// Changes of a namespace that are kept.
const CHANGES: u32 = 10_000;
/// Changes that are told at once.
const TOLD: u32 = 200;
/// What stands for a secret where it is not to be seen.
const SECRET: &str = "[secret]";

/// Gives a connection the functions `seal(namespace, path, text)`, `unseal(namespace, path, sealed)` and
/// `reseal(namespace, path, sealed)`.
pub(super) fn register(connection: &Connection, keyring: &Keyring) -> rusqlite::Result<()> {
    let failed = |error| rusqlite::Error::UserFunctionError(Box::new(error));
    let place =
        |context: &Context<'_>| Ok::<_, rusqlite::Error>((context.get::<String>(0)?, context.get::<String>(1)?));
    // SQLITE_DIRECTONLY: no trigger and no view of a database that somebody prepared can use them.
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
    let keys = keyring.clone();
    connection.create_scalar_function("seal", 3, flags, move |context| {
        let (namespace, path) = place(context)?;
        keys.seal(&namespace, &path, context.get::<String>(2)?.as_bytes()).map_err(failed)
    })?;
    let keys = keyring.clone();
    connection.create_scalar_function("unseal", 3, flags, move |context| {
        let (namespace, path) = place(context)?;
        // NULL where it cannot be opened: one secret stops no other function.
        let opened = keys.open_sealed(&namespace, &path, &context.get::<Vec<u8>>(2)?);
        Ok(opened.ok().and_then(|bytes| String::from_utf8(bytes).ok()))
    })?;
    let keys = keyring.clone();
    connection.create_scalar_function("reseal", 3, flags, move |context| {
        let (namespace, path) = place(context)?;
        let sealed = context.get::<Vec<u8>>(2)?;
        // What cannot be opened stays as it is: the file may come back that has its key.
        Ok(keys.reseal(&namespace, &path, &sealed).unwrap_or(sealed))
    })
}

/// Whether any secret is kept.
pub(super) fn has_secrets(connection: &Connection) -> rusqlite::Result<bool> {
    const KEPT: &str = "SELECT EXISTS (SELECT 1 FROM config WHERE sealed IS NOT NULL)
                             OR EXISTS (SELECT 1 FROM providers WHERE secret IS NOT NULL)";
    connection.query_row(KEPT, [], |row| row.get(0))
}

/// Seals what signs callbacks and was kept in clear by an earlier Faena.
pub(super) fn seal_callbacks(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute(
        "UPDATE callbacks SET secret = hex(seal(c.namespace, 'callbacks/' || c.function, callbacks.secret))
         FROM calls c WHERE c.num = callbacks.num AND callbacks.secret LIKE 'whsec\\_%' ESCAPE '\\'",
        [],
    )?;
    connection
        .execute(
            "UPDATE functions SET secret = hex(seal(namespace, 'callbacks/' || key, secret))
             WHERE secret LIKE 'whsec\\_%' ESCAPE '\\'",
            [],
        )
        .map(drop)
}

/// A leaf as it is stored.
struct Leaf {
    path: ConfigPath,
    /// None of a secret.
    value: Option<Value>,
}

/// The leaves at a path and below it; of all of a namespace for none.
fn stored(connection: &Connection, namespace: &Namespace, path: Option<&ConfigPath>) -> rusqlite::Result<Vec<Leaf>> {
    let leaf = |row: &Row<'_>| {
        let value = row.get::<_, Option<Json<Value>>>(1)?.map(|Json(value)| value);
        Ok(Leaf { path: row.get::<_, Text<_>>(0)?.0, value })
    };
    let mut statement =
        connection.prepare_cached(&format!("SELECT path, value FROM config WHERE {BELOW} ORDER BY path"))?;
    statement.query_map((namespace.as_str(), path.map(ConfigPath::as_str)), leaf)?.collect()
}

/// A row at a path or below it: `.` is followed by `/` in ASCII. Parameters: the namespace, and the path or NULL.
const BELOW: &str = "namespace = ?1 AND (?2 IS NULL OR path = ?2 OR (path >= ?2 || '.' AND path < ?2 || '/'))";

fn note(
    connection: &Connection,
    context: &RequestContext<'_>,
    (namespace, account): (&Namespace, &str),
    (path, old): (&ConfigPath, Option<&Leaf>),
) -> rusqlite::Result<()> {
    let was_secret = old.is_some_and(|old| old.value.is_none());
    let old = old.and_then(|old| old.value.as_ref()).map(Json);
    connection
        .prepare_cached(
            "INSERT INTO config_changes (namespace, path, at, account, old, was_secret) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute((namespace.as_str(), path.as_str(), context.wall, account, old, was_secret))
        .map(drop)
}

/// After a change instances of functions that use the configuration are made anew.
fn has_changed(connection: &Connection, context: &RequestContext<'_>, namespace: &Namespace) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM config_changes WHERE namespace = ?1 AND number <=
                 (SELECT number FROM config_changes WHERE namespace = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
        )?
        .execute((namespace.as_str(), CHANGES))?;
    let mut statement = connection.prepare_cached(
        "SELECT DISTINCT f.name FROM functions f JOIN versions v ON v.namespace = f.namespace AND v.function = f.key
         WHERE f.namespace = ?1 AND v.manifest LIKE '%\"config\":%'",
    )?;
    let names = statement.query_map([namespace.as_str()], |row| Ok(row.get::<_, Text<FunctionName>>(0)?.0))?;
    for name in names {
        context.changes_function(FunctionId::new(namespace, &name?));
    }
    Ok(())
}

fn check_size(connection: &Connection, namespace: &Namespace) -> Result<(), DbError> {
    let (leaves, bytes): (u64, u64) = connection
        .query_row(
            "SELECT count(*), coalesce(sum(length(path) + coalesce(length(value), length(sealed))), 0) FROM config WHERE namespace = ?1",
            [namespace.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .map_err(|error| internal("measuring a configuration", &error))?;
    if leaves > MAX_LEAVES || bytes > MAX_BYTES {
        let message =
            format!("the configuration of {namespace} would have more than {MAX_LEAVES} values or {MAX_BYTES} bytes");
        return Err(DbError::TooMuch { message });
    }
    Ok(())
}

/// What is wrong with values that are to be put in clear: they would take the place of secrets without a word.
fn check_clear(new: &BTreeMap<ConfigPath, Value>, before: &[Leaf]) -> Result<(), DbError> {
    let conflict = |message: String| Err(DbError::Conflict { message });
    for (path, value) in new {
        if value == SECRET {
            return conflict(format!(
                "{path}: {SECRET:?} stands for a secret where it is not to be seen, and is no value"
            ));
        }
        if before.iter().any(|old| old.path == *path && old.value.is_none()) {
            return conflict(format!("{path} is a secret: put it with ?secret=true, or delete it first"));
        }
    }
    Ok(())
}

/// Puts one leaf; what it replaces is noted. An object without members changes nothing where an object is.
fn put_leaf(
    request: &ConfigPut,
    (path, value): (&ConfigPath, &Value),
    connection: &Connection,
    context: &RequestContext<'_>,
) -> rusqlite::Result<()> {
    let ConfigPut { namespace, secret, account, .. } = request;
    let there = stored(connection, namespace, Some(path))?;
    let is_object = there.iter().any(|leaf| leaf.path != *path);
    let is_same = !secret && there.iter().any(|leaf| leaf.path == *path && leaf.value.as_ref() == Some(value));
    if is_same || (is_object && *value == Value::Object(serde_json::Map::new())) {
        return Ok(());
    }
    // What was a value is an object now, and the reverse.
    let mut replaced: Vec<Leaf> = there;
    for above in path.above().filter_map(|above| above.parse::<ConfigPath>().ok()) {
        replaced.extend(stored(connection, namespace, Some(&above))?.into_iter().filter(|leaf| leaf.path == above));
    }
    let mut remove = connection.prepare_cached("DELETE FROM config WHERE namespace = ?1 AND path = ?2")?;
    for leaf in &replaced {
        remove.execute((namespace.as_str(), leaf.path.as_str()))?;
        if leaf.path != *path {
            note(connection, context, (namespace, account), (&leaf.path, Some(leaf)))?;
        }
    }
    let sql = if *secret {
        "INSERT INTO config (namespace, path, sealed) VALUES (?1, ?2, seal(?1, ?2, ?3))"
    } else {
        "INSERT INTO config (namespace, path, value) VALUES (?1, ?2, ?3)"
    };
    connection.prepare_cached(sql)?.execute((namespace.as_str(), path.as_str(), Json(value)))?;
    let old = replaced.iter().find(|leaf| leaf.path == *path);
    note(connection, context, (namespace, account), (path, old))?;
    if *secret {
        // What it was before may be the same secret, in clear.
        connection
            .prepare_cached("UPDATE config_changes SET old = NULL, was_secret = 1 WHERE namespace = ?1 AND path = ?2 AND old IS NOT NULL")?
            .execute((namespace.as_str(), path.as_str()))?;
    }
    Ok(())
}

impl Write for ConfigPut {
    fn write(mut self, connection: &Connection, context: &RequestContext<'_>) -> Result<bool, DbError> {
        let ConfigValue(value) = std::mem::replace(&mut self.value, ConfigValue(Value::Null));
        let new = leaves(&self.path, value).map_err(|error| DbError::Invalid { message: error.to_string() })?;
        let broken = |error| internal("putting a value", &error);
        let before = stored(connection, &self.namespace, Some(&self.path)).map_err(broken)?;
        if !self.secret {
            check_clear(&new, &before)?;
        }
        let put = || {
            new.iter().try_for_each(|leaf| put_leaf(&self, leaf, connection, context))?;
            has_changed(connection, context, &self.namespace)
        };
        put().map_err(broken)?;
        check_size(connection, &self.namespace)?;
        Ok(before.is_empty())
    }
}

impl Write for ConfigDelete {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        let Self { namespace, path, account } = &self;
        let broken = |error| internal("removing a value", &error);
        let gone = stored(connection, namespace, Some(path)).map_err(broken)?;
        if gone.is_empty() {
            return Err(not_found(Resource::Config, path));
        }
        let remove = || {
            connection
                .prepare_cached(&format!("DELETE FROM config WHERE {BELOW}"))?
                .execute((namespace.as_str(), path.as_str()))?;
            for leaf in &gone {
                note(connection, context, (namespace, account), (&leaf.path, Some(leaf)))?;
            }
            has_changed(connection, context, namespace)
        };
        remove().map_err(broken)
    }
}

impl Read for ConfigGet {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Value, DbError> {
        let stored = stored(connection, &self.namespace, self.path.as_ref())
            .map_err(|error| internal("reading a configuration", &error))?;
        let shown = stored.into_iter().map(|leaf| (leaf.path, leaf.value.unwrap_or_else(|| SECRET.into())));
        match &self.path {
            None => Ok(assemble("", shown).unwrap_or_else(|| Value::Object(serde_json::Map::new()))),
            Some(path) => assemble(path.as_str(), shown).ok_or_else(|| not_found(Resource::Config, path)),
        }
    }
}

impl Read for ConfigHistory {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<ConfigChange>, DbError> {
        let change = |row: &Row<'_>| {
            Ok(ConfigChange {
                path: row.get::<_, Text<_>>(0)?.0,
                at: Timestamp(row.get(1)?),
                account: row.get(2)?,
                old: row.get::<_, Option<Json<Value>>>(3)?.map(|Json(value)| value),
                was_secret: row.get(4)?,
            })
        };
        let changes: Vec<ConfigChange> = connection
            .prepare_cached(&format!(
                "SELECT path, at, account, old, was_secret FROM config_changes WHERE {BELOW} ORDER BY number DESC LIMIT ?3"
            ))
            .and_then(|mut statement| {
                statement.query_map((self.namespace.as_str(), self.path.as_str(), TOLD), change)?.collect()
            })
            .map_err(|error| internal("reading the changes of a value", &error))?;
        if changes.is_empty() { Err(not_found(Resource::Config, &self.path)) } else { Ok(changes) }
    }
}

impl Write for SecretsRotate {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<u64, DbError> {
        let sealed: Vec<Vec<u8>> = connection
            .prepare_cached(
                "SELECT DISTINCT substr(sealed, 1, 8) FROM config WHERE sealed IS NOT NULL
                 UNION SELECT DISTINCT substr(secret, 1, 8) FROM providers WHERE secret IS NOT NULL
                 UNION SELECT DISTINCT substr(unhex(secret), 1, 8) FROM functions
                 UNION SELECT DISTINCT substr(unhex(secret), 1, 8) FROM callbacks WHERE status = 'WAITING'",
            )
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
            .map_err(|error| internal("reading which keys are in use", &error))?;
        context.keyring.rotate(&sealed).map_err(|error| {
            tracing::error!(%error, "the file of the keys cannot be written");
            DbError::Internal { message: "writing the file of the keys".to_owned() }
        })?;
        let rotate = || {
            connection.execute(
                "UPDATE callbacks SET secret = hex(reseal(c.namespace, 'callbacks/' || c.function, unhex(callbacks.secret)))
                 FROM calls c WHERE c.num = callbacks.num AND callbacks.status = 'WAITING'",
                [],
            )?;
            connection.execute(
                "UPDATE functions SET secret = hex(reseal(namespace, 'callbacks/' || key, unhex(secret)))",
                [],
            )?;
            let providers = connection.execute(
                "UPDATE providers SET secret = reseal('', 'providers/' || key, secret) WHERE secret IS NOT NULL",
                [],
            )?;
            connection
                .execute("UPDATE config SET sealed = reseal(namespace, path, sealed) WHERE sealed IS NOT NULL", [])
                .map(|values| values + providers)
        };
        rotate().map(|count| count as u64).map_err(|error| internal("sealing secrets with a new key", &error))
    }
}

/// What a version gets of its namespace's configuration; none where it asks for nothing.
pub(super) fn bound(
    connection: &Connection,
    namespace: &Namespace,
    bindings: &Bindings,
) -> Result<Option<BoundConfig>, DbError> {
    if bindings.paths().next().is_none() {
        return Ok(None);
    }
    let broken = |error| internal("reading the configuration of a function", &error);
    let revision = connection
        .prepare_cached("SELECT coalesce(max(number), 0) FROM config_changes WHERE namespace = ?1")
        .and_then(|mut statement| statement.query_row([namespace.as_str()], |row| row.get(0)))
        .map_err(broken)?;
    let mut config = BoundConfig { revision, ..BoundConfig::default() };
    let mut bytes = 0;
    let env = bindings.env.iter().map(|(name, path)| (false, name, path));
    let files = bindings.files.iter().map(|(name, path)| (true, name, path));
    for (is_file, name, path) in env.chain(files) {
        match opened(connection, namespace, path).map_err(broken)? {
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
    /// A secret in it cannot be opened.
    Sealed,
}

fn opened(connection: &Connection, namespace: &Namespace, path: &ConfigPath) -> rusqlite::Result<Opened> {
    let leaf = |row: &Row<'_>| {
        let path = row.get::<_, Text<ConfigPath>>(0)?.0;
        Ok(row.get::<_, Option<Json<Value>>>(1)?.map(|Json(value)| (path, value)))
    };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT path, coalesce(value, unseal(namespace, path, sealed)) FROM config WHERE {BELOW} ORDER BY path"
    ))?;
    let leaves: Vec<Option<(ConfigPath, Value)>> =
        statement.query_map((namespace.as_str(), path.as_str()), leaf)?.collect::<rusqlite::Result<_>>()?;
    let Some(leaves) = leaves.into_iter().collect::<Option<Vec<_>>>() else { return Ok(Opened::Sealed) };
    Ok(assemble(path.as_str(), leaves).map_or(Opened::Nothing, Opened::Value))
}
