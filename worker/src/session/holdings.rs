//! What a node holds, and what it decides. It is told what happened and when, and replies with what is to be done; it has no
//! clock, task or socket.

use std::collections::HashMap;

use faena_domain::{CallNum, Epoch, FunctionId, Owner, Preload};
use faena_protocol::db::{LeaseRenew, Renewed};
use faena_protocol::node::{CallOf, EngineInfo, HeldCall, Lease, NodeInfo, PoolView, Question, ToApi, ToWorker};
use faena_protocol::records::{BuildJob, BuildRef, CallJob};
use tracing::{debug, warn};

use crate::lease;

/// A call, under the claim that db gave us.
pub(super) type CallClaim = (CallNum, Epoch);
/// A build, under the claim that db gave us.
pub(super) type BuildClaim = (BuildRef, Epoch);

/// What a task of ours works at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Claim {
    Call(CallClaim),
    Build(BuildClaim),
}

/// The clock of leases (`CLOCK_BOOTTIME`, in milliseconds), and the boot that it counts from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now<'a> {
    pub(super) boot: &'a str,
    pub(super) ms: u64,
}

/// What a task of ours has to say.
#[derive(Debug)]
pub(super) enum Event {
    /// To the api.
    Tell(ToApi),
    /// A call's process runs.
    Started(CallClaim),
    /// Nothing is left of what a call ran in.
    CallReleased,
    /// A build has ended; whether its version can be called now.
    BuildEnded(BuildRef, bool),
    /// These engines can make instances now.
    Engines(Vec<EngineInfo>),
    /// What the pool holds has changed.
    Pool(PoolView),
    /// Db has answered a renewal.
    Renewed(Box<Renewal>),
}

/// Leases that were renewed, but for those that are not ours any more.
#[derive(Debug)]
pub(super) struct Renewal {
    /// When db was asked.
    pub(super) asked_ms: u64,
    pub(super) request: LeaseRenew,
    pub(super) renewed: Renewed,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Effect {
    /// Tell the api.
    Tell(ToApi),
    /// Take up a call, which may run until this instant unless its lease is extended; one that is stopped already is given
    /// back before it begins.
    BeginCall { job: Box<CallJob>, until_ms: u64, is_stopped: bool },
    /// Take up a build in the same way.
    BeginBuild { job: Box<BuildJob>, until_ms: u64, is_stopped: bool },
    /// A task may go on until this instant.
    Extend { claim: Claim, until_ms: u64 },
    /// A task has to end.
    Stop(Claim),
    /// A task has ended.
    Forget(Claim),
    /// Renew leases.
    Renew(LeaseRenew),
    /// Tell db that these calls' processes run.
    TellStarted(Vec<CallClaim>),
    /// The platform says what waits for calls, where nothing nearer does.
    Preload(Preload),
    /// Have the pool keep the minimum of instances that functions ask for.
    KeepMinimum,
    /// A function is deleted.
    ForgetFunction(FunctionId),
    /// Stop the worker when it has finished what it has.
    StopWorker,
    /// Answer a question of the api.
    Answer { id: u64, question: Question },
}

/// What is known of a call that runs here.
#[derive(Debug)]
struct RunningCall {
    /// Whether db has a row of it, which may pass to another worker.
    has_row: bool,
    of: CallOf,
}

/// What a node holds.
#[derive(Debug)]
pub(super) struct Holdings {
    info: NodeInfo,
    calls: HashMap<CallClaim, RunningCall>,
    builds: HashMap<BuildRef, Epoch>,
    /// Calls whose processes run and of which db has not heard so.
    started: Vec<CallClaim>,
    /// Calls that have ended and whose instances are being cleaned or destroyed.
    releasing: usize,
    /// Sent again after each reconnect until the api has acknowledged them.
    unacknowledged: HashMap<CallClaim, ToApi>,
    is_draining: bool,
    /// Whether the api hears us.
    is_connected: bool,
}

impl Holdings {
    pub(super) fn new(info: NodeInfo) -> Self {
        Self {
            info,
            calls: HashMap::new(),
            builds: HashMap::new(),
            started: Vec::new(),
            releasing: 0,
            unacknowledged: HashMap::new(),
            is_draining: false,
            is_connected: false,
        }
    }

