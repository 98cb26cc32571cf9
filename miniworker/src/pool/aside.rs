//! Instances that have served their one call (`reuse = "never"`). Taking one apart costs the kernel as much as making one,
//! so while calls wait for instances they stand still, frozen, and go when none does, or after a moment.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use faena_engine::InstanceHandle;

use super::Shared;

/// The most that stand still.
const MOST: usize = 64;
/// What they may hold together of the memory that the pool may: this part.
const SHARE: u64 = 8;
/// The longest that one stands still.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether calls still wait.
const LOOK: Duration = Duration::from_millis(5);

/// One that stands still.
#[derive(Debug)]
struct Spent {
    guard: Box<dyn InstanceHandle>,
    since: Instant,
    /// What it holds, in bytes.
    memory: u64,
}

#[derive(Debug, Default)]
struct Still {
    spent: VecDeque<Spent>,
    memory: u64,
    /// Somebody takes them apart.
    is_cleared: bool,
}

impl Still {
    fn take(&mut self) -> Option<Spent> {
        let oldest = self.spent.pop_front()?;
        self.memory -= oldest.memory;
        Some(oldest)
    }
}

/// Those that stand still.
#[derive(Debug, Default)]
pub(super) struct Aside(Mutex<Still>);

impl Aside {
    fn still(&self) -> MutexGuard<'_, Still> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one, where the bounds let it; gives it back otherwise. True where nobody takes them apart yet.
    fn add(&self, spent: Spent, most_memory: u64) -> Result<bool, Spent> {
        let mut still = self.still();
        if still.spent.len() >= MOST || still.memory.saturating_add(spent.memory) > most_memory {
            return Err(spent);
        }
        still.memory += spent.memory;
        still.spent.push_back(spent);
        Ok(!std::mem::replace(&mut still.is_cleared, true))
    }

    /// Whether the oldest has stood for too long; none where there is none.
    fn is_overdue(&self) -> Option<bool> {
        self.still().spent.front().map(|oldest| oldest.since.elapsed() > PATIENCE)
    }

    /// The oldest. If there is none, the next one is the first again.
    fn oldest(&self) -> Option<Spent> {
        let mut still = self.still();
        let oldest = still.take();
        still.is_cleared = oldest.is_some();
        oldest
    }
}

impl Shared {
    /// Destroys an instance that has served its call: now, or where calls wait as soon as none does. Nothing in it runs from
    /// now on.
    pub(super) async fn put_aside(self: &Arc<Self>, guard: Box<dyn InstanceHandle>) {
        if !self.state().is_pressed() {
            return guard.destroy().await;
        }
        // What cannot be measured may hold anything.
        let Some(memory) = guard.memory() else { return guard.destroy().await };
        if guard.freeze().is_err() {
            return guard.destroy().await;
        }
        let spent = Spent { guard, since: Instant::now(), memory };
        match self.aside.add(spent, self.config.memory.0 / SHARE) {
            Ok(true) => drop(self.tasks.spawn_on(Arc::clone(self).clear(), &self.config.home)),
            Ok(false) => {}
            Err(spent) => spent.guard.destroy().await,
        }
    }

    /// Takes apart what stands still, one after the other; at a stop all at once.
    async fn clear(self: Arc<Self>) {
        loop {
            while self.aside.is_overdue() == Some(false) && self.state().is_pressed() {
                tokio::time::sleep(LOOK).await;
            }
            let Some(oldest) = self.aside.oldest() else { return };
            if self.state().is_closed() {
                self.tasks.spawn(oldest.guard.destroy());
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
    async fn what_stands_still_is_bounded_in_count_and_memory() {
        let aside = Aside::default();
        assert!(aside.add(spent(60).await, 100).unwrap(), "somebody has to take it apart");
        assert!(!aside.add(spent(40).await, 100).unwrap());
        assert!(aside.add(spent(1).await, 100).is_err());
        assert_eq!(aside.oldest().unwrap().memory, 60);
        assert!(!aside.add(spent(60).await, 100).unwrap());
        assert_eq!(aside.is_overdue(), Some(false));
        while aside.oldest().is_some() {}
        assert_eq!(aside.is_overdue(), None);
        for n in 0..MOST {
            assert_eq!(aside.add(spent(0).await, 100).ok(), Some(n == 0));
        }
        assert!(aside.add(spent(0).await, 100).is_err());
    }
}
