//! Instances that nobody needs any more. Taking one apart costs the kernel as much as making one, so those of `reuse =
//! "never"` stand still while calls wait for an instance, and go when none does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use faena_engine::Guard;

use super::Shared;
use super::state::UNMEASURED;

/// The most that stand still.
const MOST: u64 = 64;
/// What they may hold together of the memory that the pool may: this part.
const SHARE: u64 = 8;
/// How often it is looked whether calls still wait.
const LOOK: Duration = Duration::from_millis(5);

/// Those that stand still.
#[derive(Debug, Default)]
pub(super) struct Aside {
    still: Mutex<Still>,
}

#[derive(Debug, Default)]
struct Still {
    guards: VecDeque<Box<dyn Guard>>,
    /// Somebody takes them apart.
    is_cleared: bool,
}

impl Aside {
    fn still(&self) -> MutexGuard<'_, Still> {
        self.still.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Destroys an instance: now, or where calls wait as soon as none does. Nothing in it runs from now on.
    pub(super) async fn put_aside(self: &Arc<Self>, guard: Box<dyn Guard>) {
        if !self.state().is_pressed() || guard.freeze().is_err() {
            return guard.destroy().await;
        }
        let most = (self.config.memory.0 / SHARE / UNMEASURED).min(MOST);
        let (surplus, is_first) = {
            let mut still = self.aside.still();
            still.guards.push_back(guard);
            let surplus = if still.guards.len() as u64 > most { still.guards.pop_front() } else { None };
            (surplus, !std::mem::replace(&mut still.is_cleared, true))
        };
        if is_first {
            self.tasks.spawn_on(Arc::clone(self).clear(), &self.config.home);
        }
        if let Some(guard) = surplus {
            guard.destroy().await;
        }
    }

    /// Takes apart what stands still, one after the other, whenever no call waits.
    async fn clear(self: Arc<Self>) {
        loop {
            while self.state().is_pressed() {
                tokio::time::sleep(LOOK).await;
            }
            let next = {
                let mut still = self.aside.still();
                let next = still.guards.pop_front();
                still.is_cleared = next.is_some();
                next
            };
            match next {
                Some(guard) => guard.destroy().await,
                None => return,
            }
        }
    }
}
