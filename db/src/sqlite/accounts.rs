//! Namespaces, their rules, and accounts.

use faena_auth::{AccountId, Rule, Scope, Scopes};
use faena_domain::{AccountName, FunctionId, FunctionName, Namespace, Quota, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{
    AccessState, AccessStateGet, AccountDelete, AccountGet, AccountList, AccountPut, FunctionDelete, LoginGet,
    NamespaceDelete, NamespaceGet, NamespaceList, NamespacePatch, NamespacePut, NamespaceRules, Put, Resource,
    RuleDelete, RuleList, RulePut, SecretPut, Seen, SetupGet, SetupPut,
};
use faena_protocol::records::{AccountRecord, LoginRecord, NamespaceRecord, SecretHash, StoredUsage};
use rusqlite::{Connection, OptionalExtension, Row};

use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, Text, not_found};
use super::{builds, internal};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    read::<AccessStateGet>(),
    write::<SetupPut>(),
    read::<SetupGet>(),
    write::<NamespacePut>(),
    write::<NamespacePatch>(),
    read::<NamespaceGet>(),
    read::<NamespaceList>(),
    write::<NamespaceDelete>(),
    read::<RuleList>(),
    write::<RulePut>(),
    write::<RuleDelete>(),
    write::<AccountPut>(),
    read::<AccountGet>(),
    read::<AccountList>(),
    write::<AccountDelete>(),
    read::<LoginGet>(),
    write::<SecretPut>(),
];

/// The most rules of a namespace.
const MAX_RULES: u64 = 1000;
/// The most accounts of a namespace.
const MAX_ACCOUNTS: u64 = 10_000;

/// An account's columns, in the order that [`account_record`] reads them.
pub(super) const ACCOUNT: &str = "a.id, a.name, a.namespace, a.kind, a.scopes, a.metadata, a.created_at";

/// Reads the columns of [`ACCOUNT`].
pub(super) fn account_record(row: &Row<'_>) -> rusqlite::Result<AccountRecord> {
    Ok(AccountRecord {
        id: AccountId(row.get::<_, String>(0)?.into()),
        name: row.get::<_, Text<AccountName>>(1)?.0,
        namespace: row.get::<_, Text<Namespace>>(2)?.0,
        kind: row.get::<_, Text<_>>(3)?.0,
        scopes: row.get::<_, Json<Scopes>>(4)?.0,
        metadata: row.get::<_, Json<_>>(5)?.0,
        created_at: Timestamp(row.get(6)?),
    })
}

pub(super) fn is_locked(connection: &Connection) -> Result<bool, DbError> {
    connection
        .prepare_cached("SELECT locked FROM access")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .map_err(|error| internal("reading whether the platform is locked", &error))
}

/// The quota of a namespace, where it exists.
pub(super) fn exists(connection: &Connection, name: &Namespace) -> Result<Quota, DbError> {
    connection
        .prepare_cached("SELECT quota FROM namespaces WHERE name = ?1 AND NOT deleted")
        .and_then(|mut statement| statement.query_row([name.as_str()], |row| row.get(0)).optional())
        .map_err(|error| internal("reading a namespace", &error))?
        .map(|Json(quota)| quota)
        .ok_or_else(|| not_found(Resource::Namespace, name))
}

/// A namespace, and what it has; its builds are those of the day of an instant.
pub(super) fn namespace(connection: &Connection, name: &Namespace, wall: i64) -> Result<NamespaceRecord, DbError> {
    connection
        .prepare_cached(
            "SELECT name, created_at, allow, quota, weight, (SELECT count(*) FROM functions f WHERE f.namespace = ?1),
                 (SELECT count(*) FROM calls c INDEXED BY calls_leased WHERE c.status = 'RUNNING' AND c.namespace = ?1),
                 (SELECT coalesce(sum(source_bytes), 0) FROM versions v WHERE v.namespace = ?1),
                 (SELECT coalesce(sum(ms), 0) / 60000 FROM build_time b WHERE b.namespace = ?1 AND b.day = ?2)
             FROM namespaces WHERE name = ?1 AND NOT deleted",
        )
        .and_then(|mut statement| {
            let record = |row: &Row<'_>| {
                let (Text(name), Json(allow), Json(quota)) = (row.get(0)?, row.get(2)?, row.get(3)?);
                let usage = StoredUsage {
                    functions: row.get(5)?,
                    queued_calls: row.get(6)?,
                    stored_bytes: row.get(7)?,
                    build_minutes_per_day: row.get(8)?,
                };
                let (created_at, weight) = (Timestamp(row.get(1)?), row.get(4)?);
                Ok(NamespaceRecord { name, created_at, allow, quota, weight, usage })
            };
            statement.query_row((name.as_str(), builds::day(wall)), record).optional()
        })
        .map_err(|error| internal("reading a namespace", &error))?
        .ok_or_else(|| not_found(Resource::Namespace, name))
}

