//! Looks after a pool: what waits too long, what rests, what goes, what should be there before it is asked for.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Shared;

/// How often what waits is judged while something does.
const JUDGE: Duration = Duration::from_millis(20);
/// How often the rest is looked at.
const KEEP: Duration = Duration::from_secs(1);

/// Runs until the pool is gone.
pub(super) async fn keep(pool: Weak<Shared>) {
    let mut next = Instant::now() + KEEP;
    let mut something_waits = false;
    loop {
        let Some(shared) = pool.upgrade() else { return };
        if something_waits {
            tokio::time::sleep(JUDGE).await;
        } else {
            let rest = next.saturating_duration_since(Instant::now());
            // Told or not, what waits is judged now.
            let _ = tokio::time::timeout(rest, shared.waits.notified()).await;
        }
        something_waits = judge(&shared);
        if next <= Instant::now() {
            next = Instant::now() + KEEP;
            let actions = shared.state().keep(Instant::now(), &shared.metrics);
            shared.perform(actions);
            shared.node.code.sweep();
            for engine in shared.node.engines.values() {
                engine.forget_interpreters(shared.config.idle);
            }
            for blank in shared.stock.forget(shared.config.idle) {
                shared.tasks.spawn(blank.guard.destroy());
            }
        }
    }
}

fn judge(shared: &Arc<Shared>) -> bool {
    let (actions, something_waits) = shared.state().judge(Instant::now());
    shared.perform(actions);
    something_waits
}
