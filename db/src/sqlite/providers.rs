//! Identity providers, and who signs in with them.

use faena_auth::{AccountId, CredentialKind};
use faena_domain::Namespace;
use faena_domain::config::SecretText;
use faena_protocol::DbError;
use faena_protocol::db::{
    IdentityRefused, IdentitySignIn, ProviderDelete, ProviderGet, ProviderList, ProviderPut, Put, Resource,
};
use faena_protocol::records::{AccountRecord, ProviderLogin, ProviderRecord, SecretHash};
use rusqlite::{Connection, OptionalExtension, Params};

use super::access::{is_locked, namespace_quota};
use super::accounts::{ACCOUNT, account_record, insert_account};
use super::credentials::begin_session;
use super::internal;
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, not_found};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    write::<ProviderPut>(),
    read::<ProviderGet>(),
    read::<ProviderList>(),
    write::<ProviderDelete>(),
    write::<IdentityRefused>(),
    write::<IdentitySignIn>(),
];

/// The most providers.
const MAX_PROVIDERS: u64 = 100;

impl Write for ProviderPut {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Put<ProviderRecord>, DbError> {
        let Self { provider, client_secret } = self;
        let key = provider.name.key();
        let broken = |error| internal("writing a provider", &error);
        let before: Option<Json<ProviderRecord>> = connection
            .query_row("SELECT provider FROM providers WHERE key = ?1", [&key], |row| row.get(0))
            .optional()
            .map_err(broken)?;
        let of = |provider: &ProviderRecord| {
            (provider.issuer.clone(), provider.client_id.clone(), provider.mappings.clone())
        };
        if before.is_some_and(|Json(before)| of(&before) != of(&provider)) {
            end_access(connection, "provider = ?1", [&key]).map_err(broken)?;
            context.changes_access();
        }
        let (others, is_there): (u64, bool) = connection
            .query_row("SELECT count(*), coalesce(max(key = ?1), 0) FROM providers", [&key], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .map_err(broken)?;
        if !is_there && others >= MAX_PROVIDERS {
            let message = format!("there are {MAX_PROVIDERS} providers, which is the most");
            return Err(DbError::Conflict { message });
        }
        let secret = client_secret.map(|SecretText(text)| text);
        connection
            .execute(
                "INSERT INTO providers (key, provider, secret, created_at)
                 VALUES (?1, ?2, iif(?3 IS NULL, NULL, seal('', 'providers/' || ?1, coalesce(?3, ''))), ?4)
                 ON CONFLICT DO UPDATE SET provider = excluded.provider, secret = excluded.secret, created_at = excluded.created_at",
                (&key, Json(&provider), secret, provider.created_at.0),
            )
            .map_err(broken)?;
        Ok(Put { record: provider, created: !is_there })
    }
}

impl Read for ProviderGet {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<ProviderLogin, DbError> {
        type Found = (Json<ProviderRecord>, bool, Option<String>);
        let found: Option<Found> = connection
            .prepare_cached(
                "SELECT provider, secret IS NOT NULL, iif(secret IS NULL, NULL, unseal('', 'providers/' || key, coalesce(secret, x'')))
                 FROM providers WHERE key = ?1",
            )
            .and_then(|mut statement| {
                statement.query_row([self.name.key()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()
            })
            .map_err(|error| internal("reading a provider", &error))?;
        let (Json(provider), is_sealed, secret) = found.ok_or_else(|| not_found(Resource::Provider, &self.name))?;
        if is_sealed && secret.is_none() {
            let message = format!(
                "the client secret of the provider {} cannot be opened with the keys of this platform: put the provider again",
                self.name
            );
            return Err(DbError::Conflict { message });
        }
        Ok(ProviderLogin { provider, client_secret: secret.map(SecretText) })
    }
}

/// All providers, by name.
fn providers(connection: &Connection) -> rusqlite::Result<Vec<ProviderRecord>> {
    let mut statement = connection.prepare_cached("SELECT provider FROM providers ORDER BY key")?;
    statement.query_map([], |row| Ok(row.get::<_, Json<ProviderRecord>>(0)?.0))?.collect()
}

impl Read for ProviderList {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<ProviderRecord>, DbError> {
        providers(connection).map_err(|error| internal("listing providers", &error))
    }
}

/// Removes the mappings of all providers to a namespace. An identity that has others signs in by those.
pub(super) fn remove_mappings(connection: &Connection, namespace: &Namespace) -> rusqlite::Result<()> {
    for mut provider in providers(connection)? {
        let before = provider.mappings.len();
        provider.mappings.retain(|mapping| mapping.namespace != *namespace);
        if provider.mappings.len() < before {
            connection
                .execute("UPDATE providers SET provider = ?2 WHERE key = ?1", (provider.name.key(), Json(&provider)))?;
        }
    }
    Ok(())
}

/// Ends the sessions and keys of the identities that a condition selects.
fn end_access(connection: &Connection, condition: &str, params: impl Params + Clone) -> rusqlite::Result<()> {
    for table in ["sessions", "api_keys"] {
        let sql = format!("DELETE FROM {table} WHERE account IN (SELECT account FROM identities WHERE {condition})");
        connection.execute(&sql, params.clone())?;
    }
    Ok(())
}

impl Write for IdentityRefused {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        let key = (self.provider.key(), &self.issuer, &self.subject);
        end_access(connection, "provider = ?1 AND issuer = ?2 AND subject = ?3", key)
            .map_err(|error| internal("ending the access of an identity", &error))?;
        context.changes_access();
        Ok(())
    }
}

impl Write for ProviderDelete {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        let key = self.name.key();
        let delete = || -> rusqlite::Result<usize> {
            end_access(connection, "provider = ?1", [&key])?;
            connection.execute("DELETE FROM providers WHERE key = ?1", [&key])
        };
        let gone = delete().map_err(|error| internal("deleting a provider", &error))?;
        if gone == 0 {
            return Err(not_found(Resource::Provider, &self.name));
        }
        context.changes_access();
        Ok(())
    }
}

/// The account of an identity in a namespace.
fn account_of(connection: &Connection, sign_in: &IdentitySignIn) -> rusqlite::Result<Option<AccountRecord>> {
    connection
        .prepare_cached(&format!(
            "SELECT {ACCOUNT} FROM identities i JOIN accounts a ON a.id = i.account
             WHERE i.issuer = ?1 AND i.subject = ?2 AND i.namespace = ?3"
        ))?
        .query_row((&sign_in.issuer, &sign_in.subject, sign_in.account.namespace.as_str()), account_record)
        .optional()
}

/// The account under a name that is free: someone may have taken the name that it would have.
fn with_free_name(connection: &Connection, account: AccountRecord) -> Result<AccountRecord, DbError> {
    let broken = |error| internal("looking for a name", &error);
    let is_taken: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM accounts WHERE namespace = ?1 AND key = ?2)")
        .and_then(|mut statement| {
            statement.query_row((account.namespace.as_str(), account.name.key()), |row| row.get(0))
        })
        .map_err(broken)?;
    if !is_taken {
        return Ok(account);
    }
    // Ids are random.
    let short: String = account.id.0.chars().take(8).collect();
    match format!("{}-{short}", account.name).parse() {
        Ok(name) => Ok(AccountRecord { name, ..account }),
        Err(_) => Err(DbError::Conflict { message: format!("the name {} is taken", account.name) }),
    }
}

