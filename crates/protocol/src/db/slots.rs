//! Workers' slots, as db has to know them to claim.

use faena_domain::{FunctionId, Slots, Version};
use serde::{Deserialize, Serialize};

/// A worker's slots, and who holds how many of them ([`faena_domain::Slots`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotsView {
    /// All of them, without the reserve.
    pub total: u32,
    /// What is held.
    pub held: Vec<HeldSlots>,
}

/// What one function holds of a worker's slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldSlots {
    /// The function.
    pub function: FunctionId,
    /// How many.
    pub slots: u32,
}

/// Calls of a version that have a place in instances which work already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SparePlaces {
    /// The function.
    pub function: FunctionId,
    /// The version.
    pub version: Version,
    /// How many.
    pub calls: u32,
}

impl SlotsView {
    /// So many slots, all free.
    pub fn unused(total: u32) -> Self {
        Self { total, held: Vec::new() }
    }

    /// The same, to be counted on.
    pub fn to_slots(&self) -> Slots {
        let mut slots = Slots::new(self.total);
        for held in &self.held {
            (0..held.slots).for_each(|_| slots.take(&held.function));
        }
        slots
    }
}
