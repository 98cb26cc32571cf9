//! Tokens of sessions, and keys.

use faena_auth::{AccountId, CredentialHash, CredentialKind, Scopes};
use faena_domain::{KeyName, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{
    CredentialGet, KeyDelete, KeyList, KeyPut, KeysUsed, Refreshed, Resource, Seen, SessionBegin, SessionEnd,
    SessionRefresh,
};
use faena_protocol::records::{AccountRecord, CredentialRecord, KeyRecord, TokenRecord};
use rusqlite::{Connection, OptionalExtension, Row};

use super::accounts::{ACCOUNT, account_record};
use super::internal;
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, Text, not_found};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    read::<CredentialGet>(),
    write::<SessionBegin>(),
    write::<SessionRefresh>(),
    write::<SessionEnd>(),
    write::<KeyPut>(),
    read::<KeyList>(),
    write::<KeyDelete>(),
    write::<KeysUsed>(),
];

const DAY_MS: i64 = 24 * 3600 * 1000;
/// Later than any instant.
const NEVER: i64 = i64::MAX;
/// The most sessions of an account.
const MAX_SESSIONS: u32 = 100;
/// The most tokens of a session: more than one that is refreshed every ten minutes needs.
const MAX_TOKENS: u32 = 10_000;
/// The most keys of an account.
const MAX_KEYS: u64 = 100;

fn credential(row: &Row<'_>) -> rusqlite::Result<CredentialRecord> {
    Ok(CredentialRecord {
        kind: row.get::<_, Text<CredentialKind>>("credential")?.0,
        hash: row.get::<_, Text<CredentialHash>>("hash")?.0,
        expires_at: row.get::<_, Option<i64>>("expires_at")?.map(Timestamp),
        scopes: row.get::<_, Option<Json<Scopes>>>("own_scopes")?.map(|Json(scopes)| scopes),
        session: row.get("session")?,
        session_ends_at: row.get::<_, Option<i64>>("session_ends_at")?.map(Timestamp),
        account: account_record(row)?,
    })
}

impl Read for CredentialGet {
    fn read(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Seen<CredentialRecord>, DbError> {
        let id = self.id.to_string();
        let record = connection
            .prepare_cached(&format!(
                "SELECT {ACCOUNT}, t.kind AS credential, t.hash AS hash, min(t.expires_at, s.ends_at) AS expires_at, NULL AS own_scopes, s.id AS session,
                     s.ends_at AS session_ends_at
                 FROM tokens t JOIN sessions s ON s.id = t.session JOIN accounts a ON a.id = s.account WHERE t.id = ?1
                 UNION ALL
                 SELECT {ACCOUNT}, 'key', k.hash, nullif(min(coalesce(k.expires_at, {NEVER}), coalesce(i.keys_end_at, {NEVER})), {NEVER}),
                     k.scopes, NULL, NULL
                 FROM api_keys k JOIN accounts a ON a.id = k.account LEFT JOIN identities i ON i.account = a.id WHERE k.id = ?1"
            ))
            .and_then(|mut statement| statement.query_row([&id], credential).optional())
            .map_err(|error| internal("reading a credential", &error))?
            .ok_or_else(|| not_found(Resource::Credential, &id))?;
        Ok(Seen { seen: context.access_seen, record })
    }
}

/// The tokens of a session, each with what it is for.
type Tokens<'a> = [(CredentialKind, &'a TokenRecord)];

fn insert_tokens(connection: &Connection, session: &str, tokens: &Tokens<'_>) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO tokens (id, session, kind, hash, expires_at) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
    )?;
    for (kind, token) in tokens {
        statement.execute((token.id.to_string(), session, Text(kind), Text(&token.hash), token.expires_at.0))?;
    }
    Ok(())
}

fn is_token(connection: &Connection, token: &TokenRecord) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM tokens WHERE id = ?1)", [token.id.to_string()], |row| row.get(0))
}