/// An account of a namespace by its id or its name, and the hash of its secret.
fn login(connection: &Connection, namespace: &Namespace, account: &str) -> Result<LoginRecord, DbError> {
    let record = |row: &Row<'_>| {
        let secret: String = row.get("secret")?;
        let secret = (!secret.is_empty()).then_some(SecretHash(secret));
        Ok(LoginRecord { account: account_record(row)?, secret })
    };
    connection
        .prepare_cached(&format!(
            "SELECT {ACCOUNT}, a.secret AS secret FROM accounts a WHERE a.namespace = ?1 AND (a.id = ?2 OR a.key = ?3)"
        ))
        .and_then(|mut statement| {
            let key = (namespace.as_str(), account, account.to_ascii_lowercase());
            statement.query_row(key, record).optional()
        })
        .map_err(|error| internal("reading an account", &error))?
        .ok_or_else(|| not_found(Resource::Account, account))
}

/// The accounts of a namespace that need no provider to sign in.
fn accounts_with_secrets(connection: &Connection, namespace: &Namespace) -> Result<Vec<AccountRecord>, DbError> {
    connection
        .prepare_cached(&format!("SELECT {ACCOUNT} FROM accounts a WHERE a.namespace = ?1 AND a.secret <> ''"))
        .and_then(|mut statement| statement.query_map([namespace.as_str()], account_record)?.collect())
        .map_err(|error| internal("listing accounts", &error))
}

fn accounts(connection: &Connection, namespace: &Namespace) -> Result<Vec<AccountRecord>, DbError> {
    connection
        .prepare_cached(&format!("SELECT {ACCOUNT} FROM accounts a WHERE a.namespace = ?1 ORDER BY a.key"))
        .and_then(|mut statement| statement.query_map([namespace.as_str()], account_record)?.collect())
        .map_err(|error| internal("listing accounts", &error))
}

impl Read for AccessStateGet {
    fn read(self, connection: &Connection, context: &RequestContext<'_>) -> Result<AccessState, DbError> {
        Ok(AccessState { locked: is_locked(connection)?, seen: context.access_seen })
    }
}

impl Write for SetupPut {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<(), DbError> {
        connection
            .execute("UPDATE access SET setup = ?1 WHERE NOT locked", [self.hash])
            .map(drop)
            .map_err(|error| internal("keeping the token of the set-up", &error))
    }
}

impl Read for SetupGet {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Option<String>, DbError> {
        connection
            .query_row("SELECT setup FROM access WHERE NOT locked", [], |row| row.get(0))
            .optional()
            .map(Option::flatten)
            .map_err(|error| internal("reading the token of the set-up", &error))
    }
}

impl Write for NamespacePut {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Put<NamespaceRecord>, DbError> {
        context.changes_access();
        let broken = |error| internal("making a namespace", &error);
        let created = connection
            .execute(
                "INSERT INTO namespaces (name, created_at, allow, quota, weight) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
                (self.name.as_str(), context.wall, Json(self.allow), Json(self.quota), self.weight),
            )
            .map_err(broken)?;
        let found = namespace(connection, &self.name, context.wall).map_err(|error| match error {
            DbError::NotFound { .. } => DbError::Conflict {
                message: format!("there was a namespace {}, and names are not used again", self.name),
            },
            error => error,
        })?;
        if created > 0 {
            for rule in faena_auth::RuleSet::beginning().rules() {
                insert_rule(connection, &self.name, rule)?;
            }
        }
        Ok(Put { record: found, created: created > 0 })
    }
}