impl Write for IdentitySignIn {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<AccountRecord, DbError> {
        let broken = |error| internal("signing in an identity", &error);
        let key = self.provider.key();
        let is_there: bool = connection
            .query_row("SELECT EXISTS (SELECT 1 FROM providers WHERE key = ?1)", [&key], |row| row.get(0))
            .map_err(broken)?;
        if !is_there {
            return Err(not_found(Resource::Provider, &self.provider));
        }
        if !is_locked(connection)? {
            let message = "the platform has no account yet: make an administrator with a secret first".to_owned();
            return Err(DbError::Conflict { message });
        }
        namespace_quota(connection, &self.account.namespace)?;
        context.changes_access();
        let account = match account_of(connection, &self).map_err(broken)? {
            Some(account) => {
                connection
                    .execute(
                        "UPDATE accounts SET scopes = ?2, metadata = ?3 WHERE id = ?1",
                        (&*account.id.0, Json(&self.account.scopes), Json(&self.account.metadata)),
                    )
                    .map_err(broken)?;
                let AccountRecord { scopes, metadata, .. } = self.account;
                AccountRecord { scopes, metadata, ..account }
            }
            None => {
                let account = with_free_name(connection, self.account)?;
                insert_account(connection, &account, &SecretHash(String::new()))?;
                account
            }
        };
        let AccountId(id) = &account.id;
        connection
            .execute(
                "INSERT INTO identities (issuer, subject, namespace, account, provider, signed_in_at, keys_end_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT DO UPDATE SET provider = ?5, signed_in_at = ?6, keys_end_at = ?7",
                (
                    &self.issuer,
                    &self.subject,
                    account.namespace.as_str(),
                    &**id,
                    &key,
                    context.wall,
                    self.keys_end_at.0,
                ),
            )
            .and_then(|_| {
                begin_session(
                    connection,
                    context,
                    (&self.session, id, self.cookie.expires_at),
                    &[(CredentialKind::Cookie, &self.cookie)],
                )
            })
            .map_err(broken)?;
        Ok(account)
    }
}
