//! The workers, and how much each can take.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use faena_domain::{CallNum, EngineKind, Epoch, Owner};
use faena_protocol::db::BuildRef;
use faena_protocol::node::{EngineInfo, NodeInfo, PoolView};
use faena_protocol::records::{BuildJob, CallJob};
use faena_transport::Peer;
use serde::Serialize;

type Claim = (CallNum, Epoch);

#[derive(Debug)]
struct Worker {
    info: NodeInfo,
    /// The connection, or since when there is none.
    peer: Result<Peer, Instant>,
    calls: HashSet<Claim>,
    builds: HashSet<BuildRef>,
    /// Slots that are kept free for a claim under way.
    reserved: u32,
    claiming: bool,
    draining: bool,
    pool: PoolView,
}

/// A worker as people see it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkerView {
    /// Its name.
    id: String,
    /// This run of it.
    incarnation: String,
    /// `ready`, `draining` or `away`.
    status: &'static str,
    /// What it makes instances with, and which layers it goes without.
    #[schema(value_type = Vec<Object>)]
    engines: Vec<EngineInfo>,
    /// Calls at once.
    slots: u32,
    /// Calls now.
    busy: usize,
    /// Builds at once.
    build_slots: u32,
    /// Builds now.
    builds: usize,
    /// Memory of its machine.
    memory_bytes: u64,
    /// Its instances: how many there are, work and are frozen, and how many calls found one.
    #[schema(value_type = Object)]
    pool: PoolView,
}

/// What a worker can take from db.
#[derive(Debug)]
pub(super) struct Capacity {
    pub(super) owner: Owner,
    pub(super) engines: Vec<EngineKind>,
    pub(super) calls: u32,
    pub(super) builds: u32,
}

/// Every worker by its name.
#[derive(Debug, Default)]
pub(super) struct Fleet(HashMap<String, Worker>);

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

impl Worker {
    fn free(&self) -> u32 {
        self.info.slots.saturating_sub(count(self.calls.len())).saturating_sub(self.reserved)
    }

    fn takes_work(&self) -> bool {
        self.peer.is_ok() && !self.draining
    }

    fn offers(&self, engine: EngineKind) -> bool {
        self.info.engines.iter().any(|info| info.engine == engine)
    }
}

impl Fleet {
    fn by_peer(&mut self, peer: &Peer) -> Option<&mut Worker> {
        self.0.values_mut().find(|worker| worker.peer.as_ref() == Ok(peer))
    }

    /// Takes a worker in; returns the earlier incarnation that it shows to be dead.
    pub(super) fn joined(
        &mut self,
        peer: Peer,
        info: NodeInfo,
        calls: Vec<Claim>,
        builds: Vec<BuildRef>,
    ) -> Option<Owner> {
        let old = self.0.remove(&info.owner.worker);
        let same = old.as_ref().is_some_and(|old| old.info.owner == info.owner);
        // What was sent and lay in a connection that was lost never came: its lease, or its age, ends it.
        let (calls, builds) = (calls.into_iter().collect(), builds.into_iter().collect());
        let worker = Worker {
            peer: Ok(peer),
            calls,
            builds,
            reserved: 0,
            claiming: false,
            draining: false,
            info,
            pool: PoolView::default(),
        };
        self.0.insert(worker.info.owner.worker.clone(), worker);
        old.filter(|_| !same).map(|old| old.info.owner)
    }

    /// A connection is gone; its worker may come back.
    pub(super) fn lost(&mut self, peer: &Peer) {
        if let Some(worker) = self.by_peer(peer) {
            worker.peer = Err(Instant::now());
        }
    }

    /// Forgets the workers that have been away for too long.
    pub(super) fn forget_away(&mut self, most: Duration) -> Vec<Owner> {
        let gone = |worker: &Worker| worker.peer.as_ref().is_err_and(|since| since.elapsed() > most);
        let names: Vec<String> =
            self.0.values().filter(|worker| gone(worker)).map(|worker| worker.info.owner.worker.clone()).collect();
        names.iter().filter_map(|name| self.0.remove(name)).map(|worker| worker.info.owner).collect()
    }

    /// The connection of a run of a worker, while it has one.
    pub(super) fn peer(&self, owner: &Owner) -> Option<Peer> {
        let worker = self.0.get(&owner.worker).filter(|worker| worker.info.owner == *owner)?;
        worker.peer.clone().ok()
    }

