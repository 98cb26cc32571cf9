//! Leases, and what happens to the claims of workers that are gone.

use faena_domain::CallNum;
use faena_domain::build_queue::{BuildEvent, Said};
use faena_domain::lease::LEASE_MS;
use faena_domain::queue::Event;
use faena_protocol::DbError;
use faena_protocol::db::{LeaseRenew, Reap, Reaped, Renewed, WorkerJoin};
use rusqlite::Connection;

use super::clock::Clock;
use super::queue::{TransitionContext, apply};
use super::requests::{Request, RequestContext, Write, check_claims, write};
use super::{builds, call_rows, function_queues, internal, nodes, retention};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[write::<WorkerJoin>(), write::<LeaseRenew>(), write::<Reap>()];

/// The most calls that one reaping ends; the rest is a second later.
const BATCH: u32 = 1000;

/// After a start, a stall or a resume every lease gets its full length: nobody could renew while we were away. This is
/// `Event::Restarted` for all rows at once.
pub(super) fn grant_grace(connection: &Connection, now: i64) -> rusqlite::Result<()> {
    connection.execute("UPDATE calls SET lease_end = ?1 WHERE status = 'RUNNING'", [now + LEASE_MS])?;
    connection.execute("UPDATE versions SET lease_end = ?1 WHERE status = 'BUILDING'", [now + LEASE_MS])?;
    Ok(())
}

/// Takes the same step with many calls; how many took it.
fn step_all(
    connection: &Connection,
    calls: Vec<CallNum>,
    event: &Event,
    context: &RequestContext<'_>,
) -> Result<u64, DbError> {
    let mut count = 0;
    for num in calls {
        count += u64::from(apply(connection, num, event, context, TransitionContext::default())?.is_some());
    }
    Ok(count)
}

impl Write for WorkerJoin {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        let owner = &self.owner;
        let held = "SELECT num FROM calls WHERE status = 'RUNNING' AND worker = ?1 AND incarnation <> ?2";
        let calls = call_rows::numbers(connection, held, (&owner.worker, &owner.incarnation))?;
        step_all(connection, calls, &Event::OwnerDied { successor: owner.clone() }, context)?;
        builds::lose(connection, "worker = ?1 AND incarnation <> ?2", (&owner.worker, &owner.incarnation), context)?;
        nodes::begin_run(connection, owner, self.is_member, context.wall)
    }
}

impl Write for LeaseRenew {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Renewed, DbError> {
        check_claims(self.calls.len() + self.builds.len())?;
        let mut renewed = Renewed::default();
        for (num, epoch) in self.calls {
            let event = Event::Renew { epoch, owner: self.owner.clone() };
            match apply(connection, num, &event, context, TransitionContext::default()) {
                Ok(Some(_)) => {}
                Ok(None) | Err(DbError::NotFound { .. }) => renewed.stale_calls.push((num, epoch)),
                Err(error) => return Err(error),
            }
        }
        for (build, epoch) in self.builds {
            let event = BuildEvent::Of { epoch, owner: self.owner.clone(), said: Said::Renew };
            if builds::apply(connection, &build, &event, context)?.is_err() {
                renewed.stale_builds.push((build, epoch));
            }
        }
        Ok(renewed)
    }
}

impl Write for Reap {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Reaped, DbError> {
        let now = context.now;
        let broken = |error| internal("judging leases and ages", &error);
        Clock::keep(connection, now).map_err(broken)?;
        function_queues::promote(connection, context).map_err(broken)?;
        let lost = "SELECT num FROM calls WHERE status = 'RUNNING' AND lease_end < ?1 LIMIT ?2";
        let old = "SELECT num FROM calls WHERE status = 'PENDING' AND run_at IS NULL AND expires_at <= ?1 LIMIT ?2";
        Ok(Reaped {
            lost: step_all(connection, call_rows::numbers(connection, lost, (now, BATCH))?, &Event::Tick, context)?,
            expired: step_all(connection, call_rows::numbers(connection, old, (now, BATCH))?, &Event::Tick, context)?,
            builds: builds::lose(connection, "lease_end < ?1", [now], context)?,
            forgotten: retention::forget(connection, context)?,
        })
    }
}
