//! One worker: what it offers, what it has, and whether more would begin there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Instant;

use faena_db_client::KnownNodes;
use faena_domain::{CallNum, EngineKind, Epoch, FunctionId, Labels, NodeSelector, NodeState, Owner, Slots};
use faena_protocol::db::{SlotsView, SparePlaces};
use faena_protocol::node::{CallOf, NodeInfo, PoolView};
use faena_protocol::records::{BuildRef, NodeRecord};

use crate::ledger::{Ledger, slots_view};

/// Workers of the same kind can run the same calls: their engines, and the labels of their nodes.
pub(super) type Kind = (Vec<EngineKind>, Labels);

/// A call and its claim.
pub(crate) type Claim = (CallNum, Epoch);

/// One worker, whose connection is a `P`.
#[derive(Debug)]
pub(super) struct Worker<P> {
    pub(super) info: NodeInfo,
    /// The connection, or since when there is none.
    pub(super) peer: Result<P, Instant>,
    pub(super) calls: HashMap<Claim, CallOf>,
    pub(super) ledger: Ledger,
    pub(super) builds: HashMap<BuildRef, FunctionId>,
    pub(super) build_slots: Slots,
    /// A claim is under way.
    pub(super) claim: Option<UnderWay>,
    /// It has said that it stops.
    pub(super) is_leaving: bool,
    /// What an administrator says of its node; none before db has told.
    pub(super) terms: Option<NodeTerms>,
    pub(super) pool: PoolView,
    /// Slots that its pool uses for calls which this scheduler does not send: direct ones, and those of other apis.
    pub(super) others: u32,
}

/// What an administrator says of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeTerms {
    /// The run of its worker that db knows.
    pub(super) incarnation: String,
    /// Its labels.
    pub(crate) labels: Labels,
    /// It takes no new work.
    pub(crate) is_cordoned: bool,
    /// It finishes what it has, and stops.
    pub(crate) is_draining: bool,
}

impl NodeTerms {
    /// What is said of the node of a worker; none where db has not told of this run of it: what is known then may be about the
    /// one before, which was to drain.
    pub(crate) fn of(known: &KnownNodes, owner: &Owner) -> Option<Self> {
        known.get(&owner.worker.parse().ok()?).map(Self::from).filter(|terms| terms.incarnation == owner.incarnation)
    }

    /// Whether the node takes new work.
    pub(crate) fn takes_work(&self) -> bool {
        !self.is_cordoned && !self.is_draining
    }
}

impl From<&NodeRecord> for NodeTerms {
    fn from(node: &NodeRecord) -> Self {
        Self {
            incarnation: node.incarnation.clone(),
            labels: node.labels.clone(),
            is_cordoned: node.is_cordoned,
            is_draining: node.is_draining,
        }
    }
}

/// What a claim is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClaimOf {
    /// Calls and builds.
    All,
    /// Builds, which have slots of their own.
    Builds,
}

/// A claim that db has not answered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UnderWay {
    /// It is for calls: the slots that are free belong to it.
    pub(super) is_for_calls: bool,
    /// Db may have got work since it looked; with true also for the reserve.
    pub(super) outdated: Option<bool>,
}

/// What a worker can take from db.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) owner: Owner,
    pub(crate) engines: Vec<EngineKind>,
    /// Its slots and the free places in instances that work; none where it has neither.
    pub(crate) calls: Option<(SlotsView, Vec<SparePlaces>)>,
    /// Its slots for builds; none where it has none.
    pub(crate) builds: Option<SlotsView>,
    /// The most calls that it is to take now.
    pub(crate) limit: u32,
}

impl<P> Worker<P> {
    pub(super) fn takes_work(&self) -> bool {
        self.state() == NodeState::Ready
    }

    pub(super) fn state(&self) -> NodeState {
        match (&self.peer, &self.terms) {
            (Err(_), _) => NodeState::Lost,
            (Ok(_), _) if self.is_leaving => NodeState::Draining,
            (Ok(_), Some(terms)) if terms.is_draining => NodeState::Draining,
            (Ok(_), Some(terms)) if !terms.is_cordoned => NodeState::Ready,
            // What db has not told of yet may be cordoned.
            (Ok(_), _) => NodeState::Cordoned,
        }
    }

    pub(super) fn offers(&self, engine: EngineKind, nodes: &[NodeSelector]) -> bool {
        let labels = self.terms.as_ref().map(|terms| &terms.labels);
        labels.is_some_and(|labels| nodes.iter().all(|selector| selector.permits(labels)))
            && self.info.engines.iter().any(|info| info.engine == engine)
    }

    /// Slots that are free of everything that its pool has, too. What waits in a pool has its turns there; another worker would
    /// begin it at once.
    pub(super) fn idle_slots(&self) -> u32 {
        self.ledger.slots().free().saturating_sub(self.others)
    }

    /// Whether a call would begin there at once, and what it needs would fit on the disk.
    pub(super) fn is_roomy(&self) -> bool {
        self.idle_slots() > 0 && !self.pool.disk_low
    }

    /// Whether its pool has more than we have sent it, so that a call would wait there although we have slots of it.
    pub(super) fn is_crowded(&self) -> bool {
        self.others > 0 && self.idle_slots() == 0
    }

    pub(super) fn engines(&self) -> Vec<EngineKind> {
        self.info.engines.iter().map(|info| info.engine).collect()
    }

    pub(super) fn kind(&self) -> Kind {
        (self.engines(), self.terms.as_ref().map(|terms| terms.labels.clone()).unwrap_or_default())
    }

    /// What it can take from db, which is kept for a claim until that is answered; none where it has no room.
    pub(super) fn begin_claim(&mut self, of: ClaimOf, reserve: bool, limit: u32) -> Option<Capacity> {
        let view = self.ledger.view();
        let has_place = has_room(self.ledger.slots(), reserve) || !view.1.is_empty();
        let calls = (has_place && of == ClaimOf::All).then_some(view);
        let builds = has_room(&self.build_slots, reserve).then(|| slots_view(&self.build_slots));
        if calls.is_none() && builds.is_none() {
            return None;
        }
        self.claim = Some(UnderWay { is_for_calls: calls.is_some(), outdated: None });
        Some(Capacity { owner: self.info.owner.clone(), engines: self.engines(), calls, builds, limit })
    }

    pub(super) fn begin(&mut self, claim: Claim, of: CallOf) {
        // A call that is reported twice is counted once.
        if let Entry::Vacant(call) = self.calls.entry(claim) {
            self.ledger.begin(&of);
            call.insert(of);
        }
    }

    pub(super) fn begin_build(&mut self, build: BuildRef) {
        let function = build.function_id();
        if self.builds.insert(build, function.clone()).is_none() {
            self.build_slots.take(&function);
        }
    }
}

/// Whether slots have room: a free one, or the reserve, where that is looked at.
pub(super) fn has_room(slots: &Slots, reserve: bool) -> bool {
    slots.free() > 0 || (reserve && slots.has_reserve())
}
