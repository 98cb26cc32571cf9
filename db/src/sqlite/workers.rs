//! Leases, and what happens to the claims of workers that are gone.
//!
//! Until calls are redelivered, a call whose worker died ends FAILED `infrastructure`; a build begins anew.

use faena_domain::{CallError, CallStatus, ErrorKind, Layer};
use faena_protocol::DbError;
use faena_protocol::db::{LeaseRenew, Reap, Reaped, WorkerJoin};
use rusqlite::Connection;

use super::clock::Clock;
use super::requests::Write;
use super::rows::Json;
use super::{builds, internal};

/// How long a claim holds without being renewed.
pub(super) const LEASE_MS: i64 = 30_000;

/// After a start every lease gets its full length: nobody could renew while we were away.
pub(super) fn grant_grace(connection: &Connection, now: i64) -> rusqlite::Result<()> {
    connection.execute("UPDATE calls SET lease_end = ?1 WHERE status = 'RUNNING'", [now + LEASE_MS])?;
    connection.execute("UPDATE versions SET lease_end = ?1 WHERE status = 'BUILDING'", [now + LEASE_MS])?;
    Ok(())
}

fn fail_lost(
    connection: &Connection,
    condition: &str,
    params: &[&dyn rusqlite::ToSql],
    now: i64,
) -> rusqlite::Result<u64> {
    let error = CallError::new(
        ErrorKind::Infrastructure,
        Layer::Run,
        "the worker that ran this call was lost before it could tell the end; call again",
    );
    let mut statement = connection.prepare_cached(&format!(
        "UPDATE calls SET status = '{}', error = ?1, ended_at = ?2 WHERE status = 'RUNNING' AND {condition}",
        CallStatus::Failed.as_str()
    ))?;
    let error = Json(error);
    let all: Vec<&dyn rusqlite::ToSql> =
        [&error as &dyn rusqlite::ToSql, &now].into_iter().chain(params.iter().copied()).collect();
    Ok(statement.execute(all.as_slice())? as u64)
}

impl Write for WorkerJoin {
    fn write(self, connection: &Connection, now: i64) -> Result<(), DbError> {
        let owner = &self.owner;
        let ended = || -> rusqlite::Result<()> {
            fail_lost(connection, "worker = ?3 AND incarnation <> ?4", &[&owner.worker, &owner.incarnation], now)?;
            builds::redeliver(
                connection,
                "worker = ?1 AND incarnation <> ?2",
                (&owner.worker, &owner.incarnation),
                now,
            )?;
            Ok(())
        };
        ended().map_err(|error| internal("ending the claims of an earlier incarnation", &error))
    }
}

impl Write for LeaseRenew {
    fn write(self, connection: &Connection, now: i64) -> Result<(), DbError> {
        let renew = || -> rusqlite::Result<()> {
            let mut calls = connection.prepare_cached(
                "UPDATE calls SET lease_end = ?4 WHERE num = ?1 AND status = 'RUNNING' AND worker = ?2 AND incarnation = ?3",
            )?;
            for call in &self.calls {
                calls.execute((call.0, &self.owner.worker, &self.owner.incarnation, now + LEASE_MS))?;
            }
            let mut builds = connection.prepare_cached(
                "UPDATE versions SET lease_end = ?6 WHERE namespace = ?1 AND function = ?2 AND version = ?3
                 AND status = 'BUILDING' AND worker = ?4 AND incarnation = ?5",
            )?;
            for build in &self.builds {
                let key = (build.namespace.as_str(), build.function.key(), build.version.0);
                builds.execute((key.0, key.1, key.2, &self.owner.worker, &self.owner.incarnation, now + LEASE_MS))?;
            }
            Ok(())
        };
        renew().map_err(|error| internal("renewing leases", &error))
    }
}

impl Write for Reap {
    fn write(self, connection: &Connection, now: i64) -> Result<Reaped, DbError> {
        let reap = || -> rusqlite::Result<Reaped> {
            Clock::keep(connection, now)?;
            Ok(Reaped {
                lost: fail_lost(connection, "lease_end < ?3", &[&now], now)?,
                expired: expire(connection, now)?,
                builds: builds::redeliver(connection, "lease_end < ?1", [now], now)?,
            })
        };
        reap().map_err(|error| internal("judging leases and ages", &error))
    }
}

/// Ends the calls whose age has run out, and says what they waited for.
fn expire(connection: &Connection, now: i64) -> rusqlite::Result<u64> {
    let expired = |layer, what: &str| {
        Json(CallError::new(
            ErrorKind::Expired,
            layer,
            format!("the call reached its maxAgeMs while it waited for {what}"),
        ))
    };
    let count = connection
        .prepare_cached(
            "UPDATE calls SET status = 'EXPIRED', ended_at = ?1, error = CASE WHEN EXISTS
                 (SELECT 1 FROM versions v WHERE v.namespace = calls.namespace AND v.function = calls.function
                  AND v.version = calls.version AND v.status = 'READY') THEN ?2 ELSE ?3 END
             WHERE status = 'PENDING' AND expires_at <= ?1",
        )?
        .execute((now, expired(Layer::Queue, "a slot"), expired(Layer::Build, "its version's build")))?;
    Ok(count as u64)
}
