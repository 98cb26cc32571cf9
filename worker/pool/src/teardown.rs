//! Instances that have served their one call (`reuse = "never"`). Destroying one costs the kernel as much as making one,
//! so while calls wait for instances they are frozen, and are destroyed when none waits, or after a moment.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_engine::InstanceHandle;
use parking_lot::{Mutex, MutexGuard};

use crate::Shared;

/// The most that wait.
const MAX_SPENT: usize = 64;
/// What they may hold together: this part of the memory that the pool may.
const MEMORY_SHARE: u64 = 8;
/// The longest that one waits.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// How often it is looked whether calls still wait.
const LOOK: Duration = Duration::from_millis(5);

/// A frozen instance that waits to be destroyed.
#[derive(Debug)]
struct Spent {
    guard: Box<dyn InstanceHandle>,
    since: Instant,
    /// What it holds, in bytes.
    memory: u64,
}

#[derive(Debug, Default)]
struct Queue {
    spent: VecDeque<Spent>,
    memory: u64,
    /// A task destroys them.
    is_clearing: bool,
}

impl Queue {
    fn take(&mut self) -> Option<Spent> {
        let oldest = self.spent.pop_front()?;
        self.memory -= oldest.memory;
        Some(oldest)
    }
}

/// Those that wait to be destroyed.
#[derive(Debug, Default)]
pub(crate) struct TeardownQueue(Mutex<Queue>);

impl TeardownQueue {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock()
    }

    /// Adds one, where the bounds permit it; gives it back otherwise. True where no task destroys them yet.
    fn add(&self, spent: Spent, most_memory: u64) -> Result<bool, Spent> {
        let mut queue = self.queue();
        if queue.spent.len() >= MAX_SPENT || queue.memory.saturating_add(spent.memory) > most_memory {
            return Err(spent);
        }
        queue.memory += spent.memory;
        queue.spent.push_back(spent);
        Ok(!std::mem::replace(&mut queue.is_clearing, true))
    }

    /// Whether the oldest has waited for too long; none where there is none.
    fn is_overdue(&self) -> Option<bool> {
        self.queue().spent.front().map(|oldest| oldest.since.elapsed() > MAX_DELAY)
    }

    /// The oldest. If there is none, the next one is the first again.
    fn oldest(&self) -> Option<Spent> {
        let mut queue = self.queue();
        let oldest = queue.take();
        queue.is_clearing = oldest.is_some();
        oldest
    }
}

impl Shared {
    /// Destroys an instance that has served its call: now, or where calls wait as soon as none does. Nothing in it runs from
    /// now on.
    pub(crate) async fn tear_down(self: &Arc<Self>, guard: Box<dyn InstanceHandle>) {
        if !self.state().is_pressed() {
            return guard.destroy().await;
        }
        // What cannot be measured may hold anything.
        let Some(memory) = guard.memory() else { return guard.destroy().await };
        if guard.freeze().is_err() {
            return guard.destroy().await;
        }
        let spent = Spent { guard, since: Instant::now(), memory };
        match self.teardown.add(spent, self.config.policy.memory.0 / MEMORY_SHARE) {
            Ok(true) => drop(self.node.tasks.spawn_on(Arc::clone(self).clear(), &self.config.home)),
            Ok(false) => {}
            Err(spent) => spent.guard.destroy().await,
        }
    }

    /// Destroys what waits, one after the other; at a stop all at once.
    async fn clear(self: Arc<Self>) {
        loop {
            while self.teardown.is_overdue() == Some(false) && self.state().is_pressed() {
                tokio::time::sleep(LOOK).await;
            }
            let Some(oldest) = self.teardown.oldest() else { return };
            if self.state().is_closed() {
                self.node.tasks.spawn(oldest.guard.destroy());
            } else {
                oldest.guard.destroy().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use faena_domain::Limits;
    use faena_engine::{Engine, ImageId, InstanceSpec};
    use faena_test_support::FakeEngine;

    use super::*;

    async fn spent(memory: u64) -> Spent {
        let spec = InstanceSpec {
            name: "a".to_owned(),
            image: ImageId("fake".to_owned()),
            code: None,
            path: "/ws".to_owned(),
            limits: Limits::DEFAULT,
            egress: false,
            ca_bundle: None,
            resident: None,
        };
        let instance = FakeEngine::default().create(spec).await.unwrap();
        Spent { guard: instance.guard, since: Instant::now(), memory }
    }

    #[tokio::test]
    async fn what_waits_is_bounded_in_count_and_memory() {
        let waiting = TeardownQueue::default();
        assert!(waiting.add(spent(60).await, 100).unwrap(), "a task has to destroy it");
        assert!(!waiting.add(spent(40).await, 100).unwrap());
        assert!(waiting.add(spent(1).await, 100).is_err());
        assert_eq!(waiting.oldest().unwrap().memory, 60);
        assert!(!waiting.add(spent(60).await, 100).unwrap());
        assert_eq!(waiting.is_overdue(), Some(false));
        while waiting.oldest().is_some() {}
        assert_eq!(waiting.is_overdue(), None);
        for n in 0..MAX_SPENT {
            assert_eq!(waiting.add(spent(0).await, 100).ok(), Some(n == 0));
        }
        assert!(waiting.add(spent(0).await, 100).is_err());
    }
}
