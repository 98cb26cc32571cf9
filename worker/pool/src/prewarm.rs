//! Instances that wait without code, for engines that take long to make one, or that hold an interpreter ready: code is
//! mounted in them when a call comes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::keep_alive::Window;
use faena_engine::Engine;
use faena_miniworker::{PrewarmKey, Prewarmed};
use faena_protocol::records::Code;
use parking_lot::{Mutex, MutexGuard};
use tracing::{debug, warn};

use crate::Shared;
use crate::state::UNMEASURED;

/// The most instances of one cheap kind; also the most of all kinds together, except that each kind may always have one.
const MAX_READY: u32 = 64;
/// The most of one kind that an engine takes long to make.
const MAX_READY_SLOW: u32 = 4;
/// How long one waits at most: what clones of one interpreter have in common is not known for longer.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// What all of them may hold together: this part of the memory that the pool may.
const MEMORY_SHARE: u64 = 8;
/// How long after one could not be made it is not tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long after a call more are made for the next ones: the call itself gets the processor first.
const CALM: Duration = Duration::from_millis(200);

/// One that is ready.
#[derive(Debug)]
struct Ready {
    prewarmed: Prewarmed,
    /// What it held when it was measured last, in bytes.
    memory: u64,
    made: Instant,
}

/// Instances of one kind: as many wait as were asked for within one second, at most, of the last 300.
#[derive(Debug)]
struct Kind {
    engine: Arc<dyn Engine>,
    /// The oldest first.
    ready: VecDeque<Ready>,
    is_refilling: bool,
    /// When it was first and last asked for.
    since: Instant,
    used: Instant,
    /// The second that it was last asked in, since the first, and how often in it.
    second: (u64, u32),
    window: Window,
    /// When one could not be made; it is not tried again at once.
    failed: Option<Instant>,
}

impl Kind {
    fn new(engine: Arc<dyn Engine>, now: Instant) -> Self {
        Self {
            engine,
            ready: VecDeque::new(),
            is_refilling: false,
            since: now,
            used: now,
            second: (0, 0),
            window: Window::default(),
            failed: None,
        }
    }

    fn age_ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX)
    }

    /// Somebody needs one.
    fn asked(&mut self, now: Instant) {
        let at = self.age_ms(now);
        self.second = match self.second {
            (second, asked) if second == at / 1000 => (second, asked + 1),
            _ => (at / 1000, 1),
        };
        self.used = now;
        self.window.began(at, self.second.1);
    }

    /// Whether one could not be made a moment ago.
    fn has_failed(&self, now: Instant) -> bool {
        self.failed.is_some_and(|failed| now.saturating_duration_since(failed) < RETRY_AFTER)
    }

    /// How many should wait.
    fn wanted(&mut self, now: Instant) -> usize {
        let most = if self.engine.is_slow_to_make() { MAX_READY_SLOW } else { MAX_READY };
        self.window.peak(self.age_ms(now)).clamp(1, most) as usize
    }

    fn memory(&self) -> u64 {
        self.ready.iter().map(|ready| ready.memory).sum()
    }
}

/// All that wait without code.
#[derive(Debug, Default)]
pub(crate) struct PrewarmPool(Mutex<HashMap<PrewarmKey, Kind>>);

/// What is done about a kind next.
enum Next {
    /// Enough are ready, or it is not kept any more, or one could not be made.
    Done,
    /// A call has just come.
    Rest(Duration),
    Make(Arc<dyn Engine>),
}

