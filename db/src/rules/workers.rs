//! Leases, and what happens to the claims of workers that are gone.

use faena_domain::CallNum;
use faena_domain::build_queue::{BuildEvent, Said};
use faena_domain::lease::LEASE_MS;
use faena_domain::queue::Event;
use faena_protocol::db::{LeaseRenew, Reap, Reaped, Renewed, WorkerJoin};

use super::transitions::{Cause, Step, apply_all, apply_same};
use super::{Request, RequestContext, RuleResult, Write, builds, check_claims, nodes, retention, write};
use crate::tx::{CallSelection, StoreResult, Tx};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[write::<WorkerJoin>(), write::<LeaseRenew>(), write::<Reap>()];

/// The most calls that one reaping ends; the rest follow a second later.
const BATCH: u32 = 1000;

/// After a start, a stall or a resume every lease gets its full length: no worker could renew while the database was away. This is
/// `Event::Restarted` for all rows at once.
pub(crate) fn grant_grace(tx: &dyn Tx, now: i64) -> StoreResult<()> {
    tx.set_all_leases(now + LEASE_MS)
}

/// Takes the same step with many calls; how many took it.
fn step_all(tx: &dyn Tx, context: &RequestContext<'_>, calls: Vec<CallNum>, event: &Event) -> RuleResult<u64> {
    apply_same(tx, context, &calls, event, &Cause::default())
}

impl Write for WorkerJoin {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        let owner = &self.owner;
        let held = tx.select_calls(CallSelection::OfEarlierRuns(owner))?;
        step_all(tx, context, held, &Event::OwnerDied { successor: owner.clone() })?;
        builds::lose(tx, &tx.builds_of_earlier_runs(owner)?, context)?;
        nodes::begin_run(tx, owner, self.is_member, context.wall)
    }
}

impl Write for LeaseRenew {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Renewed> {
        check_claims(self.calls.len() + self.builds.len())?;
        let step = |&(num, epoch)| Step::new(num, Event::Renew { epoch, owner: self.owner.clone() });
        let renewed = apply_all(tx, context, self.calls.iter().map(step).collect())?;
        let stale = self.calls.iter().zip(renewed).filter(|(_, renewed)| renewed.is_err()).map(|(claim, _)| *claim);
        let mut answer = Renewed { stale_calls: stale.collect(), stale_builds: Vec::new() };
        for (build, epoch) in &self.builds {
            let event = BuildEvent::Of { epoch: *epoch, owner: self.owner.clone(), said: Said::Renew };
            if builds::apply(tx, build, &event, context)?.is_err() {
                answer.stale_builds.push((build.clone(), *epoch));
            }
        }
        Ok(answer)
    }
}

impl Write for Reap {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Reaped> {
        let now = context.now;
        tx.keep_clock(now)?;
        tx.promote(now, context.wall)?;
        let lost = tx.select_calls(CallSelection::LeaseEndedBefore(now, BATCH))?;
        let lost = step_all(tx, context, lost, &Event::Tick)?;
        let old = tx.select_calls(CallSelection::AgeEndedBy(now, BATCH))?;
        let expired = step_all(tx, context, old, &Event::Tick)?;
        let builds = builds::lose(tx, &tx.builds_with_ended_leases(now)?, context)?;
        Ok(Reaped { lost, expired, builds, forgotten: retention::forget(tx, context)? })
    }
}
