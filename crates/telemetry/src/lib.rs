//! Logs and metrics: how every role begins to tell what it does.

use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is none.
    #[error("the log filter {0:?} is none; one looks like info or info,faena_api=debug")]
    Filter(String),
    /// Somebody else logs in this process already.
    #[error("logging was begun twice")]
    Twice,
}

/// Begins logging to standard error.
///
/// # Errors
/// A filter that is none, or a second beginning.
pub fn init_logs(filter: &str, format: LogFormat) -> Result<(), LogError> {
    let targets = Targets::from_str(filter).map_err(|_| LogError::Filter(filter.to_owned()))?;
    let layer =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let layer = match format {
        LogFormat::Text => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(targets)).try_init().map_err(|_| LogError::Twice)
}

/// The metrics of one process; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// Lets a role register what it counts.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.lock())
    }

    /// Everything in Prometheus' text format (OpenMetrics 1.0).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock();
        // Writing into a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

/// Buckets for spans, in seconds: from 0.1 ms to about 100 s, three for each power of ten.
pub fn seconds_buckets() -> impl Iterator<Item = f64> {
    [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
        .into_iter()
        .flat_map(|decade| [decade, 2.5 * decade, 5.0 * decade])
        .chain([100.0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_rise_from_a_tenth_of_a_millisecond() {
        let buckets: Vec<f64> = seconds_buckets().collect();
        assert!(buckets.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(buckets.first(), Some(&1e-4));
    }

    #[test]
    fn metrics_are_prometheus_text() {
        let metrics = Metrics::default();
        let counter = prometheus_client::metrics::counter::Counter::<u64>::default();
        metrics.register(|registry| registry.register("calls", "Calls", counter.clone()));
        counter.inc();
        assert!(metrics.encode().contains("calls_total 1"));
    }
}