/// Begins a session: its id, its account and its end. Of too many of one account the oldest ends.
pub(super) fn begin_session(
    connection: &Connection,
    context: &RequestContext<'_>,
    (session, account, ends_at): (&str, &str, Timestamp),
    tokens: &Tokens<'_>,
) -> rusqlite::Result<()> {
    connection.execute(
        "INSERT INTO sessions (id, account, began_at, ends_at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
        (session, account, context.wall, ends_at.0),
    )?;
    let ended = connection.execute(
        "DELETE FROM sessions WHERE account = ?1 AND id IN
             (SELECT id FROM sessions WHERE account = ?1 ORDER BY began_at DESC, id LIMIT -1 OFFSET ?2)",
        (account, MAX_SESSIONS),
    )?;
    if ended > 0 {
        context.changes_access();
    }
    insert_tokens(connection, session, tokens)
}

impl Write for SessionBegin {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        let broken = |error| internal("beginning a session", &error);
        // The same message was sent again.
        if is_token(connection, &self.access).map_err(broken)? {
            return Ok(());
        }
        let account = &*self.account.0;
        // The secret that was proven may have been changed meanwhile.
        let is_there: bool = connection
            .query_row(
                "SELECT EXISTS (SELECT 1 FROM accounts WHERE id = ?1 AND secret = ?2)",
                (account, &self.proven.0),
                |row| row.get(0),
            )
            .map_err(broken)?;
        if !is_there {
            return Err(not_found(Resource::Account, account));
        }
        let tokens = [(CredentialKind::Access, &self.access), (CredentialKind::Refresh, &self.refresh)];
        begin_session(connection, context, (&self.session, account, self.ends_at), &tokens).map_err(broken)
    }
}

/// A session whose token is exchanged, and the token that it was exchanged for before.
fn session_of(
    connection: &Connection,
    token: &str,
) -> rusqlite::Result<Option<(String, Option<String>, AccountRecord)>> {
    connection
        .prepare_cached(&format!(
            "SELECT {ACCOUNT}, s.id AS session, t.successor AS successor FROM tokens t
             JOIN sessions s ON s.id = t.session JOIN accounts a ON a.id = s.account WHERE t.id = ?1"
        ))?
        .query_row([token], |row| Ok((row.get("session")?, row.get("successor")?, account_record(row)?)))
        .optional()
}

impl Write for SessionRefresh {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Refreshed, DbError> {
        let broken = |error| internal("exchanging a token", &error);
        let used = self.used.to_string();
        let found = session_of(connection, &used).map_err(broken)?;
        let (session, successor, account) = found.ok_or_else(|| not_found(Resource::Credential, &used))?;
        let next = self.refresh.id.to_string();
        match successor {
            // The same message was sent again.
            Some(successor) if successor == next => return Ok(Refreshed::Done(Box::new(account))),
            Some(_) => {
                context.changes_access();
                connection.execute("DELETE FROM sessions WHERE id = ?1", [&session]).map_err(broken)?;
                return Ok(Refreshed::Reused);
            }
            None => {}
        }
        let tokens: u32 = connection
            .query_row("SELECT count(*) FROM tokens WHERE session = ?1", [&session], |row| row.get(0))
            .map_err(broken)?;
        if tokens >= MAX_TOKENS {
            context.changes_access();
            connection.execute("DELETE FROM sessions WHERE id = ?1", [&session]).map_err(broken)?;
            return Ok(Refreshed::Reused);
        }
        let exchange = || {
            connection.execute("UPDATE tokens SET successor = ?2 WHERE id = ?1", (&used, &next))?;
            let tokens = [(CredentialKind::Access, &self.access), (CredentialKind::Refresh, &self.refresh)];
            insert_tokens(connection, &session, &tokens)
        };
        exchange().map_err(broken)?;
        Ok(Refreshed::Done(Box::new(account)))
    }
}

