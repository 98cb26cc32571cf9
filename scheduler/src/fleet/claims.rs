//! Claims of work that lies in db: which workers are asked for, and what each can take.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use faena_domain::{FunctionId, Owner};
use faena_protocol::node::CallOf;
use faena_protocol::records::{BuildJob, CallJob};

use super::Fleet;
use super::worker::{Capacity, ClaimOf, Kind, Worker};

/// Claims in db that are under way at once, of one kind of node. Each finds what waits; with a thousand workers it is not asked for
/// a thousand at once.
const CLAIMS: usize = 8;

/// What claims are made of.
#[derive(Debug, Default)]
struct Survey {
    /// Kinds of workers of which one has room.
    roomy: HashSet<Kind>,
    /// Claims under way, by the kind of their workers.
    under_way: HashMap<Kind, usize>,
    /// Workers without a claim.
    waiting: Vec<(Arc<str>, Kind)>,
}

impl<P: Clone + Eq + Hash> Fleet<P> {
    /// Db has got calls of these functions. Workers where instances of them wait are asked for work before the others, for no more
    /// than these instances can take.
    pub(crate) fn expect<'a>(&mut self, functions: impl IntoIterator<Item = &'a FunctionId>, now: Instant) {
        if self.workers.len() < 2 {
            return;
        }
        for function in functions {
            for (worker, idle) in self.warm.idle(function, now) {
                *self.near.entry(Arc::clone(worker)).or_default() += idle;
            }
        }
    }

    /// Whether workers were left out of claims since this was asked.
    pub(crate) fn has_left_out(&mut self) -> bool {
        std::mem::take(&mut self.has_left_out)
    }

    /// What workers can take; it is kept for the claim until [`Fleet::claimed`]. The reserve of a worker whose slots one
    /// function holds is looked at now and then, since it costs a claim that finds nothing as a rule. Of workers that are alike
    /// only some are asked for at a time, and the others next; one where calls would wait gets none while another has room.
    pub(crate) fn capacities(&mut self, reserve: bool) -> Vec<Capacity> {
        let Survey { roomy, mut under_way, waiting } = self.survey(reserve);
        let near = std::mem::take(&mut self.near);
        let nearness =
            |name: &Arc<str>, worker: &Worker<P>| near.get(name).copied().filter(|_| worker.ledger.slots().free() > 0);
        let is_near = |(name, _): &(Arc<str>, Kind)| {
            self.workers.get(name).is_some_and(|worker| nearness(name, worker).is_some())
        };
        let has_near = waiting.iter().any(is_near);
        let mut capacities = Vec::new();
        for (name, kind) in waiting {
            let Some(worker) = self.workers.get_mut(&name) else { continue };
            let idle = nearness(&name, worker);
            if has_near && idle.is_none() {
                self.has_left_out = true;
                continue;
            }
            let is_better_elsewhere = roomy.contains(&kind);
            // What it would need may not fit on its disk, and fits on another's.
            if worker.pool.disk_low && is_better_elsewhere {
                continue;
            }
            let of = if worker.is_crowded() && is_better_elsewhere { ClaimOf::Builds } else { ClaimOf::All };
            let alike = under_way.entry(kind).or_default();
            if *alike >= CLAIMS {
                continue;
            }
            if let Some(capacity) = worker.begin_claim(of, reserve, idle.unwrap_or(u32::MAX)) {
                *alike += 1;
                self.last_claimed = Some(name);
                capacities.push(capacity);
            }
        }
        capacities
    }

    /// Looks at the workers that take work, those behind the last claim first. A claim under way becomes outdated.
    fn survey(&mut self, reserve: bool) -> Survey {
        let behind = self.last_claimed.clone();
        let (earlier, later): (Vec<_>, Vec<_>) =
            self.workers.iter_mut().partition(|(name, _)| behind.as_ref().is_some_and(|last| *name <= last));
        let mut survey = Survey::default();
        for (name, worker) in later.into_iter().chain(earlier).filter(|(_, worker)| worker.takes_work()) {
            let kind = worker.kind();
            let may_have_room = worker.claim.is_some() || (reserve && worker.ledger.slots().has_reserve());
            if worker.is_roomy() || (may_have_room && !worker.pool.disk_low && !worker.is_crowded()) {
                survey.roomy.insert(kind.clone());
            }
            match &mut worker.claim {
                Some(claim) => {
                    claim.outdated = Some(reserve || claim.outdated == Some(true));
                    *survey.under_way.entry(kind).or_default() += 1;
                }
                None => survey.waiting.push((Arc::clone(name), kind)),
            }
        }
        survey
    }

    /// What one worker can take now. Its last claim was answered before db got more work, so its claim alone is repeated: if all
    /// workers were asked again, claims that overlap would repeat each other without end.
    pub(crate) fn capacity_of(&mut self, owner: &Owner, reserve: bool) -> Option<Capacity> {
        let worker = self.run_of(owner).filter(|worker| worker.takes_work() && worker.claim.is_none())?;
        // The next claims of all look at who else has room.
        if worker.pool.disk_low { None } else { worker.begin_claim(ClaimOf::All, reserve, u32::MAX) }
    }

    /// Whether db may have got work for a worker since the claim under way looked; true where it may be for the reserve.
    pub(crate) fn outdated(&mut self, owner: &Owner) -> Option<bool> {
        self.run_of(owner).and_then(|worker| worker.claim).and_then(|claim| claim.outdated)
    }

    /// Takes over what db has claimed for a worker, and says why each call fits there; none where the worker has gone meanwhile.
    pub(crate) fn claimed(
        &mut self,
        owner: &Owner,
        calls: &mut [CallJob],
        builds: &[BuildJob],
        now: Instant,
    ) -> Option<P> {
        let worker = self.run_of(owner)?;
        worker.claim = None;
        let peer = worker.peer.clone().ok().filter(|_| worker.takes_work())?;
        builds.iter().for_each(|job| worker.begin_build(job.reference()));
        let name = Arc::clone(self.peers.get(&peer)?);
        for job in calls {
            let of = CallOf::of(&job.code);
            job.placement = Some(self.reason_for(&name, &of, now));
            self.begin(&name, (job.num, job.epoch), &of, now);
        }
        Some(peer)
    }
}
