//! Which worker gets a call. A few of a thousand workers are looked at: those that have run the function lately, and two that
//! are drawn (Mitzenmacher 2001, "The power of two choices in randomized load balancing").

use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use faena_domain::call::Placement;
use faena_domain::{EngineKind, NodeSelector, Owner};
use faena_protocol::node::CallOf;

use super::Fleet;
use super::worker::{Claim, Worker};

/// Workers that are drawn before all of them are looked at: enough to find two where half of them are full.
const DRAWN: usize = 12;
/// A worker that has the code but no instance is taken while this part of its slots is free; a less loaded one is better then.
const CODE_NEEDS_FREE: f64 = 0.25;

/// A call that was given to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assigned<P> {
    pub(crate) peer: P,
    pub(crate) owner: Owner,
    /// Why this one.
    pub(crate) placement: Placement,
}

/// What a call needs of a worker.
struct Needs<'a> {
    engine: EngineKind,
    nodes: &'a [NodeSelector],
    of: &'a CallOf,
    others_wait: bool,
}

impl Needs<'_> {
    fn can_run_on<P>(&self, worker: &Worker<P>) -> bool {
        worker.takes_work()
            && worker.offers(self.engine, self.nodes)
            && !worker.claim.is_some_and(|claim| claim.is_for_calls)
            && worker.ledger.may_begin(self.of, self.others_wait)
    }
}

/// The part of a worker's slots that is free of everything that its pool has. Of one that has no room for more code it counts as if there were none, so that
/// others come first.
fn free_part<P>(worker: &Worker<P>) -> f64 {
    let free = f64::from(worker.idle_slots()) / f64::from(worker.ledger.slots().total().max(1));
    if worker.pool.disk_low { free - 1.0 } else { free }
}

impl<P: Clone + Eq + Hash> Fleet<P> {
    /// Gives a call to a worker that takes it: to one where an instance of its version has a place or waits, else where its
    /// code lies, else to the less loaded of two.
    pub(crate) fn assign(
        &mut self,
        (engine, nodes): (EngineKind, &[NodeSelector]),
        claim: Claim,
        of: &CallOf,
        others_wait: bool,
        now: Instant,
    ) -> Option<Assigned<P>> {
        let needs = Needs { engine, nodes, of, others_wait };
        let (name, placement) = self.warm_worker(&needs, now).or_else(|| self.less_loaded(&needs))?;
        let worker = self.workers.get(&name)?;
        let (peer, owner) = (worker.peer.clone().ok()?, worker.info.owner.clone());
        self.begin(&name, claim, of, now);
        Some(Assigned { peer, owner, placement })
    }

    /// Why a call that db claimed for a worker fits there.
    pub(super) fn reason_for(&self, name: &Arc<str>, of: &CallOf, now: Instant) -> Placement {
        let joins = self.workers.get(name).is_some_and(|worker| worker.ledger.joins(of));
        let function = of.function_id();
        let mut places = self.warm.places(&function, of.version, now);
        match places.find(|(worker, _)| *worker == name) {
            _ if joins => Placement::SharedInstance,
            Some((_, true)) => Placement::IdleInstance,
            Some((_, false)) => Placement::Code,
            None => Placement::FreeSlots,
        }
    }

    fn warm_worker(&self, needs: &Needs<'_>, now: Instant) -> Option<(Arc<str>, Placement)> {
        let function = needs.of.function_id();
        let places = self.warm.places(&function, needs.of.version, now).filter_map(|(name, waits)| {
            let worker = self.workers.get(name).filter(|worker| needs.can_run_on(worker))?;
            let free = free_part(worker);
            let (rank, placement) = match (worker.ledger.joins(needs.of), waits) {
                (true, _) => (2, Placement::SharedInstance),
                (false, true) => (1, Placement::IdleInstance),
                (false, false) if free >= CODE_NEEDS_FREE => (0, Placement::Code),
                (false, false) => return None,
            };
            Some((rank, free, name, placement))
        });
        let best = places.max_by(|one, other| {
            (one.0, one.1).partial_cmp(&(other.0, other.1)).unwrap_or(std::cmp::Ordering::Equal)
        })?;
        Some((Arc::clone(best.2), best.3))
    }

    fn less_loaded(&mut self, needs: &Needs<'_>) -> Option<(Arc<str>, Placement)> {
        let mut found: Option<(&Arc<str>, f64)> = None;
        for _ in 0..DRAWN.min(self.names.len()) {
            let name = &self.names[self.random.usize(0..self.names.len())];
            let Some(worker) = self.workers.get(name).filter(|worker| needs.can_run_on(worker)) else { continue };
            let free = free_part(worker);
            match found {
                None => found = Some((name, free)),
                Some((first, _)) if first == name => {}
                Some((_, first_free)) => {
                    let name = if free > first_free { name } else { found?.0 };
                    return Some((Arc::clone(name), Placement::LessLoaded));
                }
            }
        }
        // Nearly all are full, or there are few.
        let able = self.workers.iter().filter(|(_, worker)| needs.can_run_on(worker));
        let all = able.map(|(name, worker)| (name, free_part(worker)));
        let best = all.max_by(|one, other| one.1.total_cmp(&other.1))?;
        Some((Arc::clone(best.0), Placement::LessLoaded))
    }
}