    /// Calls and builds that run here.
    pub(super) fn running(&self) -> (usize, usize) {
        (self.calls.len(), self.builds.len())
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Whether a drain is over: nothing runs, and everybody knows how it ended.
    pub(super) fn is_drained(&self) -> bool {
        let is_idle = self.calls.is_empty() && self.releasing == 0 && self.builds.is_empty();
        self.is_draining && is_idle && self.unacknowledged.is_empty()
    }

    /// Whether db has to hear of processes that run.
    pub(super) fn has_started(&self) -> bool {
        !self.started.is_empty()
    }

    /// The api hears us from now on.
    pub(super) fn connected(&mut self) -> Vec<Effect> {
        self.is_connected = true;
        let mut effects = self.hello();
        effects.extend(self.keep_minimum());
        effects
    }

    /// The api is gone.
    pub(super) fn disconnected(&mut self) {
        self.is_connected = false;
    }

    /// Nothing begins any more.
    pub(super) fn drain(&mut self) -> Vec<Effect> {
        self.is_draining = true;
        vec![Effect::Tell(ToApi::Draining)]
    }

    /// Who we are, and what we hold.
    fn hello(&self) -> Vec<Effect> {
        let held =
            |(claim, call): (&CallClaim, &RunningCall)| HeldCall { num: claim.0, epoch: claim.1, of: call.of.clone() };
        let hello = ToApi::Hello {
            node: self.info.clone(),
            calls: self.calls.iter().map(held).collect(),
            ended: self.unacknowledged.keys().copied().collect(),
            builds: self.builds.keys().cloned().collect(),
        };
        let draining = self.is_draining.then_some(ToApi::Draining);
        let messages = [hello].into_iter().chain(draining).chain(self.unacknowledged.values().cloned());
        messages.map(Effect::Tell).collect()
    }

    /// The api has said something.
    pub(super) fn message(&mut self, message: ToWorker, now: Now<'_>) -> Vec<Effect> {
        match message {
            ToWorker::Welcome { preload } => {
                debug!("the api knows us");
                return vec![Effect::Preload(preload)];
            }
            ToWorker::SayHello => return self.hello(),
            ToWorker::EndedAck { num, epoch } => drop(self.unacknowledged.remove(&(num, epoch))),
            ToWorker::Call { job, lease } => return self.call(job, &lease, now),
            ToWorker::Build { job, lease } => return self.build(job, &lease, now),
            ToWorker::Persisted { num, epoch } => {
                if let Some(call) = self.calls.get_mut(&(num, epoch)) {
                    call.has_row = true;
                }
            }
            ToWorker::Built { build } => {
                debug!(function = %build.function, version = %build.version, "another worker has built a version");
                return self.keep_minimum();
            }
            ToWorker::Forget { namespace, function } => {
                return vec![Effect::ForgetFunction(FunctionId::new(&namespace, &function))];
            }
            ToWorker::Ask { id, question } => return vec![Effect::Answer { id, question }],
            ToWorker::Cancel { num, epoch } => return self.stop_call((num, epoch)),
            ToWorker::Drain => return vec![Effect::StopWorker],
        }
        Vec::new()
    }

    fn stop_call(&self, claim: CallClaim) -> Vec<Effect> {
        self.calls.contains_key(&claim).then_some(Effect::Stop(Claim::Call(claim))).into_iter().collect()
    }

    fn keep_minimum(&self) -> Vec<Effect> {
        if self.is_draining { Vec::new() } else { vec![Effect::KeepMinimum] }
    }

    fn call(&mut self, job: Box<CallJob>, lease: &Lease, now: Now<'_>) -> Vec<Effect> {
        let claim = (job.num, job.epoch);
        if self.calls.contains_key(&claim) || self.unacknowledged.contains_key(&claim) {
            return Vec::new();
        }
        // The api decides about calls without a row. After it lost us it waits one lease before it gives them up.
        let until_ms = if job.has_row { first_end(lease, now) } else { lease::end_of(now.ms) };
        self.calls.insert(claim, RunningCall { has_row: job.has_row, of: CallOf::of(&job.code) });
        let accepted = ToApi::Accepted { num: job.num, epoch: job.epoch };
        vec![Effect::Tell(accepted), Effect::BeginCall { job, until_ms, is_stopped: self.is_draining }]
    }

    fn build(&mut self, job: Box<BuildJob>, lease: &Lease, now: Now<'_>) -> Vec<Effect> {
        let (build, epoch) = (job.reference(), job.epoch);
        if self.builds.contains_key(&build) {
            return Vec::new();
        }
        self.builds.insert(build, epoch);
        vec![Effect::BeginBuild { job, until_ms: first_end(lease, now), is_stopped: self.is_draining }]
    }

    /// A task has said something.
    pub(super) fn event(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Tell(message) => {
                let mut effects = Vec::new();
                if let ToApi::Ended { num, epoch, .. } = &message {
                    let claim = (*num, *epoch);
                    self.unacknowledged.insert(claim, message.clone());
                    self.calls.remove(&claim);
                    self.releasing += 1;
                    effects.push(Effect::Forget(Claim::Call(claim)));
                }
                effects.push(Effect::Tell(message));
                effects
            }
            Event::CallReleased => {
                self.releasing -= 1;
                Vec::new()
            }
            Event::BuildEnded(build, is_ready) => {
                let epoch = self.builds.remove(&build);
                let forget = epoch.map(|epoch| Effect::Forget(Claim::Build((build.clone(), epoch))));
                forget.into_iter().chain([Effect::Tell(ToApi::BuildEnded { build, is_ready })]).collect()
            }
            Event::Started(claim) => {
                if self.calls.get(&claim).is_some_and(|call| call.has_row) {
                    self.started.push(claim);
                }
                vec![Effect::Tell(ToApi::Started { num: claim.0, epoch: claim.1 })]
            }
            Event::Pool(pool) => vec![Effect::Tell(ToApi::Pool { pool })],
            Event::Engines(engines) => {
                self.info.engines.clone_from(&engines);
                vec![Effect::Tell(ToApi::Engines { engines })]
            }
            Event::Renewed(renewal) => self.renewed(&renewal),
        }
    }

