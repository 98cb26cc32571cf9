//! Threads of one runtime each: a connection and the instance that answers it live on one of them, so that a call crosses
//! no thread.

use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// The threads; they end when this is dropped, with whatever still lives on them.
#[derive(Debug)]
pub(crate) struct Shards {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Shards {
    /// One for each core that we may run on.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let stop = CancellationToken::new();
        let (mut handles, mut threads) = (Vec::new(), Vec::new());
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build().context("cannot make a runtime")?;
            handles.push(runtime.handle().clone());
            let stop = stop.clone();
            let thread = std::thread::Builder::new().name(format!("shard-{number}"));
            threads.push(thread.spawn(move || runtime.block_on(idle(&stop))).context("cannot start a thread")?);
        }
        Ok(Self { handles, threads, stop })
    }

    pub(crate) fn handles(&self) -> Vec<Handle> {
        self.handles.clone()
    }
}

/// Keeps a timer armed that ends earlier than any that a request arms: a runtime of one thread wakes itself by a system
/// call whenever a timer is set that ends before all others, and each request would set one.
async fn idle(stop: &CancellationToken) {
    const BEAT: Duration = Duration::from_secs(1);
    while stop.run_until_cancelled(tokio::time::sleep(BEAT)).await.is_some() {}
}

impl Drop for Shards {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            // One that panicked has ended too.
            let _ = thread.join();
        }
    }
}
