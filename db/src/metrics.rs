//! What the database service counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The metrics of a database service; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) commits: Counter,
    pub(crate) writes: Counter,
    pub(crate) reads: Counter,
    pub(crate) commit_seconds: Histogram,
}

impl Metrics {
    /// Registers the metrics under `faena_db_`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            commits: Counter::default(),
            writes: Counter::default(),
            reads: Counter::default(),
            commit_seconds: Histogram::new(faena_telemetry::seconds_buckets()),
        };
        let registry = registry.sub_registry_with_prefix("faena_db");
        registry.register("commits", "Transactions that were made durable", metrics.commits.clone());
        registry.register("writes", "Requests that write", metrics.writes.clone());
        registry.register("reads", "Requests that read", metrics.reads.clone());
        registry.register("commit_seconds", "Time of a commit, fsync included", metrics.commit_seconds.clone());
        metrics
    }
}