impl PrewarmPool {
    fn kinds(&self) -> MutexGuard<'_, HashMap<PrewarmKey, Kind>> {
        self.0.lock()
    }

    /// What the task that refills a kind does next, which has rested for so long already; after `Done` another may begin.
    fn next(&self, key: &PrewarmKey, memory: u64, rested: Duration, now: Instant) -> Next {
        let mut kinds = self.kinds();
        let held: u64 = kinds.values().map(Kind::memory).sum();
        let count: usize = kinds.values().map(|kind| kind.ready.len()).sum();
        let Some(kind) = kinds.get_mut(key) else { return Next::Done };
        let is_full = !kind.ready.is_empty() && (held >= memory || count >= MAX_READY as usize);
        if is_full || kind.ready.len() >= kind.wanted(now) || kind.has_failed(now) {
            kind.is_refilling = false;
            return Next::Done;
        }
        let rest = CALM.saturating_sub(now.saturating_duration_since(kind.used));
        // Where calls come all the time there is no calm; the first is made all the same.
        if rest.is_zero() || (kind.ready.is_empty() && rested >= CALM) {
            return Next::Make(Arc::clone(&kind.engine));
        }
        Next::Rest(rest)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.kinds().values().map(|kind| kind.ready.len() as u64).sum()
    }

    /// Takes out all of it.
    pub(crate) fn empty(&self) -> Vec<Prewarmed> {
        self.kinds().drain().flat_map(|(_, kind)| kind.ready).map(|ready| ready.prewarmed).collect()
    }

    /// Takes out what was not asked for in a while, and what is more than was asked for lately.
    pub(crate) fn forget(&self, unused_for: Duration) -> Vec<Prewarmed> {
        let now = Instant::now();
        let mut kinds = self.kinds();
        let is_old = |kind: &mut Kind| now.saturating_duration_since(kind.used) >= unused_for && !kind.is_refilling;
        let mut left: Vec<Ready> = kinds.extract_if(|_, kind| is_old(kind)).flat_map(|(_, kind)| kind.ready).collect();
        for kind in kinds.values_mut() {
            let surplus = kind.ready.len().saturating_sub(kind.wanted(now));
            let is_old = |ready: &Ready| now.saturating_duration_since(ready.made) >= MAX_AGE;
            let old = kind.ready.iter().take_while(|ready| is_old(ready)).count();
            left.extend(kind.ready.drain(..surplus.max(old)));
            for ready in &mut kind.ready {
                ready.memory = ready.prewarmed.memory().unwrap_or(UNMEASURED);
            }
        }
        left.into_iter().map(|ready| ready.prewarmed).collect()
    }
}

impl Shared {
    /// What a version's instances are prewarmed as, where that pays off.
    fn prewarm_key(&self, code: &Code, domain: Option<&str>) -> Option<(PrewarmKey, Arc<dyn Engine>)> {
        PrewarmKey::of(code, domain, &self.node).filter(|_| self.preloads(code))
    }

    /// An instance that waits for this version's code, if there is one.
    pub(crate) fn take_prewarmed(&self, code: &Code, domain: Option<&str>) -> Option<Prewarmed> {
        let (key, engine) = self.prewarm_key(code, domain)?;
        let mut kinds = self.prewarm.kinds();
        let now = Instant::now();
        let kind = kinds.entry(key).or_insert_with(|| Kind::new(engine, now));
        kind.asked(now);
        kind.ready.pop_front().map(|ready| ready.prewarmed)
    }

    /// A version like this one may be called soon: what waits without code is made, where it is not there.
    pub(crate) fn restock(self: &Arc<Self>, code: &Code, domain: Option<&str>) {
        let Some((key, engine)) = self.prewarm_key(code, domain) else { return };
        let now = Instant::now();
        let mut kinds = self.prewarm.kinds();
        let kind = kinds.entry(key.clone()).or_insert_with(|| Kind::new(engine, now));
        kind.used = now;
        // What could not be made is tried again when a call needs it.
        if kind.has_failed(now) || std::mem::replace(&mut kind.is_refilling, true) {
            return;
        }
        drop(kinds);
        self.node.tasks.spawn_on(Arc::clone(self).refill(key), &self.config.home);
    }