    /// Starts were gathered long enough. Db counts a delivery that is lost only if it knows that its process ran.
    pub(super) fn tell_started(&mut self) -> Vec<Effect> {
        let started = std::mem::take(&mut self.started);
        let running: Vec<CallClaim> = started.into_iter().filter(|claim| self.calls.contains_key(claim)).collect();
        if running.is_empty() { Vec::new() } else { vec![Effect::TellStarted(running)] }
    }

    /// It is time to renew leases, all of them in one message. A renewal that is lost is made up for by the next one.
    pub(super) fn renew(&self, owner: &Owner, now_ms: u64) -> Vec<Effect> {
        let mut effects = self.keep_minimum();
        if self.calls.is_empty() && self.builds.is_empty() {
            return effects;
        }
        // The api decides about calls without a row, and knows that they run while it hears us.
        let rowless = self.calls.iter().filter(|(_, call)| !call.has_row && self.is_connected);
        effects.extend(
            rowless.map(|(claim, _)| Effect::Extend { claim: Claim::Call(*claim), until_ms: lease::end_of(now_ms) }),
        );
        effects.push(Effect::Renew(LeaseRenew {
            owner: owner.clone(),
            calls: self.calls.keys().copied().collect(),
            builds: self.builds.iter().map(|(build, epoch)| (build.clone(), *epoch)).collect(),
        }));
        effects
    }

    /// What was renewed may go on; what is not ours any more has to end at once.
    fn renewed(&self, Renewal { asked_ms, request, renewed }: &Renewal) -> Vec<Effect> {
        let until_ms = lease::end_of(*asked_ms);
        let calls = request.calls.iter().filter(|claim| self.calls.get(claim).is_some_and(|call| call.has_row));
        let calls = calls.map(|claim| (Claim::Call(*claim), renewed.stale_calls.contains(claim)));
        let builds = request.builds.iter().filter(|claim| self.builds.get(&claim.0) == Some(&claim.1));
        let builds = builds.map(|claim| (Claim::Build(claim.clone()), renewed.stale_builds.contains(claim)));
        calls
            .chain(builds)
            .map(|(claim, is_stale)| {
                if is_stale {
                    warn!(?claim, "another claim has taken over; stopping this one");
                    Effect::Stop(claim)
                } else {
                    Effect::Extend { claim, until_ms }
                }
            })
            .collect()
    }
}

/// Until when a claim may run that came with its lease; zero where that is not known, or over: it is renewed before anything
/// begins.
fn first_end(lease: &Lease, now: Now<'_>) -> u64 {
    lease::first_end(lease, now.boot).filter(|end| *end > now.ms).unwrap_or(0)
}
