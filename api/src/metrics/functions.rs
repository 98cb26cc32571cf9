//! What functions have done, for Prometheus: made at each scrape from [`Statistics`].

use std::fmt;

use faena_scheduler::statistics::{BUCKETS_US, Series, Statistics, Totals};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// The label of all functions that have none of their own.
const OTHER: &str = "other";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    namespace: String,
    function: String,
    path: &'static str,
}

impl Labels {
    fn of(series: &Series) -> Self {
        let (namespace, function) = match &series.function {
            Some(function) => (function.namespace.to_string(), function.name.to_string()),
            None => (String::new(), OTHER.to_owned()),
        };
        Self { namespace, function, path: series.path.as_str() }
    }
}

/// Encodes the statistics of functions.
#[derive(Debug)]
pub(super) struct FunctionCollector(pub(super) Statistics);

impl Collector for FunctionCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let series: Vec<(Labels, Series)> = self.0.series().into_iter().map(|one| (Labels::of(&one), one)).collect();
        type Count = fn(&Totals) -> u64;
        let counters: [(&str, &str, Count); 3] = [
            ("faena_function_calls", "Calls that ended, by function and call path", |totals| totals.calls),
            ("faena_function_errors", "Calls that ended in FAILED, TIMEOUT or EXPIRED", |totals| totals.errors),
            ("faena_function_cold_starts", "Calls whose instance was made for them", |totals| totals.cold),
        ];
        for (name, help, count) in counters {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, one) in &series {
                metric.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&count(&one.totals), None)?;
            }
        }
        let (name, help) = ("faena_function_seconds", "What the last attempt of a call took, with its wait");
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, one) in &series {
            let Totals { calls, sum_us, buckets, .. } = &one.totals;
            let (sum, buckets) = (seconds(*sum_us), with_bounds(buckets, *calls));
            metric.encode_family(labels)?.encode_histogram::<NoLabelSet>(sum, *calls, &buckets, None)?;
        }
        Ok(())
    }
}

/// Buckets with their upper bounds in seconds; the last has what is above all of them.
fn with_bounds(counts: &[u64], calls: u64) -> Vec<(f64, u64)> {
    let above = calls - counts.iter().sum::<u64>();
    let bounds = BUCKETS_US.iter().map(|micros| seconds(*micros)).chain([f64::INFINITY]);
    bounds.zip(counts.iter().copied().chain([above])).collect()
}

fn seconds(micros: u64) -> f64 {
    std::time::Duration::from_micros(micros).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use faena_domain::plan::CallPath;
    use faena_domain::{FunctionId, Namespace};
    use faena_scheduler::statistics::CallSample;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn calls_are_told_by_function_and_path() {
        let statistics = Statistics::default();
        let dice = FunctionId::new(&Namespace::default(), &"dice".parse().expect("a name"));
        for (path, millis) in [(CallPath::Direct, 2), (CallPath::Direct, 200_000), (CallPath::Queued, 2)] {
            let duration = Duration::from_millis(millis);
            statistics.record(&dice, &CallSample { path, is_error: millis > 2, is_cold: false, duration });
        }
        let mut registry = Registry::default();
        registry.register_collector(Box::new(FunctionCollector(statistics)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        let labels = r#"namespace="default",function="dice",path="direct""#;
        for line in [
            format!("faena_function_calls_total{{{labels}}} 2"),
            format!("faena_function_errors_total{{{labels}}} 1"),
            r#"faena_function_calls_total{namespace="default",function="dice",path="queued"} 1"#.to_owned(),
            format!("faena_function_seconds_bucket{{le=\"0.0025\",{labels}}} 1"),
            format!("faena_function_seconds_bucket{{le=\"+Inf\",{labels}}} 2"),
            format!("faena_function_seconds_count{{{labels}}} 2"),
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
        }
    }
}
