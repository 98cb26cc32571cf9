//! Accounts, and the secrets of those who sign in without a provider.

use faena_auth::{AccountId, Scope, Scopes};
use faena_domain::{AccountName, Namespace, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{AccountDelete, AccountGet, AccountList, AccountPut, LoginGet, Resource, SecretPut};
use faena_protocol::records::{AccountRecord, LoginRecord, SecretHash};
use rusqlite::{Connection, OptionalExtension, Row};

use super::access::{is_locked, namespace_quota};
use super::internal;
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, Text, not_found};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    write::<AccountPut>(),
    read::<AccountGet>(),
    read::<AccountList>(),
    write::<AccountDelete>(),
    read::<LoginGet>(),
    write::<SecretPut>(),
];

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
        namespace_quota(connection, &account.namespace)?;
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