impl Write for NamespacePatch {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<NamespaceRecord, DbError> {
        let found = namespace(connection, &self.name, context.wall)?;
        let (allow, quota) = (found.allow.changed(self.allow), found.quota.changed(self.quota));
        let weight = self.weight.unwrap_or(found.weight);
        let broken = |error| internal("changing a namespace", &error);
        connection
            .execute(
                "UPDATE namespaces SET allow = ?2, quota = ?3, weight = ?4 WHERE name = ?1",
                (self.name.as_str(), Json(allow), Json(quota), weight),
            )
            .map_err(broken)?;
        context.changes_access();
        if (weight, quota.memory_bytes) != (found.weight, found.quota.memory_bytes) {
            // Workers know both by what they run.
            functions_of(connection, &self.name).map_err(broken)?.into_iter().for_each(|function| {
                context.changes_function(function);
            });
        }
        Ok(NamespaceRecord { allow, quota, weight, ..found })
    }
}

/// The functions of a namespace.
fn functions_of(connection: &Connection, namespace: &Namespace) -> rusqlite::Result<Vec<FunctionId>> {
    let mut statement = connection.prepare_cached("SELECT name FROM functions WHERE namespace = ?1")?;
    let function = |row: &Row<'_>| Ok(FunctionId::new(namespace, &row.get::<_, Text<FunctionName>>(0)?.0));
    statement.query_map([namespace.as_str()], function)?.collect()
}

impl Read for NamespaceGet {
    fn read(self, connection: &Connection, context: &RequestContext<'_>) -> Result<NamespaceRecord, DbError> {
        namespace(connection, &self.name, context.wall)
    }
}

impl Read for NamespaceList {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<Namespace>, DbError> {
        connection
            .prepare_cached("SELECT name FROM namespaces WHERE NOT deleted ORDER BY name")
            .and_then(|mut statement| statement.query_map([], |row| Ok(row.get::<_, Text<_>>(0)?.0))?.collect())
            .map_err(|error| internal("listing namespaces", &error))
    }
}

impl Write for NamespaceDelete {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Vec<FunctionName>, DbError> {
        context.changes_access();
        let name = &self.name;
        exists(connection, name)?;
        if *name == Namespace::default() {
            return Err(DbError::Conflict {
                message: "the namespace default is the platform's own, and stays".to_owned(),
            });
        }
        let deleted = if self.force { delete_content(connection, context, name)? } else { Vec::new() };
        for (what, table) in [
            ("functions", "functions"),
            ("runtimes", "runtimes"),
            ("calls", "calls"),
            ("calls", "completed_batches"),
            ("configuration", "config"),
        ] {
            let held: bool = connection
                .query_row(
                    &format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE namespace = ?1)"),
                    [name.as_str()],
                    |row| row.get(0),
                )
                .map_err(|error| internal("looking into a namespace", &error))?;
            if held && !self.force {
                let message = format!("the namespace {name} still has {what}; it can be deleted once they are gone");
                return Err(DbError::Conflict { message });
            }
        }
        let delete = || -> rusqlite::Result<()> {
            connection.execute("DELETE FROM accounts WHERE namespace = ?1", [name.as_str()])?;
            connection.execute("DELETE FROM rules WHERE namespace = ?1", [name.as_str()])?;
            connection.execute("UPDATE namespaces SET deleted = 1 WHERE name = ?1", [name.as_str()]).map(drop)
        };
        delete().map(|()| deleted).map_err(|error| internal("deleting a namespace", &error))
    }
}

/// Deletes the functions, runtimes and configuration of a namespace; returns the functions.
fn delete_content(
    connection: &Connection,
    context: &RequestContext<'_>,
    namespace: &Namespace,
) -> Result<Vec<FunctionName>, DbError> {
    let broken = |error| internal("deleting a namespace", &error);
    let functions = functions_of(connection, namespace).map_err(broken)?;
    for function in &functions {
        FunctionDelete { namespace: namespace.clone(), name: function.name.clone() }.write(connection, context)?;
        context.changes_function(function.clone());
    }
    for table in ["runtimes", "runtime_revisions", "config", "config_changes"] {
        connection
            .execute(&format!("DELETE FROM {table} WHERE namespace = ?1"), [namespace.as_str()])
            .map_err(broken)?;
    }
    Ok(functions.into_iter().map(|function| function.name).collect())
}

