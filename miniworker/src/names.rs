//! Names of what a worker makes.

use std::sync::atomic::{AtomicU64, Ordering};

/// A name that no other instance of this run of the worker has, short enough for the path of a socket.
pub(crate) fn unique(beginning: char) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{beginning}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
