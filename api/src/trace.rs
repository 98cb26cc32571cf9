//! W3C trace context, and what every reply to an invocation carries.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use faena_domain::Attempt;
use faena_domain::units::Millis;

const FAENA_CALL: HeaderName = HeaderName::from_static("faena-call");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Whether a text is a `traceparent` of version 00 (W3C Trace Context, 3.2).
fn is_valid(text: &str) -> bool {
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|c| c.is_ascii_digit() || matches!(c, b'a'..=b'f'))
    };
    let set = |part: &str| part.bytes().any(|c| c != b'0');
    match text.split('-').collect::<Vec<_>>().as_slice() {
        ["00", trace, parent, flags] => hex(trace, 32) && set(trace) && hex(parent, 16) && set(parent) && hex(flags, 2),
        _ => false,
    }
}

/// The caller's trace context where it is valid, else a new one.
pub(crate) fn parent(headers: &HeaderMap) -> String {
    let given = headers.get("traceparent").and_then(|value| value.to_str().ok()).filter(|text| is_valid(text));
    given.map_or_else(
        || {
            // Neither may be zero, and nobody relies on guessing neither (W3C Trace Context, 3.2.2).
            let (trace, parent) = (fastrand::u128(1..), fastrand::u64(1..));
            format!("00-{trace:032x}-{parent:016x}-01")
        },
        str::to_owned,
    )
}

/// What an attempt took, in its parts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timing {
    queue: Millis,
    start: Millis,
    run: Millis,
}

impl Timing {
    /// The times that are known when a streamed answer begins; direct calls wait in no queue.
    pub(crate) fn begun(start: Millis, run: Millis) -> Self {
        Self { queue: Millis::default(), start, run }
    }
}

impl From<&Attempt> for Timing {
    fn from(attempt: &Attempt) -> Self {
        Self { queue: attempt.queue_ms, start: attempt.start_ms, run: attempt.run_ms }
    }
}

/// `Faena-Call`, `traceparent` and `Server-Timing`.
pub(crate) fn tell(headers: &mut HeaderMap, num: i64, traceparent: &str, last: Option<Timing>) {
    let Timing { queue, start, run } = last.unwrap_or_default();
    let mut timing = String::with_capacity(64);
    for (part, took) in [("queue;dur=", queue), (", start;dur=", start), (", run;dur=", run)] {
        timing.push_str(part);
        took.push_to(&mut timing);
    }
    headers.insert(FAENA_CALL, HeaderValue::from(num));
    if let Ok(traceparent) = HeaderValue::from_str(traceparent) {
        headers.insert(TRACEPARENT, traceparent);
    }
    if let Ok(timing) = HeaderValue::try_from(timing) {
        // A function on its own origin may have timings of its own.
        headers.append(SERVER_TIMING, timing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_context_is_carried_on() {
        assert!(is_valid("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        for text in [
            "",
            "00-0-0-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        ] {
            assert!(!is_valid(text), "{text}");
        }
        assert!(is_valid(&parent(&HeaderMap::new())));
    }
}
