//! Interpreters that are held ready, one for each domain of trust: clones of one know where everything lies in the
//! others, and which seeds they hash with.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_launcher::ZYGOTE;
use parking_lot::{Mutex, MutexGuard};
use tracing::debug;

use crate::spawner::Spawner;

/// The most zygotes; beyond it the one that was unused for the longest goes.
const MOST: usize = 16;
/// How long one that could not be started is not tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// How long one is asked for: what its clones share is not known for longer.
const LIFE: Duration = Duration::from_secs(3600);

/// One of them.
#[derive(Debug)]
struct Zygote {
    spawner: Arc<Spawner>,
    since: Instant,
    used: Instant,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Zygotes {
    program: PathBuf,
    /// The interpreter and the words that it is started with.
    words: Vec<String>,
    held: Mutex<HashMap<String, Zygote>>,
}

impl Zygotes {
    pub(super) fn new(program: PathBuf, words: Vec<String>) -> Self {
        Self { program, words, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Zygote>> {
        self.held.lock()
    }

    /// The zygote of a domain, if it is ready; if not, one is started for the next call.
    pub(super) async fn ready(&self, domain: &str) -> Option<Arc<Spawner>> {
        let spawner = {
            let mut held = self.held();
            held.retain(|_, zygote| zygote.since.elapsed() < LIFE);
            if !held.contains_key(domain) && held.len() >= MOST {
                let oldest = held.iter().min_by_key(|(_, zygote)| zygote.used).map(|(name, _)| name.clone());
                oldest.and_then(|oldest| held.remove(&oldest));
            }
            let now = Instant::now();
            let zygote = held.entry(domain.to_owned()).or_insert_with(|| {
                debug!(domain, "an interpreter is loaded, to be held ready");
                let words = std::iter::once(ZYGOTE.to_owned()).chain(self.words.iter().cloned());
                Zygote { spawner: Arc::new(Spawner::new(self.program.clone(), words.collect())), since: now, used: now }
            });
            zygote.used = now;
            Arc::clone(&zygote.spawner)
        };
        spawner.is_ready(AGAIN).await.then_some(spawner)
    }

    /// Lets go of those that nobody has asked for in a while.
    pub(super) fn forget(&self, unused_for: Duration) {
        self.held().retain(|_, zygote| zygote.used.elapsed() < unused_for);
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.held().len() as u64
    }
}
