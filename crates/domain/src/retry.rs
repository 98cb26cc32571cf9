//! When a function's failure is tried again.

use crate::{CallStatus, ErrorKind};

/// Retries of an asynchronous call whose client named no number.
pub const DEFAULT_RETRIES: u32 = 2;
/// The most retries a client may ask for.
pub const MAX_RETRIES: u32 = 100;
/// The bound of the first pause, in milliseconds.
pub const BASE_MS: u64 = 1000;
/// The bound of every later pause, in milliseconds.
pub const CAP_MS: u64 = 5 * 60 * 1000;

/// The pause before the next attempt after `failures` of them, in milliseconds: full jitter, drawn by `uniform` from \[0, 1).
///
/// Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("Full Jitter").
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "at most five minutes"
)]
pub fn pause_ms(failures: u32, uniform: f64) -> u64 {
    let bound = BASE_MS.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(CAP_MS);
    (bound as f64 * uniform.clamp(0.0, 1.0)) as u64
}

/// Whether an attempt that ended so is tried again while `failures` of at most `retries + 1` have been counted, this one included.
pub fn is_retried(status: CallStatus, kind: Option<ErrorKind>, failures: u32, retries: u32) -> bool {
    matches!(status, CallStatus::Failed | CallStatus::Timeout)
        && kind.is_some_and(ErrorKind::is_functions_own)
        && failures <= retries
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_functions_own_failure_is_tried_again() {
        assert!(is_retried(CallStatus::Failed, Some(ErrorKind::Exit), 1, 2));
        assert!(is_retried(CallStatus::Timeout, Some(ErrorKind::Timeout), 2, 2));
        assert!(!is_retried(CallStatus::Failed, Some(ErrorKind::Exit), 3, 2));
        assert!(!is_retried(CallStatus::Failed, Some(ErrorKind::Start), 1, 2));
        assert!(!is_retried(CallStatus::Done, None, 0, 2));
    }

    proptest! {
        #[test]
        fn a_pause_never_passes_its_bounds(failures in 0u32..1000, uniform in 0.0f64..1.0) {
            prop_assert!(pause_ms(failures, uniform) <= CAP_MS);
            prop_assert!(pause_ms(1, uniform) <= BASE_MS);
        }
    }
}
