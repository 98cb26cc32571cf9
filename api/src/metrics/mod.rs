//! What the api counts.

mod functions;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use faena_scheduler::statistics::Statistics;

use crate::handed::ROUTE;
use functions::FunctionCollector;

/// A request by what was asked for and how it was answered; routes, never paths, so that the number is bounded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Request {
    pub(crate) route: String,
    pub(crate) status: u16,
}

/// The metrics of an api; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) requests: Family<Request, Counter>,
    pub(crate) request_seconds: Histogram,
    pub(crate) connections: Gauge,
    pub(crate) upload_bytes: Counter,
    /// Calls of the direct path that went well: found once, since they are the most.
    pub(crate) direct_ok: Counter,
}

impl Metrics {
    /// Registers the metrics under `faena_api_`, and those of functions under `faena_function_`.
    pub(crate) fn register(registry: &mut Registry, statistics: Statistics) -> Self {
        registry.register_collector(Box::new(FunctionCollector(statistics)));
        let requests = Family::<Request, Counter>::default();
        let direct_ok = requests.get_or_create(&Request { route: ROUTE.to_owned(), status: 200 }).clone();
        let metrics = Self {
            requests,
            direct_ok,
            request_seconds: Histogram::new(faena_telemetry::seconds_buckets()),
            connections: Gauge::default(),
            upload_bytes: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("faena_api");
        registry.register("requests", "Requests that were answered", metrics.requests.clone());
        registry.register(
            "request_seconds",
            "From the head of a request to its answer",
            metrics.request_seconds.clone(),
        );
        registry.register("connections", "Open connections", metrics.connections.clone());
        registry.register("upload_bytes", "Bytes of archives that were taken in", metrics.upload_bytes.clone());
        metrics
    }

    /// The counter of a route's answers of one status.
    pub(crate) fn request(&self, route: &str, status: u16) -> impl std::ops::Deref<Target = Counter> {
        self.requests.get_or_create(&Request { route: route.to_owned(), status })
    }
}