fn rules(connection: &Connection, namespace: &Namespace) -> Result<Vec<Rule>, DbError> {
    connection
        .prepare_cached("SELECT rule FROM rules WHERE namespace = ?1 ORDER BY key")
        .and_then(|mut statement| {
            statement.query_map([namespace.as_str()], |row| Ok(row.get::<_, Json<Rule>>(0)?.0))?.collect()
        })
        .map_err(|error| internal("reading rules", &error))
}

/// The functions whose current version says that everyone may call it.
fn public_functions(connection: &Connection, namespace: &Namespace) -> Result<Vec<FunctionName>, DbError> {
    connection
        .prepare_cached(
            "SELECT f.name FROM versions v JOIN functions f
             ON f.namespace = v.namespace AND f.key = v.function AND f.current = v.version
             WHERE v.namespace = ?1 AND v.manifest ->> 'access' = 'public' ORDER BY f.key",
        )
        .and_then(|mut statement| {
            statement.query_map([namespace.as_str()], |row| Ok(row.get::<_, Text<_>>(0)?.0))?.collect()
        })
        .map_err(|error| internal("looking for public functions", &error))
}

/// Notes that access may change with a function: one of its versions is for everyone.
pub(super) fn note_public(
    connection: &Connection,
    context: &RequestContext<'_>,
    function: &FunctionId,
) -> rusqlite::Result<()> {
    let is_public = connection
        .prepare_cached(
            "SELECT 1 FROM versions WHERE namespace = ?1 AND function = ?2 AND manifest ->> 'access' = 'public' LIMIT 1",
        )?
        .exists((function.namespace.as_str(), function.name.key()))?;
    if is_public {
        context.changes_access();
    }
    Ok(())
}

fn insert_rule(connection: &Connection, namespace: &Namespace, rule: &Rule) -> Result<(), DbError> {
    connection
        .execute(
            "INSERT INTO rules (namespace, key, rule) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET rule = ?3",
            (namespace.as_str(), rule.id.key(), Json(rule)),
        )
        .map(drop)
        .map_err(|error| internal("writing a rule", &error))
}

impl Read for RuleList {
    fn read(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Seen<NamespaceRules>, DbError> {
        let quota = exists(connection, &self.namespace)?;
        let mut rules = rules(connection, &self.namespace)?;
        rules.extend(public_functions(connection, &self.namespace)?.iter().map(Rule::public));
        Ok(Seen { seen: context.access_seen, record: NamespaceRules { rules, quota } })
    }
}

impl Write for RulePut {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Put<Rule>, DbError> {
        context.changes_access();
        exists(connection, &self.namespace)?;
        let rules = rules(connection, &self.namespace)?;
        let is_there = rules.iter().any(|rule| rule.id == self.rule.id);
        if !is_there && rules.len() as u64 >= MAX_RULES {
            let message = format!("the namespace {} has {MAX_RULES} rules, which is the most", self.namespace);
            return Err(DbError::Conflict { message });
        }
        insert_rule(connection, &self.namespace, &self.rule)?;
        Ok(Put { record: self.rule, created: !is_there })
    }
}

impl Write for RuleDelete {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        context.changes_access();
        let gone = connection
            .execute("DELETE FROM rules WHERE namespace = ?1 AND key = ?2", (self.namespace.as_str(), self.id.key()))
            .map_err(|error| internal("deleting a rule", &error))?;
        if gone == 0 { Err(not_found(Resource::Rule, &self.id)) } else { Ok(()) }
    }
}

