//! What a pool knows of one version, and of each of its instances.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::keep_alive::{GreedyDual, Window};
use faena_domain::{Contract, Reuse};
use faena_miniworker::InstanceId;
use faena_protocol::records::Code;

use super::{Effect, InstanceRef, Resources, UNMEASURED, VersionKey, Waiting};

/// How long a first start is believed to take, in milliseconds.
const FIRST_START_MS: f64 = 100.0;

/// An instance.
#[derive(Debug)]
pub(super) struct Entry<I> {
    pub(super) id: InstanceId,
    pub(super) instance: I,
    /// The calls that it works at.
    pub(super) in_flight: u32,
    pub(super) idle_since: Instant,
    pub(super) is_frozen: bool,
    /// It takes no more calls, and goes when the last one has ended.
    pub(super) is_closing: bool,
    /// It is cleaned, and takes no call before that has ended.
    pub(super) is_cleaning: bool,
    /// In bytes.
    pub(super) memory: u64,
    /// Calls that it has answered.
    pub(super) calls: u64,
    /// What it is worth to keep; the lowest goes first.
    pub(super) score: f64,
}

impl<I> Entry<I> {
    /// Whether it waits for work.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0 && !self.is_cleaning && !self.is_closing
    }

    /// Whether it takes one more call.
    pub(super) fn has_place(&self, parallel: u32) -> bool {
        self.in_flight < parallel && !self.is_cleaning && !self.is_closing
    }
}

/// One version.
#[derive(Debug)]
pub(super) struct VersionEntry<R: Resources> {
    pub(super) code: Arc<Code>,
    pub(super) instances: Vec<Entry<R::Instance>>,
    /// Instances that are being made, and how many of them because work waits.
    pub(super) starting: u32,
    pub(super) asked: u32,
    pub(super) waiting: VecDeque<Waiting<R::Work>>,
    pub(super) window: Window,
    /// How long a start takes.
    pub(super) start_ms: f64,
    /// Starts that failed since the last one that did not, and when instances are made in advance again.
    pub(super) failures: u32,
    pub(super) again_at: Instant,
    /// A newer version has come; this one is kept only while it is called.
    pub(super) is_superseded: bool,
    /// When it was first heard of.
    pub(super) known: Instant,
}

impl<R: Resources> VersionEntry<R> {
    pub(super) fn new(code: Arc<Code>, now: Instant) -> Self {
        Self {
            code,
            instances: Vec::new(),
            starting: 0,
            asked: 0,
            waiting: VecDeque::new(),
            window: Window::default(),
            start_ms: FIRST_START_MS,
            failures: 0,
            again_at: now,
            is_superseded: false,
            known: now,
        }
    }

    /// Instances, those that are being made included.
    pub(super) fn count(&self) -> usize {
        self.instances.len() + self.starting as usize
    }

    /// Instances that will be there when what they work at has ended: but for those that take no more calls, and commands'
    /// that serve once.
    fn lasting(&self) -> usize {
        let serves_once = self.code.serving.reuse == Reuse::Never && self.code.serving.contract == Contract::Command;
        let lasts = |entry: &&Entry<R::Instance>| !(entry.is_closing || (serves_once && entry.in_flight > 0));
        self.instances.iter().filter(lasts).count()
    }

    /// Instances that will be there, those that are being made included.
    pub(super) fn coming(&self) -> usize {
        self.lasting() + self.starting as usize
    }

    /// Marks as cold the waiting calls that the instances being made have room for.
    pub(super) fn mark_cold(&mut self) {
        let places = self.asked as usize * self.code.serving.parallel() as usize;
        self.waiting.iter_mut().take(places).for_each(|waiting| waiting.is_cold = true);
    }

    /// Instances that should be there whether or not calls come.
    pub(super) fn minimum(&self, now: Instant) -> u32 {
        if self.is_superseded || now < self.again_at { 0 } else { self.code.serving.minimum }
    }

    /// Calls that run.
    pub(super) fn under_way(&self) -> u32 {
        self.instances.iter().map(|entry| entry.in_flight).sum()
    }

    pub(super) fn find(&mut self, id: InstanceId) -> Option<(usize, &mut Entry<R::Instance>)> {
        self.instances.iter_mut().enumerate().find(|(_, entry)| entry.id == id)
    }

    /// An instance was made.
    pub(super) fn take_in(&mut self, instance: R::Instance, id: InstanceId, scores: &GreedyDual, at: (Instant, u64)) {
        let score = self.score(0, UNMEASURED, scores, at.1);
        self.instances.push(Entry {
            id,
            instance,
            in_flight: 0,
            idle_since: at.0,
            is_frozen: false,
            is_closing: false,
            is_cleaning: false,
            memory: UNMEASURED,
            calls: 0,
            score,
        });
    }

    /// An instance was cleaned, and is idle.
    pub(super) fn cleaned(&mut self, id: InstanceId, has_run: bool, scores: &GreedyDual, at: (Instant, u64)) {
        let Some((index, entry)) = self.find(id) else { return };
        entry.calls += u64::from(has_run);
        entry.is_cleaning = false;
        entry.is_frozen = false;
        entry.idle_since = at.0;
        let (calls, memory) = (entry.calls, entry.memory);
        self.instances[index].score = self.score(calls, memory, scores, at.1);
    }

    /// One that answers a single call is worth what its version is.
    fn score(&mut self, calls: u64, memory: u64, scores: &GreedyDual, at_ms: u64) -> f64 {
        let answers_once = self.code.serving.reuse == Reuse::Never;
        let calls_of_all = if answers_once { self.window.calls(at_ms) } else { 0 };
        scores.worth(calls_of_all.max(calls), self.start_ms, memory)
    }

    /// Destroys what has been idle for too long, but for as many as should be there.
    pub(super) fn let_go(&mut self, now: Instant, idle: Duration, keep: usize, effects: &mut Vec<Effect<R>>) {
        let mut spare = self.lasting().saturating_sub(keep);
        let old = self.instances.extract_if(.., |entry| {
            let goes = spare > 0 && entry.is_idle() && now.saturating_duration_since(entry.idle_since) > idle;
            spare -= usize::from(goes);
            goes
        });
        effects.extend(old.map(|entry| Effect::Destroy(entry.instance)));
    }

    /// Has idle instances measured, and frozen after a while.
    pub(super) fn rest(
        &self,
        version: &Arc<VersionKey>,
        now: Instant,
        freeze_after: Duration,
        effects: &mut Vec<Effect<R>>,
    ) {
        for entry in self.instances.iter().filter(|entry| entry.is_idle() && !entry.is_frozen) {
            effects.push(Effect::Measure {
                at: InstanceRef { version: Arc::clone(version), id: entry.id },
                instance: entry.instance.clone(),
                idle_since: entry.idle_since,
                freeze: now.saturating_duration_since(entry.idle_since) > freeze_after,
            });
        }
    }
}
