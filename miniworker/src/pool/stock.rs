//! Instances that wait without code, for engines that take long to make one: code enters them at the call.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use faena_domain::keep_alive::Window;
use faena_domain::{EngineKind, Limits, Network};
use faena_engine::{Engine, EngineError, ImageId, Instance, InstanceSpec};
use faena_instance_protocol::ToAgent;
use faena_protocol::records::Code;
use tracing::{debug, warn};

use super::Shared;
use super::start::{Channel, waiting};
use super::state::UNMEASURED;
use crate::{Node, instance};

/// The most instances of one kind that wait, of those that hold an interpreter and are cheap, and the most of all kinds but
/// for the first of each.
const MOST: u32 = 64;
/// The most of one kind that an engine takes long to make.
const MOST_SLOW: u32 = 4;
/// How long one waits at most: what clones of one interpreter have in common is not known for longer.
const AGE: Duration = Duration::from_secs(3600);
/// What all of them may hold together of the memory that the pool may: this part.
const SHARE: u64 = 8;
/// How long after one could not be made it is not tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// How long after a call more are made for the next ones: the call itself shall have the processor first.
const CALM: Duration = Duration::from_millis(200);

/// All that has to be known of an instance before it is made, but for its code.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Blank {
    engine: EngineKind,
    image: String,
    path: String,
    limits: Limits,
    has_egress: bool,
    /// Whose interpreter waits in it, where one does.
    domain: Option<String>,
}

/// An instance that waits without code.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) instance: Instance,
    /// The way to the interpreter in it.
    pub(super) channel: Option<Channel>,
    /// What it holds, in bytes, as it was looked at last.
    memory: u64,
    made: Instant,
}

impl Blank {
    /// What a version's instances are made as, where they may be made before they are asked for; `domain` is whose they
    /// are, where an interpreter may wait in them.
    fn of(code: &Code, domain: Option<&str>, pool: &Shared) -> Option<(Self, Arc<dyn Engine>)> {
        let engine = code.engine?;
        let maker = pool.node.engines.get(&engine)?;
        let domain = domain.filter(|_| maker.interpreters() > 0).map(str::to_owned);
        let is_worth_it = maker.is_slow_to_make() || domain.is_some();
        let blank = || Self {
            engine,
            image: code.image_id.clone().unwrap_or_else(|| code.image.clone()),
            path: code.path.clone(),
            // How long a call may take is nothing to its instance.
            limits: Limits { timeout: Limits::DEFAULT.timeout, ..code.limits },
            has_egress: code.network == Network::Egress,
            domain,
        };
        (is_worth_it && pool.preloads(code)).then(|| (blank(), Arc::clone(maker)))
    }

    /// The instance itself, with code or without.
    pub(super) fn spec(&self, node: &Node) -> InstanceSpec {
        InstanceSpec {
            name: instance::name('b'),
            image: ImageId(self.image.clone()),
            code: None,
            path: self.path.clone(),
            limits: self.limits,
            egress: self.has_egress,
            ca_bundle: node.ca_bundle.clone().filter(|_| self.has_egress),
            resident: None,
        }
    }
}

/// Instances of one kind: as many wait as were asked for within one second, at most, of the last 300.
#[derive(Debug)]
struct Shelf {
    blank: Blank,
    engine: Arc<dyn Engine>,
    /// The oldest first.
    ready: VecDeque<Spare>,
    is_refilled: bool,
    /// When it was first and last asked for.
    since: Instant,
    used: Instant,
    /// The second that it was last asked in, since the first, and how often in it.
    second: (u64, u32),
    window: Window,
    /// When one could not be made; it is not tried again at once.
    failed: Option<Instant>,
}