/// Makes an account, whose name must be free in its namespace.
pub(super) fn insert_account(
    connection: &Connection,
    account: &AccountRecord,
    secret: &SecretHash,
) -> Result<(), DbError> {
    let there = accounts(connection, &account.namespace)?;
    if there.iter().any(|other| other.name == account.name) {
        let message = format!("the namespace {} has an account {} already", account.namespace, account.name);
        return Err(DbError::Conflict { message });
    }
    if there.len() as u64 >= MAX_ACCOUNTS {
        let message = format!("the namespace {} has {MAX_ACCOUNTS} accounts, which is the most", account.namespace);
        return Err(DbError::Conflict { message });
    }
    let row = (
        &*account.id.0,
        account.namespace.as_str(),
        account.name.key(),
        account.name.as_str(),
        Text(account.kind),
        Json(&account.scopes),
        Json(&account.metadata),
        &secret.0,
        account.created_at.0,
    );
    connection
        .execute(
            "INSERT INTO accounts (id, namespace, key, name, kind, scopes, metadata, secret, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            row,
        )
        .map(drop)
        .map_err(|error| internal("making an account", &error))
}

impl Write for AccountPut {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<AccountRecord, DbError> {
        context.changes_access();
        let Self { account, secret, first } = self;
        exists(connection, &account.namespace)?;
        match login(connection, &account.namespace, &account.id.0) {
            // The same message was sent again.
            Ok(there) => return Ok(there.account),
            Err(DbError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let is_locked = is_locked(connection)?;
        if first && is_locked {
            return Err(DbError::Conflict { message: "the platform has accounts already".to_owned() });
        }
        let is_root = account.namespace == Namespace::default() && account.scopes.include(Scope::Admin);
        if !is_locked && !is_root {
            let message = "the first account must have the scope admin in the namespace default".to_owned();
            return Err(DbError::AdministratorNeeded { message });
        }
        insert_account(connection, &account, &secret)?;
        connection
            .execute("UPDATE access SET locked = 1, setup = NULL", [])
            .map_err(|error| internal("locking the platform", &error))?;
        Ok(account)
    }
}

impl Read for AccountGet {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<AccountRecord, DbError> {
        login(connection, &self.namespace, &self.account).map(|login| login.account)
    }
}

impl Read for AccountList {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<AccountRecord>, DbError> {
        accounts(connection, &self.namespace)
    }
}

impl Write for AccountDelete {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        context.changes_access();
        let unknown = || not_found(Resource::Account, &self.id);
        let found: Option<String> = connection
            .query_row("SELECT namespace FROM accounts WHERE id = ?1", [&*self.id.0], |row| row.get(0))
            .optional()
            .map_err(|error| internal("reading an account", &error))?;
        let namespace: Namespace = found.and_then(|name| name.parse().ok()).ok_or_else(unknown)?;
        let accounts = accounts_with_secrets(connection, &namespace)?;
        let is_admin = |account: &&AccountRecord| account.scopes.include(Scope::Admin);
        let (going, staying): (Vec<_>, Vec<_>) = accounts.iter().filter(is_admin).partition(|one| one.id == self.id);
        if !going.is_empty() && staying.is_empty() {
            let message = format!("{} is the last administrator of the namespace {namespace}", going[0].name);
            return Err(DbError::Conflict { message });
        }
        connection
            .execute("DELETE FROM accounts WHERE id = ?1", [&*self.id.0])
            .map(drop)
            .map_err(|error| internal("deleting an account", &error))
    }
}

impl Read for LoginGet {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<LoginRecord, DbError> {
        login(connection, &self.namespace, &self.account)
    }
}

impl Write for SecretPut {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        context.changes_access();
        let broken = |error| internal("changing a secret", &error);
        let changed = connection
            .execute(
                "UPDATE accounts SET secret = ?2 WHERE id = ?1 AND secret <> '' AND (?3 IS NULL OR secret = ?3)",
                (&*self.id.0, &self.secret.0, self.proven.as_ref().map(|proven| &proven.0)),
            )
            .map_err(broken)?;
        if changed == 0 {
            return Err(not_found(Resource::Account, &self.id));
        }
        connection.execute("DELETE FROM sessions WHERE account = ?1", [&*self.id.0]).map_err(broken)?;
        if self.ends_keys {
            connection.execute("DELETE FROM api_keys WHERE account = ?1", [&*self.id.0]).map_err(broken)?;
        }
        Ok(())
    }
}
