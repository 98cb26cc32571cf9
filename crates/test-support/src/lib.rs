//! A platform to test against: the built binary, started on folders and a port of its own.
//!
//! Nothing here knows how Faena is built. The HTTP client is a few lines over a socket, so that tests can send what no
//! well-behaved client would.

mod archives;
mod fake;
mod http;
mod platform;
mod versions;

use std::time::{Duration, Instant};

pub use archives::{multipart, tar_gz, zip};
pub use fake::{FakeEngine, Trouble};
pub use http::{Reply, post, raw, request};
pub use platform::{Engine, Platform, Role, SECRET, binary};
pub use versions::code;

/// Asks until there is an answer; panics with the last thing seen when the time is over.
pub fn eventually<T, S: std::fmt::Debug>(within: Duration, what: &str, mut probe: impl FnMut() -> Result<T, S>) -> T {
    let end = Instant::now() + within;
    loop {
        match probe() {
            Ok(found) => return found,
            Err(seen) if Instant::now() > end => panic!("{what}: not within {within:?} (last: {seen:?})"),
            // Polling is what a user of the API does; the pause only spares the processor.
            Err(_) => std::thread::park_timeout(Duration::from_millis(20)),
        }
    }
}