impl Shelf {
    fn new((blank, engine): (Blank, Arc<dyn Engine>), now: Instant) -> Self {
        Self {
            blank,
            engine,
            ready: VecDeque::new(),
            is_refilled: false,
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
        self.failed.is_some_and(|failed| now.saturating_duration_since(failed) < AGAIN)
    }

    /// How many should wait.
    fn wanted(&mut self, now: Instant) -> usize {
        let most = if self.engine.is_slow_to_make() { MOST_SLOW } else { MOST };
        self.window.peak(self.age_ms(now)).clamp(1, most) as usize
    }

    fn memory(&self) -> u64 {
        self.ready.iter().map(|spare| spare.memory).sum()
    }
}

/// What waits without code.
#[derive(Debug, Default)]
pub(super) struct Stock(Mutex<HashMap<String, Shelf>>);

/// What becomes of a shelf next.
enum Next {
    /// It is full, or gone, or could not be filled.
    Done,
    /// Somebody has just been served.
    Rest(Duration),
    Make(Blank, Arc<dyn Engine>),
}

impl Stock {
    fn shelves(&self) -> MutexGuard<'_, HashMap<String, Shelf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What whoever refills a shelf does next, who has rested for so long already; after `Done` another may.
    fn next(&self, name: &str, memory: u64, rested: Duration, now: Instant) -> Next {
        let mut shelves = self.shelves();
        let held: u64 = shelves.values().map(Shelf::memory).sum();
        let count: usize = shelves.values().map(|shelf| shelf.ready.len()).sum();
        let Some(shelf) = shelves.get_mut(name) else { return Next::Done };
        let is_full = !shelf.ready.is_empty() && (held >= memory || count >= MOST as usize);
        if is_full || shelf.ready.len() >= shelf.wanted(now) || shelf.has_failed(now) {
            shelf.is_refilled = false;
            return Next::Done;
        }
        let rest = CALM.saturating_sub(now.saturating_duration_since(shelf.used));
        // Where calls come all the time there is no calm; the first is made all the same.
        if rest.is_zero() || (shelf.ready.is_empty() && rested >= CALM) {
            return Next::Make(shelf.blank.clone(), Arc::clone(&shelf.engine));
        }
        Next::Rest(rest)
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.shelves().values().map(|shelf| shelf.ready.len() as u64).sum()
    }

    /// Takes out all of it.
    pub(super) fn empty(&self) -> Vec<Instance> {
        self.shelves().drain().flat_map(|(_, shelf)| shelf.ready).map(|spare| spare.instance).collect()
    }

    /// Takes out what nobody has asked for in a while, and what is more than was asked for lately.
    pub(super) fn forget(&self, unused_for: Duration) -> Vec<Instance> {
        let now = Instant::now();
        let mut shelves = self.shelves();
        let is_old = |shelf: &mut Shelf| now.saturating_duration_since(shelf.used) >= unused_for && !shelf.is_refilled;
        let mut spares: Vec<Spare> =
            shelves.extract_if(|_, shelf| is_old(shelf)).flat_map(|(_, shelf)| shelf.ready).collect();
        for shelf in shelves.values_mut() {
            let surplus = shelf.ready.len().saturating_sub(shelf.wanted(now));
            let is_old = |spare: &Spare| now.saturating_duration_since(spare.made) >= AGE;
            let old = shelf.ready.iter().take_while(|spare| is_old(spare)).count();
            spares.extend(shelf.ready.drain(..surplus.max(old)));
            for spare in &mut shelf.ready {
                spare.memory = spare.instance.guard.memory().unwrap_or(UNMEASURED);
            }
        }
        spares.into_iter().map(|spare| spare.instance).collect()
    }
}

fn name(blank: &Blank) -> String {
    format!("{blank:?}")
}

impl Shared {
    /// An instance that waits for this version's code, if there is one.
    pub(super) fn take_blank(&self, code: &Code, domain: Option<&str>) -> Option<Spare> {
        let blank = Blank::of(code, domain, self)?;
        let mut shelves = self.stock.shelves();
        let now = Instant::now();
        let shelf = shelves.entry(name(&blank.0)).or_insert_with(|| Shelf::new(blank, now));
        shelf.asked(now);
        shelf.ready.pop_front()
    }

    /// A version like this one may be called soon: what waits without code is made, where it is not there.
    pub(super) fn restock(self: &Arc<Self>, code: &Code, domain: Option<&str>) {
        let Some(blank) = Blank::of(code, domain, self) else { return };
        let (name, now) = (name(&blank.0), Instant::now());
        let mut shelves = self.stock.shelves();
        let shelf = shelves.entry(name.clone()).or_insert_with(|| Shelf::new(blank, now));
        shelf.used = now;
        // What could not be made is tried again when somebody needs it.
        if shelf.has_failed(now) || std::mem::replace(&mut shelf.is_refilled, true) {
            return;
        }
        drop(shelves);
        self.tasks.spawn_on(Arc::clone(self).refill(name), &self.config.home);
    }

    /// Makes one after the other, until as many wait as should.
    async fn refill(self: Arc<Self>, name: String) {
        let mut rested = Duration::ZERO;
        loop {
            match self.stock.next(&name, self.config.memory.0 / SHARE, rested, Instant::now()) {
                Next::Done => return,
                Next::Rest(rest) => {
                    tokio::time::sleep(rest).await;
                    rested += rest;
                }
                Next::Make(..) if self.state().is_closed() => return,
                Next::Make(blank, engine) => {
                    let began = Instant::now();
                    rested = Duration::ZERO;
                    self.make_blank(&name, &blank, &*engine).await;
                    // Half of a processor is everybody else's.
                    tokio::time::sleep(began.elapsed()).await;
                }
            }
        }
    }

