//! Callbacks: written with the end that they tell of, taken for a few minutes at a time, given up after eight tries.

use faena_domain::retry::pause_ms;
use faena_domain::{CallNum, Namespace, Payload};
use faena_protocol::DbError;
use faena_protocol::db::{CallbackFinish, CallbackPostpone, CallbacksDue, CallbacksTake};
use faena_protocol::records::{CallRecord, Callback, CallbackJob};
use rusqlite::{Connection, Row};

use super::internal;
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, Text};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] =
    &[read::<CallbacksDue>(), write::<CallbacksTake>(), write::<CallbackPostpone>(), write::<CallbackFinish>()];

/// How often a callback is tried.
const TRIES: u32 = 8;
/// How long an api that took a callback may take to report how it went.
const TAKEN_MS: i64 = 180_000;
/// What the calls of one answer may hold together: they travel in one message.
const TAKEN_BYTES: usize = 1024 * 1024;

/// Notes that somebody is to be told of a call's end. Without its function nobody could tell who signs.
pub(super) fn announce(connection: &Connection, num: CallNum, now: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO callbacks (num, due_at, secret, status)
             SELECT c.num, ?2, coalesce(f.secret, ''), iif(f.secret IS NULL, 'UNDELIVERED', 'WAITING')
             FROM calls c LEFT JOIN functions f ON f.namespace = c.namespace AND f.key = c.function
             WHERE c.num = ?1",
        )?
        .execute((num.0, now))
        .map(drop)
}

/// How long a callback waits whose host has as many tries under way as it may.
const POSTPONED_MS: i64 = 2000;

impl Read for CallbacksDue {
    fn read(self, connection: &Connection, context: &RequestContext<'_>) -> Result<bool, DbError> {
        connection
            .prepare_cached("SELECT 1 FROM callbacks WHERE status = 'WAITING' AND due_at <= ?1 LIMIT 1")
            .and_then(|mut statement| statement.exists([context.now]))
            .map_err(|error| internal("looking for callbacks", &error))
    }
}

struct Due {
    num: i64,
    tries: u32,
    callback: Callback,
    /// None where it cannot be opened.
    secret: Option<String>,
    bytes: usize,
    namespace: Namespace,
}

fn due(row: &Row<'_>) -> rusqlite::Result<Due> {
    let Json(callback) = row.get(2)?;
    let Text(namespace) = row.get(5)?;
    Ok(Due { num: row.get(0)?, tries: row.get(1)?, callback, secret: row.get(3)?, bytes: row.get(4)?, namespace })
}

fn take(connection: &Connection, limit: u32, now: i64) -> rusqlite::Result<Vec<Due>> {
    let mut found: Vec<Due> = connection
        .prepare_cached(
            "SELECT b.num, b.tries + 1, c.callback, unseal(c.namespace, 'callbacks/' || c.function, unhex(b.secret)),
                 length(c.spec) + length(c.result) + length(c.attempts), c.namespace
             FROM callbacks b JOIN calls c ON c.num = b.num
             WHERE b.status = 'WAITING' AND b.due_at <= ?1 ORDER BY b.due_at LIMIT ?2",
        )?
        .query_map((now, limit), due)?
        .collect::<Result<_, _>>()?;
    let mut bytes = 0;
    // The first always fits.
    found.retain(|due| {
        let fits = bytes == 0 || bytes + due.bytes <= TAKEN_BYTES;
        bytes += due.bytes;
        fits
    });
    let mut statement = connection.prepare_cached("UPDATE callbacks SET tries = ?2, due_at = ?3 WHERE num = ?1")?;
    for callback in &found {
        statement.execute((callback.num, callback.tries, now + TAKEN_MS))?;
    }
    Ok(found)
}

/// Gives a callback up that nobody can sign.
fn give_up(connection: &Connection, num: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE callbacks SET status = 'UNDELIVERED', error = ?2 WHERE num = ?1")?
        .execute((num, "the secret that signs it cannot be opened with the keys of this platform"))
        .map(drop)
}

fn call(connection: &Connection, num: i64) -> rusqlite::Result<CallRecord> {
    let sql = format!("SELECT {} FROM calls WHERE num = ?1", super::call_rows::COLUMNS);
    connection.prepare_cached(&sql)?.query_row([num], super::call_rows::record)
}

impl Write for CallbacksTake {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Vec<CallbackJob>, DbError> {
        let broken = |error| internal("taking callbacks", &error);
        let mut jobs = Vec::new();
        for Due { num, tries, callback, secret, namespace, .. } in
            take(connection, self.limit, context.now).map_err(broken)?
        {
            let Some(secret) = secret else {
                give_up(connection, num).map_err(broken)?;
                continue;
            };
            let mut call = call(connection, num).map_err(broken)?;
            call.logs = Payload::empty();
            jobs.push(CallbackJob { namespace, call, callback, secret, tries });
        }
        Ok(jobs)
    }
}

impl Write for CallbackPostpone {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        connection
            .prepare_cached(
                "UPDATE callbacks SET tries = tries - 1, due_at = ?3 WHERE num = ?1 AND tries = ?2 AND status = 'WAITING'",
            )
            .and_then(|mut statement| statement.execute((self.num.0, self.tries, context.now + POSTPONED_MS)))
            .map(drop)
            .map_err(|error| internal("giving a callback back", &error))
    }
}

impl Write for CallbackFinish {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        let pause = i64::try_from(pause_ms(self.tries, context.uniform())).unwrap_or(0);
        let status = match &self.error {
            None => "DELIVERED",
            Some(_) if self.tries >= TRIES => "UNDELIVERED",
            Some(_) => "WAITING",
        };
        connection
            .prepare_cached(
                "UPDATE callbacks SET status = ?3, due_at = ?4, error = ?5 WHERE num = ?1 AND tries = ?2 AND status = 'WAITING'",
            )
            .and_then(|mut statement| {
                statement.execute((self.num.0, self.tries, status, context.now + pause, &self.error))
            })
            .map(drop)
            .map_err(|error| internal("ending a callback", &error))
    }
}
