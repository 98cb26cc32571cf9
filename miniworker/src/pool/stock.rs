//! Instances that wait without code, for engines that take long to make one: code enters them at the call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use faena_domain::{EngineKind, Limits, Network, Preload};
use faena_engine::{EngineError, ImageId, Instance, InstanceSpec};
use faena_instance_protocol::ToAgent;
use faena_protocol::records::Code;
use tracing::{debug, warn};

use super::Shared;
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
}

impl Blank {
    /// What a version's instances are made as, where they may be made before they are asked for.
    fn of(code: &Code, default: Preload, node: &Node) -> Option<Self> {
        let engine = code.engine?;
        let is_worth_it = node.engines.get(&engine)?.is_slow_to_make();
        let preloads = code.serving.preload.unwrap_or(default) >= Preload::Runtime;
        (is_worth_it && preloads).then(|| Self {
            engine,
            image: code.image_id.clone().unwrap_or_else(|| code.image.clone()),
            path: code.path.clone(),
            // How long a call may take is nothing to its instance.
            limits: Limits { timeout: Limits::DEFAULT.timeout, ..code.limits },
            has_egress: code.network == Network::Egress,
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
        }
    }
}

#[derive(Debug)]
struct Shelf {
    blank: Blank,
    ready: Vec<Instance>,
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
        self.shelves().drain().flat_map(|(_, shelf)| shelf.ready).collect()
    }

    /// Takes out what nobody has asked for in a while.
    pub(super) fn forget(&self, unused_for: Duration) -> Vec<Instance> {
        let mut shelves = self.shelves();
        let old: Vec<String> = shelves
            .iter()
            .filter(|(_, shelf)| shelf.used.elapsed() >= unused_for && shelf.making == 0)
            .map(|(name, _)| name.clone())
            .collect();
        old.into_iter().filter_map(|name| shelves.remove(&name)).flat_map(|shelf| shelf.ready).collect()
    }
}

fn name(blank: &Blank) -> String {
    format!("{blank:?}")
}

impl Shared {
    /// An instance that waits for this version's code, if there is one.
    pub(super) fn take_blank(&self, code: &Code) -> Option<Instance> {
        let blank = Blank::of(code, self.config.preload, &self.node)?;
        let mut shelves = self.stock.shelves();
        let shelf = shelves.get_mut(&name(&blank))?;
        shelf.used = Instant::now();
        shelf.ready.pop()
    }

    /// A version like this one may be called soon: what waits without code is made, where it is not there.
    pub(super) fn restock(self: &Arc<Self>, code: &Code) {
        let Some(blank) = Blank::of(code, self.config.preload, &self.node) else { return };
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

    async fn make_blank(self: Arc<Self>, blank: Blank) {
        let Some(engine) = self.node.engines.get(&blank.engine) else { return };
        let mut made = engine.create(blank.spec(&self.node)).await;
        if let Ok(instance) = &made
            // An agent that is never told of a lease ends after a minute.
            && let Err(error) = instance.agent.send(&ToAgent::Lease { until_ms: u64::MAX }, &[]).await
        {
            made = Err(EngineError::Lost { step: "telling the lease".to_owned(), message: error.to_string() });
        }
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
                        Ok(instance) if !self.state().is_closed() => {
                            self.metrics.refills.inc();
                            shelf.ready.push(instance);
                            None
                        }
                        made => made.ok(),
                    }
                }
                None => made.ok(),
            }
        };
        if let Some(instance) = left {
            debug!("an instance without code came too late");
            instance.guard.destroy().await;
        }
    }
}
