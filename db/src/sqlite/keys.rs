//! Idempotency keys: the same request is the same call.

use faena_domain::CallNum;
use faena_protocol::DbError;
use faena_protocol::records::{CallSpec, IdempotencyKey};
use rusqlite::{Connection, OptionalExtension};

use super::internal;
use super::requests::RequestContext;
use super::rows::Text;

/// How long a key lives at least: a day.
const LIFE_MS: i64 = 24 * 3600 * 1000;
/// The most keys of one function: ten for each call that may wait.
const MAX_KEYS: i64 = 100_000;

/// A key as it is kept: it belongs to the account that sent it. Visible characters alone are in a key, so no key of one
/// account is that of another.
fn kept(spec: &CallSpec) -> Option<(&IdempotencyKey, String)> {
    let key = spec.key.as_ref()?;
    let text = spec.account.as_ref().map_or_else(|| key.key.clone(), |account| format!("{account} {}", key.key));
    Some((key, text))
}

/// The call that was accepted with the same key.
///
/// # Errors
/// [`DbError::KeyReused`] where the key stood for another request.
pub(super) fn earlier(connection: &Connection, spec: &CallSpec) -> Result<Option<CallNum>, DbError> {
    let Some((key, text)) = kept(spec) else { return Ok(None) };
    let found: Option<(Text<_>, i64)> = connection
        .prepare_cached("SELECT hash, call FROM keys WHERE namespace = ?1 AND function = ?2 AND key = ?3")
        .and_then(|mut statement| {
            let names = (spec.namespace.as_str(), spec.function.key(), &text);
            statement.query_row(names, |row| Ok((row.get(0)?, row.get(1)?))).optional()
        })
        .map_err(|error| internal("looking for a key", &error))?;
    match found {
        None => Ok(None),
        Some((Text(hash), call)) if key.hash == hash => Ok(Some(CallNum(call))),
        Some(_) => Err(DbError::KeyReused { key: key.key.clone() }),
    }
}

/// Whether one more key of the function may be kept.
///
/// # Errors
/// [`DbError::QueueFull`].
pub(super) fn has_room(connection: &Connection, spec: &CallSpec) -> Result<(), DbError> {
    if spec.key.is_none() {
        return Ok(());
    }
    let count = || -> rusqlite::Result<i64> {
        connection
            .prepare_cached(
                "SELECT count(*) FROM (SELECT 1 FROM keys WHERE namespace = ?1 AND function = ?2 LIMIT ?3)",
            )?
            .query_row((spec.namespace.as_str(), spec.function.key(), MAX_KEYS), |row| row.get(0))
    };
    // Counting is cheap while there are few, and happens for nobody who uses no keys.
    if count().map_err(|error| internal("counting keys", &error))? >= MAX_KEYS {
        let message =
            format!("the function {} has {MAX_KEYS} Idempotency-Keys already, which live a day", spec.function);
        return Err(DbError::QueueFull { message });
    }
    Ok(())
}

/// Keeps the key of a call that is accepted now.
pub(super) fn remember(connection: &Connection, spec: &CallSpec, context: &RequestContext<'_>) -> Result<(), DbError> {
    let Some((key, text)) = kept(spec) else { return Ok(()) };
    connection
        .prepare_cached(
            "INSERT INTO keys (namespace, function, key, hash, call, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .and_then(|mut statement| {
            let expires_at = context.now.saturating_add(LIFE_MS);
            let (namespace, function) = (spec.namespace.as_str(), spec.function.key());
            statement.execute((namespace, function, &text, Text(key.hash), spec.num.0, expires_at))
        })
        .map(drop)
        .map_err(|error| internal("keeping a key", &error))
}
