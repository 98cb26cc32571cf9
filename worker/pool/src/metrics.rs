//! What a pool counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics of a pool; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) refills: Counter,
    pub(crate) evictions: Counter,
    pub(crate) instances: Gauge,
    pub(crate) frozen: Gauge,
    pub(crate) memory: Gauge,
}

impl Metrics {
    /// Registers the metrics under `faena_pool_`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("faena_pool");
        registry.register("hits", "Calls that found an instance", metrics.hits.clone());
        registry.register("misses", "Instances made because a call waited", metrics.misses.clone());
        registry.register("refills", "Instances made in advance", metrics.refills.clone());
        registry.register(
            "evictions",
            "Idle instances that were destroyed, for room or for lack of calls",
            metrics.evictions.clone(),
        );
        registry.register("instances", "Instances that are idle or work", metrics.instances.clone());
        registry.register("frozen_instances", "Instances that are frozen", metrics.frozen.clone());
        registry.register("memory_bytes", "The memory that instances hold", metrics.memory.clone());
        metrics
    }
}