    /// Makes one after the other, until as many are ready as should be.
    async fn refill(self: Arc<Self>, key: PrewarmKey) {
        let mut rested = Duration::ZERO;
        loop {
            let memory = self.config.policy.memory.0 / MEMORY_SHARE;
            match self.prewarm.next(&key, memory, rested, Instant::now()) {
                Next::Done => return,
                Next::Rest(rest) => {
                    tokio::time::sleep(rest).await;
                    rested += rest;
                }
                Next::Make(..) if self.state().is_closed() => return,
                Next::Make(engine) => {
                    let began = Instant::now();
                    rested = Duration::ZERO;
                    self.make_prewarmed(&key, &engine).await;
                    // Half of a processor is left to everything else.
                    tokio::time::sleep(began.elapsed()).await;
                }
            }
        }
    }

    async fn make_prewarmed(&self, key: &PrewarmKey, engine: &Arc<dyn Engine>) {
        let made = key.make(&self.node, engine).await;
        if let Err(error) = &made {
            warn!(%error, "an instance could not be prewarmed");
        }
        let has_failed = made.is_err();
        if let Some(unwanted) = self.keep_prewarmed(key, made.ok(), has_failed) {
            debug!("an instance was prewarmed too late");
            unwanted.destroy().await;
        }
    }

    /// Takes in what was made; gives it back where it is not kept any more.
    fn keep_prewarmed(&self, key: &PrewarmKey, made: Option<Prewarmed>, has_failed: bool) -> Option<Prewarmed> {
        let mut kinds = self.prewarm.kinds();
        let Some(kind) = kinds.get_mut(key) else { return made };
        let now = Instant::now();
        kind.failed = has_failed.then_some(now);
        let prewarmed = made?;
        if self.state().is_closed() {
            return Some(prewarmed);
        }
        self.metrics.refills.inc();
        let memory = prewarmed.memory().unwrap_or(UNMEASURED);
        kind.ready.push_back(Ready { prewarmed, memory, made: now });
        None
    }
}

#[cfg(test)]
mod tests {
    use faena_domain::{EngineKind, Limits};
    use faena_test_support::FakeEngine;

    use super::*;

    fn kind(now: Instant) -> Kind {
        Kind::new(Arc::new(FakeEngine::default()), now)
    }

    #[test]
    fn as_many_wait_as_were_asked_for_within_a_second() {
        let began = Instant::now();
        let (mut kind, at) = (kind(began), |ms| began + Duration::from_millis(ms));
        assert_eq!(kind.wanted(began), 1);
        for n in 0..10 {
            kind.asked(at(1000 + 50 * n));
        }
        // Ten more, but never two within one second.
        for n in 0..10 {
            kind.asked(at(10_000 + 1000 * n));
        }
        assert_eq!(kind.wanted(at(20_000)), 10);
        assert_eq!(kind.wanted(at(400_000)), 1);
    }

    #[test]
    fn there_is_a_bound_to_what_waits() {
        let now = Instant::now();
        let mut kind = kind(now);
        (0..1000).for_each(|_| kind.asked(now));
        assert_eq!(kind.wanted(now), MAX_READY as usize);
    }

    #[test]
    fn a_kind_is_refilling_when_no_call_comes() {
        let now = Instant::now();
        let pool = PrewarmPool::default();
        let mut asked = kind(now);
        asked.asked(now);
        let [known, unknown] = ["a", "b"].map(|image| PrewarmKey {
            engine: EngineKind::Sandbox,
            image: image.to_owned(),
            content: None,
            path: "/ws".to_owned(),
            limits: Limits::DEFAULT,
            has_egress: false,
            domain: None,
        });
        pool.kinds().insert(known.clone(), asked);
        let next = |key: &PrewarmKey, rested: Duration, after: Duration| pool.next(key, 1, rested, now + after);
        assert!(matches!(next(&known, Duration::ZERO, Duration::ZERO), Next::Rest(rest) if rest == CALM));
        assert!(matches!(next(&known, Duration::ZERO, CALM), Next::Make(..)));
        assert!(matches!(next(&known, CALM, Duration::ZERO), Next::Make(..)), "calls that never cease leave it empty");
        pool.kinds().get_mut(&known).unwrap().failed = Some(now);
        assert!(matches!(next(&known, Duration::ZERO, CALM), Next::Done));
        assert!(matches!(next(&unknown, Duration::ZERO, CALM), Next::Done));
    }
}