    /// Every connection there is.
    pub(super) fn peers(&self) -> Vec<Peer> {
        self.0.values().filter_map(|worker| worker.peer.clone().ok()).collect()
    }

    /// Whose connection it is.
    pub(super) fn owner(&mut self, peer: &Peer) -> Option<Owner> {
        self.by_peer(peer).map(|worker| worker.info.owner.clone())
    }

    /// Takes over what a worker makes instances with from now on.
    pub(super) fn engines(&mut self, peer: &Peer, engines: Vec<EngineInfo>) {
        if let Some(worker) = self.by_peer(peer) {
            worker.info.engines = engines;
        }
    }

    /// Takes over what a worker's pool holds.
    pub(super) fn pool(&mut self, peer: &Peer, pool: PoolView) {
        if let Some(worker) = self.by_peer(peer) {
            worker.pool = pool;
        }
    }

    pub(super) fn draining(&mut self, peer: &Peer) {
        if let Some(worker) = self.by_peer(peer) {
            worker.draining = true;
        }
    }

    pub(super) fn call_ended(&mut self, peer: &Peer, claim: Claim) {
        if let Some(worker) = self.by_peer(peer) {
            worker.calls.remove(&claim);
        }
    }

    pub(super) fn build_ended(&mut self, peer: &Peer, build: &BuildRef) {
        if let Some(worker) = self.by_peer(peer) {
            worker.builds.remove(build);
        }
    }

    /// Whether any worker that takes work has this engine.
    pub(super) fn offers(&self, engine: EngineKind) -> bool {
        self.0.values().any(|worker| worker.takes_work() && worker.offers(engine))
    }

    /// Gives a call to the worker with the most free slots, if one has any.
    pub(super) fn assign(&mut self, engine: EngineKind, claim: Claim) -> Option<(Peer, Owner)> {
        let able = |worker: &&mut Worker| worker.takes_work() && worker.offers(engine) && worker.free() > 0;
        let worker = self.0.values_mut().filter(able).max_by_key(|worker| worker.free())?;
        worker.calls.insert(claim);
        Some((worker.peer.clone().ok()?, worker.info.owner.clone()))
    }

    /// What each worker can take; its slots are kept until [`Fleet::claimed`].
    pub(super) fn capacities(&mut self) -> Vec<Capacity> {
        let mut capacities = Vec::new();
        for worker in self.0.values_mut().filter(|worker| worker.takes_work() && !worker.claiming) {
            let (calls, builds) = (worker.free(), worker.info.build_slots.saturating_sub(count(worker.builds.len())));
            if calls == 0 && builds == 0 {
                continue;
            }
            worker.claiming = true;
            worker.reserved = calls;
            let engines = worker.info.engines.iter().map(|info| info.engine).collect();
            capacities.push(Capacity { owner: worker.info.owner.clone(), engines, calls, builds });
        }
        capacities
    }

    /// Takes over what db has claimed for a worker; none where that has gone meanwhile.
    pub(super) fn claimed(&mut self, owner: &Owner, calls: &[CallJob], builds: &[BuildJob]) -> Option<Peer> {
        let worker = self.0.get_mut(&owner.worker).filter(|worker| worker.info.owner == *owner)?;
        worker.claiming = false;
        worker.reserved = 0;
        let peer = worker.peer.clone().ok().filter(|_| !worker.draining)?;
        worker.calls.extend(calls.iter().map(|job| (job.num, job.epoch)));
        worker.builds.extend(builds.iter().map(BuildJob::reference));
        Some(peer)
    }

    /// All of them, sorted by name.
    pub(super) fn views(&self) -> Vec<WorkerView> {
        let view = |worker: &Worker| WorkerView {
            id: worker.info.owner.worker.clone(),
            incarnation: worker.info.owner.incarnation.clone(),
            status: match (&worker.peer, worker.draining) {
                (Err(_), _) => "away",
                (Ok(_), true) => "draining",
                (Ok(_), false) => "ready",
            },
            engines: worker.info.engines.clone(),
            slots: worker.info.slots,
            busy: worker.calls.len(),
            build_slots: worker.info.build_slots,
            builds: worker.builds.len(),
            memory_bytes: worker.info.memory_bytes,
            pool: worker.pool,
        };
        let mut views: Vec<WorkerView> = self.0.values().map(view).collect();
        views.sort_by(|a, b| a.id.cmp(&b.id));
        views
    }
}

impl WorkerView {
    /// Whether it takes work.
    pub(crate) fn is_ready(&self) -> bool {
        self.status == "ready"
    }
}
