//! Looks after a pool: what waits too long, what is idle, what should be there in advance.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::Shared;
use crate::state::State;

/// How often what waits is judged while something does.
const JUDGE: Duration = Duration::from_millis(20);
/// How often the rest is looked at.
const KEEP: Duration = Duration::from_secs(1);

/// Runs until the pool is gone.
pub(crate) async fn keep(pool: Weak<Shared>) {
    let mut next = Instant::now() + KEEP;
    let mut something_waits = false;
    loop {
        let Some(shared) = pool.upgrade() else { return };
        if something_waits {
            tokio::time::sleep(JUDGE).await;
        } else {
            let rest = next.saturating_duration_since(Instant::now());
            // Notified or not, what waits is judged now.
            let _ = tokio::time::timeout(rest, shared.waits.notified()).await;
        }
        something_waits = judge(&shared);
        if next <= Instant::now() {
            next = Instant::now() + KEEP;
            shared.apply(State::keep);
            shared.measure();
            shared.node.code.sweep();
            let idle = shared.config.policy.idle;
            for engine in shared.node.engines.values() {
                engine.forget_interpreters(idle);
            }
            for prewarmed in shared.prewarm.forget(idle) {
                shared.node.tasks.spawn(prewarmed.destroy());
            }
        }
    }
}

fn judge(shared: &Arc<Shared>) -> bool {
    let (effects, something_waits) = shared.state().judge(Instant::now());
    shared.perform(effects);
    something_waits
}

impl Shared {
    /// Sets the metrics of what the pool holds.
    fn measure(&self) {
        let counts = self.state().counts();
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.instances.set(signed(counts.instances));
        self.metrics.memory.set(signed(counts.memory));
        self.metrics.frozen.set(signed(counts.frozen));
    }
}
