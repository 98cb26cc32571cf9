//! The one way from an instance to the world: a small proxy that resolves, judges and counts.

mod proxy;
mod request;

use std::collections::HashMap;

use faena_domain::FunctionId;
use faena_egress::Asker;
use parking_lot::Mutex;

pub(crate) use proxy::Egress;

/// Functions that are forgotten at once when there are more; those in use are known again when they ask.
const MOST: usize = 10_000;

/// On whose behalf names are looked up: one asker for all instances of a function, however many there are.
#[derive(Debug, Default)]
pub struct Askers(Mutex<HashMap<FunctionId, Asker>>);

impl Askers {
    /// The asker of a function.
    pub(crate) fn of(&self, function: FunctionId) -> Asker {
        let mut askers = self.0.lock();
        if askers.len() >= MOST {
            askers.clear();
        }
        askers.entry(function).or_default().clone()
    }
}
