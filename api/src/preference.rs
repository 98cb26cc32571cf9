//! `Prefer`: how long a client waits.

use axum::http::HeaderMap;
use faena_domain::limits::MAX_WAIT_S;

use crate::problem::{ErrorCode, Problem, Reply};

/// The seconds of `Prefer: wait=N` (RFC 7240, 4.3), cut at the most that is granted.
///
/// # Errors
/// A `wait` that is no number of seconds: its client would be answered at once, and take that for the end.
pub(crate) fn prefer_wait(headers: &HeaderMap) -> Reply<Option<u64>> {
    let values = headers.get_all("prefer").iter().map(|value| value.to_str().unwrap_or("wait=?"));
    let mut preferences = values.flat_map(|value| value.split([',', ';'])).map(str::trim);
    let Some(wait) =
        preferences.find(|preference| preference.split('=').next().is_some_and(|name| name.trim() == "wait"))
    else {
        return Ok(None);
    };
    let seconds = wait.split_once('=').and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse::<u64>().ok());
    let invalid = || Problem::new(ErrorCode::InvalidPreference, "Prefer: wait=N takes a number of seconds");
    seconds.map(|seconds| Some(seconds.min(MAX_WAIT_S))).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn wait(value: &'static str) -> Option<u64> {
        prefer_wait(&HeaderMap::from_iter([(
            axum::http::header::HeaderName::from_static("prefer"),
            HeaderValue::from_static(value),
        )]))
        .ok()
        .flatten()
    }

    #[test]
    fn a_wait_is_found_among_preferences_and_cut() {
        assert_eq!(wait("wait=5"), Some(5));
        assert_eq!(wait("respond-async, wait=10"), Some(10));
        assert_eq!(wait("wait=100000"), Some(300));
        assert_eq!(wait("respond-async"), None);
        let soon = HeaderMap::from_iter([(
            axum::http::header::HeaderName::from_static("prefer"),
            HeaderValue::from_static("wait=soon"),
        )]);
        assert!(prefer_wait(&soon).is_err());
    }
}
