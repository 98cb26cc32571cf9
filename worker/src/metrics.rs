//! What a worker counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct End {
    pub(crate) engine: &'static str,
    pub(crate) status: &'static str,
}

/// The metrics of a worker; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) attempts: Family<End, Counter>,
    pub(crate) builds: Family<Built, Counter>,
    pub(crate) busy: Gauge,
    pub(crate) start_seconds: Histogram,
    pub(crate) run_seconds: Histogram,
}

/// How a build ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Built {
    pub(crate) status: &'static str,
}

impl Metrics {
    /// Registers the metrics under `faena_worker_`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            attempts: Family::default(),
            builds: Family::default(),
            busy: Gauge::default(),
            start_seconds: Histogram::new(faena_telemetry::seconds_buckets()),
            run_seconds: Histogram::new(faena_telemetry::seconds_buckets()),
        };
        let registry = registry.sub_registry_with_prefix("faena_worker");
        registry.register("attempts", "Attempts that ended", metrics.attempts.clone());
        registry.register("builds", "Builds that ended", metrics.builds.clone());
        registry.register("busy_slots", "Slots in use", metrics.busy.clone());
        registry.register("start_seconds", "From dispatch to the start of the process", metrics.start_seconds.clone());
        registry.register("run_seconds", "From the start of the process to its end", metrics.run_seconds.clone());
        metrics
    }
}
