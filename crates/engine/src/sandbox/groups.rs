//! Control groups, made before they are needed: a dozen folders of the kernel's take it as long as all the namespaces.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use faena_domain::Limits;
use parking_lot::{Mutex, MutexGuard};
use tracing::warn;

use crate::cgroup::{Group, Trees};

/// How many wait at first, and at most: twice as many each time that there were too few.
const LEAST: usize = 8;
const MOST: usize = 64;
/// How long nothing is asked for before others are made: what was asked for last gets the processor first.
const CALM: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Ready {
    groups: Vec<Group>,
    wanted: usize,
    taken: Instant,
}

/// Groups of instances that are not there yet. Each is used once.
#[derive(Debug)]
pub(super) struct Groups {
    trees: Trees,
    prefix: String,
    next: AtomicU64,
    ready: Mutex<Ready>,
    is_filling: AtomicBool,
}

impl Groups {
    /// None yet; their names begin with `prefix`.
    pub(super) fn new(trees: Trees, prefix: String) -> Arc<Self> {
        let ready = Mutex::new(Ready { groups: Vec::new(), wanted: LEAST, taken: Instant::now() });
        Arc::new(Self { trees, prefix, next: AtomicU64::new(1), ready, is_filling: AtomicBool::new(false) })
    }

    fn ready(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock()
    }

    fn make(&self) -> io::Result<Group> {
        self.trees.make(&format!("{}.{}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// Groups within which nothing goes over these limits.
    pub(super) fn take(self: &Arc<Self>, limits: &Limits) -> io::Result<Group> {
        let ready = {
            let mut ready = self.ready();
            ready.taken = Instant::now();
            if ready.groups.is_empty() {
                ready.wanted = MOST.min(2 * ready.wanted);
            }
            ready.groups.pop()
        };
        let group = match ready {
            Some(group) => group,
            None => self.make()?,
        };
        self.refill();
        match group.bound(limits) {
            Ok(()) => Ok(group),
            Err(error) => {
                group.try_remove();
                Err(error)
            }
        }
    }

    /// Makes others as soon as nothing was asked for in a while.
    fn refill(self: &Arc<Self>) {
        if self.is_filling.swap(true, Ordering::AcqRel) {
            return;
        }
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(CALM).await;
                let Some(groups) = weak.upgrade() else { return };
                if groups.ready().taken.elapsed() < CALM {
                    continue;
                }
                // Other tasks of this thread do not wait for the kernel.
                let is_done = tokio::task::spawn_blocking(move || groups.fill_one()).await.unwrap_or(true);
                if is_done {
                    return;
                }
            }
        });
    }

    /// Makes one; true where enough are there, or none can be made.
    fn fill_one(&self) -> bool {
        let is_done = match self.make() {
            Ok(group) => {
                let mut ready = self.ready();
                ready.groups.push(group);
                ready.groups.len() >= ready.wanted
            }
            Err(error) => {
                warn!(%error, "control groups cannot be made in advance");
                true
            }
        };
        if is_done {
            self.is_filling.store(false, Ordering::Release);
        }
        is_done
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for group in self.ready().groups.drain(..) {
            group.try_remove();
        }
        self.trees.remove();
    }
}