    async fn try_blank(&self, blank: &Blank, engine: &dyn Engine) -> Result<Spare, EngineError> {
        let failed = |error: &dyn std::fmt::Display| EngineError::Lost {
            step: "making an instance without code".to_owned(),
            message: error.to_string(),
        };
        let (resident, channel) = match &blank.domain {
            Some(domain) => waiting(domain, &blank.path).map(|(run, channel)| (Some(Arc::new(run)), Some(channel))),
            None => Ok((None, None)),
        }
        .map_err(|error| failed(&error))?;
        let instance = engine.create(InstanceSpec { resident, ..blank.spec(&self.node) }).await?;
        // An agent that is never told of a lease ends after a minute.
        let told = instance.agent.send(&ToAgent::Lease { until_ms: u64::MAX }, &[]).await;
        let why = match told {
            Ok(()) if channel.is_none() || instance.is_inhabited => {
                let memory = instance.guard.memory().unwrap_or(UNMEASURED);
                return Ok(Spare { instance, channel, memory, made: Instant::now() });
            }
            Ok(()) => failed(&"no interpreter is held ready"),
            Err(error) => failed(&error),
        };
        instance.guard.destroy().await;
        Err(why)
    }

    async fn make_blank(&self, name: &str, blank: &Blank, engine: &dyn Engine) {
        let made = self.try_blank(blank, engine).await;
        if let Err(error) = &made {
            warn!(%error, "an instance without code could not be made");
        }
        let left = {
            let mut shelves = self.stock.shelves();
            match shelves.get_mut(name) {
                Some(shelf) => {
                    shelf.failed = made.is_err().then(Instant::now);
                    match made {
                        Ok(spare) if !self.state().is_closed() => {
                            self.metrics.refills.inc();
                            shelf.ready.push_back(spare);
                            None
                        }
                        made => made.ok(),
                    }
                }
                None => made.ok(),
            }
        };
        if let Some(spare) = left {
            debug!("an instance without code came too late");
            spare.instance.guard.destroy().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use faena_test_support::FakeEngine;

    use super::*;

    fn shelf(now: Instant) -> Shelf {
        let blank = Blank {
            engine: EngineKind::Sandbox,
            image: "image".to_owned(),
            path: "/ws".to_owned(),
            limits: Limits::DEFAULT,
            has_egress: false,
            domain: None,
        };
        Shelf::new((blank, Arc::new(FakeEngine::default())), now)
    }

    #[test]
    fn as_many_wait_as_were_asked_for_within_a_second() {
        let began = Instant::now();
        let (mut shelf, at) = (shelf(began), |ms| began + Duration::from_millis(ms));
        assert_eq!(shelf.wanted(began), 1);
        for n in 0..10 {
            shelf.asked(at(1000 + 50 * n));
        }
        // Ten more, but never two within one second.
        for n in 0..10 {
            shelf.asked(at(10_000 + 1000 * n));
        }
        assert_eq!(shelf.wanted(at(20_000)), 10);
        assert_eq!(shelf.wanted(at(400_000)), 1);
    }

    #[test]
    fn there_is_a_bound_to_what_waits() {
        let now = Instant::now();
        let mut shelf = shelf(now);
        (0..1000).for_each(|_| shelf.asked(now));
        assert_eq!(shelf.wanted(now), MOST as usize);
    }

    #[test]
    fn a_shelf_is_refilled_by_one_and_only_when_nobody_asks() {
        let now = Instant::now();
        let stock = Stock::default();
        let mut full = shelf(now);
        full.asked(now);
        stock.shelves().insert("a".to_owned(), full);
        let next = |name: &str, rested: Duration, after: Duration| stock.next(name, 1, rested, now + after);
        assert!(matches!(next("a", Duration::ZERO, Duration::ZERO), Next::Rest(rest) if rest == CALM));
        assert!(matches!(next("a", Duration::ZERO, CALM), Next::Make(..)));
        assert!(matches!(next("a", CALM, Duration::ZERO), Next::Make(..)), "calls that never cease leave it empty");
        stock.shelves().get_mut("a").unwrap().failed = Some(now);
        assert!(matches!(next("a", Duration::ZERO, CALM), Next::Done));
        assert!(matches!(next("b", Duration::ZERO, Duration::ZERO), Next::Done));
    }
}
