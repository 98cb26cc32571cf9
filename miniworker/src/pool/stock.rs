//! Instances that wait without code, for engines that take long to make one: code enters them at the call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use faena_domain::{EngineKind, Limits, Network};
use faena_engine::{Engine, EngineError, ImageId, Instance, InstanceSpec};
use faena_instance_protocol::ToAgent;
use faena_protocol::records::Code;
use tracing::{debug, warn};

use super::Shared;
use super::start::{Voice, waiting};
use crate::{Node, instance};

/// Instances of one kind that wait.
const SHELF: usize = 1;
/// How long after a call one is made for the next: the call itself shall have the processor first.
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
    pub(super) voice: Option<Voice>,
}

impl Blank {
    /// What a version's instances are made as, where they may be made before they are asked for; `domain` is whose they
    /// are, where an interpreter may wait in them.
    fn of(code: &Code, domain: Option<&str>, pool: &Shared) -> Option<Self> {
        let engine = code.engine?;
        let maker = pool.node.engines.get(&engine)?;
        let domain = domain.filter(|_| maker.interpreters() > 0).map(str::to_owned);
        let is_worth_it = maker.is_slow_to_make() || domain.is_some();
        (is_worth_it && pool.preloads(code)).then(|| Self {
            engine,
            image: code.image_id.clone().unwrap_or_else(|| code.image.clone()),
            path: code.path.clone(),
            // How long a call may take is nothing to its instance.
            limits: Limits { timeout: Limits::DEFAULT.timeout, ..code.limits },
            has_egress: code.network == Network::Egress,
            domain,
        })
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

#[derive(Debug)]
struct Shelf {
    blank: Blank,
    ready: Vec<Spare>,
    making: usize,
    /// When it was last asked for.
    used: Instant,
    /// Tries that failed since the last one that did not.
    failures: u32,
}

/// What waits without code.
#[derive(Debug, Default)]
pub(super) struct Stock(Mutex<HashMap<String, Shelf>>);

impl Stock {
    fn shelves(&self) -> MutexGuard<'_, HashMap<String, Shelf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.shelves().values().map(|shelf| shelf.ready.len() as u64).sum()
    }

    /// Takes out all of it.
    pub(super) fn empty(&self) -> Vec<Instance> {
        self.shelves().drain().flat_map(|(_, shelf)| shelf.ready).map(|spare| spare.instance).collect()
    }

    /// Takes out what nobody has asked for in a while.
    pub(super) fn forget(&self, unused_for: Duration) -> Vec<Instance> {
        let mut shelves = self.shelves();
        let old: Vec<String> = shelves
            .iter()
            .filter(|(_, shelf)| shelf.used.elapsed() >= unused_for && shelf.making == 0)
            .map(|(name, _)| name.clone())
            .collect();
        old.into_iter()
            .filter_map(|name| shelves.remove(&name))
            .flat_map(|shelf| shelf.ready)
            .map(|spare| spare.instance)
            .collect()
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
        let shelf = shelves.get_mut(&name(&blank))?;
        shelf.used = Instant::now();
        shelf.ready.pop()
    }

    /// A version like this one may be called soon: what waits without code is made, where it is not there.
    pub(super) fn restock(self: &Arc<Self>, code: &Code, domain: Option<&str>) {
        let Some(blank) = Blank::of(code, domain, self) else { return };
        let mut shelves = self.stock.shelves();
        let shelf = shelves.entry(name(&blank)).or_insert_with(|| Shelf {
            blank,
            ready: Vec::new(),
            making: 0,
            used: Instant::now(),
            failures: 0,
        });
        shelf.used = Instant::now();
        // What could not be made is tried again when somebody needs it.
        if shelf.ready.len() + shelf.making >= SHELF || shelf.failures > 0 {
            shelf.failures = 0;
            return;
        }
        shelf.making += 1;
        let (shared, blank) = (Arc::clone(self), shelf.blank.clone());
        let making = async move {
            tokio::time::sleep(CALM).await;
            if !shared.state().is_closed() {
                shared.make_blank(blank).await;
            }
        };
        self.tasks.spawn_on(making, &self.config.home);
    }

    async fn try_blank(&self, blank: &Blank, engine: &dyn Engine) -> Result<Spare, EngineError> {
        let failed = |error: &dyn std::fmt::Display| EngineError::Lost {
            step: "making an instance without code".to_owned(),
            message: error.to_string(),
        };
        let (resident, voice) = match &blank.domain {
            Some(domain) => waiting(domain, &blank.path).map(|(run, voice)| (Some(Arc::new(run)), Some(voice))),
            None => Ok((None, None)),
        }
        .map_err(|error| failed(&error))?;
        let instance = engine.create(InstanceSpec { resident, ..blank.spec(&self.node) }).await?;
        // An agent that is never told of a lease ends after a minute.
        let told = instance.agent.send(&ToAgent::Lease { until_ms: u64::MAX }, &[]).await;
        let why = match told {
            Ok(()) if voice.is_none() || instance.is_inhabited => return Ok(Spare { instance, voice }),
            Ok(()) => failed(&"no interpreter is held ready"),
            Err(error) => failed(&error),
        };
        instance.guard.destroy().await;
        Err(why)
    }

    async fn make_blank(self: Arc<Self>, blank: Blank) {
        let Some(engine) = self.node.engines.get(&blank.engine) else { return };
        let made = self.try_blank(&blank, engine.as_ref()).await;
        if let Err(error) = &made {
            warn!(%error, "an instance without code could not be made");
        }
        let left = {
            let mut shelves = self.stock.shelves();
            match shelves.get_mut(&name(&blank)) {
                Some(shelf) => {
                    shelf.making -= 1;
                    shelf.failures += u32::from(made.is_err());
                    match made {
                        Ok(spare) if !self.state().is_closed() => {
                            self.metrics.refills.inc();
                            shelf.ready.push(spare);
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