impl Write for SessionEnd {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        connection
            .execute("DELETE FROM sessions WHERE id = ?1", [&self.session])
            .map(|ended| {
                if ended > 0 {
                    context.changes_access();
                }
            })
            .map_err(|error| internal("ending a session", &error))
    }
}

fn key_record(row: &Row<'_>) -> rusqlite::Result<KeyRecord> {
    Ok(KeyRecord {
        id: row.get::<_, Text<_>>(0)?.0,
        name: row.get::<_, Text<KeyName>>(1)?.0,
        account: AccountId(row.get::<_, String>(2)?.into()),
        scopes: row.get::<_, Json<Scopes>>(3)?.0,
        created_at: Timestamp(row.get(4)?),
        expires_at: row.get::<_, Option<i64>>(5)?.map(Timestamp),
        last_used_at: row.get::<_, Option<i64>>(6)?.map(Timestamp),
    })
}

fn keys(connection: &Connection, account: &AccountId) -> Result<Vec<KeyRecord>, DbError> {
    connection
        .prepare_cached(
            "SELECT id, name, account, scopes, created_at, expires_at, used_at FROM api_keys WHERE account = ?1 ORDER BY key",
        )
        .and_then(|mut statement| statement.query_map([&*account.0], key_record)?.collect())
        .map_err(|error| internal("listing keys", &error))
}

impl Write for KeyPut {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<KeyRecord, DbError> {
        let Self { key, hash } = self;
        let there = keys(connection, &key.account)?;
        match there.iter().find(|other| other.name == key.name) {
            // The same message was sent again.
            Some(same) if same.id == key.id => return Ok(same.clone()),
            Some(_) => {
                let message = format!("the account has a key {} already", key.name);
                return Err(DbError::Conflict { message });
            }
            None => {}
        }
        if there.len() as u64 >= MAX_KEYS {
            return Err(DbError::Conflict { message: format!("the account has {MAX_KEYS} keys, which is the most") });
        }
        let row = (
            key.id.to_string(),
            &*key.account.0,
            key.name.key(),
            key.name.as_str(),
            Json(&key.scopes),
            Text(&hash),
            key.created_at.0,
            key.expires_at.map(|at| at.0),
        );
        connection
            .execute(
                "INSERT INTO api_keys (id, account, key, name, scopes, hash, created_at, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                row,
            )
            .map_err(|error| internal("making a key", &error))?;
        Ok(key)
    }
}

impl Read for KeyList {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<KeyRecord>, DbError> {
        keys(connection, &self.account)
    }
}

impl Write for KeyDelete {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        let id = self.id.to_string();
        let gone = connection
            .execute("DELETE FROM api_keys WHERE account = ?1 AND id = ?2", (&*self.account.0, &id))
            .map_err(|error| internal("deleting a key", &error))?;
        if gone == 0 {
            return Err(not_found(Resource::Key, &id));
        }
        context.changes_access();
        Ok(())
    }
}

impl Write for KeysUsed {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<(), DbError> {
        let note = || -> rusqlite::Result<()> {
            let mut statement = connection
                .prepare_cached("UPDATE api_keys SET used_at = max(coalesce(used_at, 0), ?2) WHERE id = ?1")?;
            self.uses.iter().try_for_each(|used| statement.execute((used.id.to_string(), used.at.0)).map(drop))
        };
        note().map_err(|error| internal("noting when keys were used", &error))
    }
}

/// Forgets tokens and sessions that have ended.
pub(super) fn forget(connection: &Connection, now: i64) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM sessions WHERE ends_at <= ?1")?.execute([now])?;
    // A token that was exchanged is kept as long as its session: it may come back. One for access is known for a day longer:
    // what it began goes on with its session.
    connection.prepare_cached("DELETE FROM tokens WHERE expires_at <= ?1")?.execute([now - DAY_MS]).map(drop)
}
