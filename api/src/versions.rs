//! The versions that calls run, remembered until db tells that their functions have changed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use faena_db_client::DbClient;
use faena_domain::{FunctionName, FunctionStatus, Namespace, Version};
use faena_protocol::DbError;
use faena_protocol::db::{Changed, ChangedFunctions, FunctionChanges, FunctionsSeen, VersionResolve};
use faena_protocol::records::Code;
use parking_lot::RwLock;
use tracing::debug;

/// Names that are remembered; beyond it all are forgotten, and those in use come back at once.
const MAX_KNOWN: usize = 20_000;
/// How long db may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How often db is asked what has changed where no answer of it shows that anything has: what another api changed is
/// known here after this.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// A version that calls run.
#[derive(Debug)]
pub(crate) struct Current {
    /// Where it stands.
    pub(crate) status: FunctionStatus,
    /// What its instances need.
    pub(crate) code: Arc<Code>,
}

/// Versions by their namespace and the function's name as it was asked for.
type Known = HashMap<Namespace, HashMap<String, Arc<Current>>>;

/// Every version that was asked for lately.
#[derive(Debug)]
pub(crate) struct Versions {
    db: DbClient,
    known: RwLock<Known>,
    /// What was taken in of the changes that db tells ([`FunctionsSeen`]). While db has shown more, nothing that is
    /// remembered counts.
    taken_in: AtomicU64,
}

impl Versions {
    /// An empty memory, and the task that follows changes; the task ends when this is dropped.
    pub(crate) fn new(db: DbClient) -> Arc<Self> {
        let versions = Arc::new(Self { db: db.clone(), known: RwLock::default(), taken_in: AtomicU64::new(0) });
        tokio::spawn(follow(db, Arc::downgrade(&versions)));
        versions
    }

    fn taken_in(&self) -> FunctionsSeen {
        FunctionsSeen(self.taken_in.load(Ordering::SeqCst))
    }

    /// The version that a name stands for, where that is known and still so.
    pub(crate) fn known(&self, namespace: &Namespace, name: &str) -> Option<Arc<Current>> {
        let known = self.known.read();
        // This is compared under the lock: changed functions are removed before the number rises.
        if self.taken_in() != self.db.functions_seen() {
            return None;
        }
        known.get(namespace)?.get(name).cloned()
    }

    /// The version that a call runs; `version` is the one that it asks for, if any.
    ///
    /// # Errors
    /// What db says, where there is no such function or version or it cannot tell.
    pub(crate) async fn of(
        &self,
        namespace: &Namespace,
        function: &FunctionName,
        version: Option<Version>,
    ) -> Result<Arc<Current>, DbError> {
        if version.is_none()
            && let Some(current) = self.known(namespace, function.as_str())
        {
            return Ok(current);
        }
        let request = VersionResolve { namespace: namespace.clone(), function: function.clone(), version };
        let (resolved, seen) = self.db.ask_seeing(&request, ANSWER).await?;
        let current = Arc::new(Current { status: resolved.status, code: Arc::new(resolved.code) });
        if version.is_none() && seen.is_settled() && current.status == FunctionStatus::Ready {
            self.remember(namespace, function, seen, &current);
        }
        Ok(current)
    }

    /// Remembers what was read when db had seen this.
    fn remember(&self, namespace: &Namespace, function: &FunctionName, seen: FunctionsSeen, current: &Arc<Current>) {
        let mut known = self.known.write();
        // A change that came after it was read, and was taken in already, would not be told again.
        if self.taken_in() > seen {
            return;
        }
        if known.values().map(HashMap::len).sum::<usize>() >= MAX_KNOWN {
            known.clear();
        }
        known.entry(namespace.clone()).or_default().insert(function.to_string(), Arc::clone(current));
    }

    /// Forgets what has changed.
    fn take_in(&self, ChangedFunctions { at, what }: ChangedFunctions) {
        let mut known = self.known.write();
        match what {
            Changed::All => known.clear(),
            Changed::Functions(functions) => {
                for function in functions {
                    if let Some(names) = known.get_mut(&function.namespace) {
                        names.retain(|name, _| !name.eq_ignore_ascii_case(function.name.as_str()));
                    }
                }
            }
        }
        self.taken_in.fetch_max(at.0, Ordering::SeqCst);
    }
}

/// Asks db which functions have changed: when a reply shows that some have, and every half second.
async fn follow(db: DbClient, versions: Weak<Versions>) {
    loop {
        let Some(since) = versions.upgrade().map(|versions| versions.taken_in()) else { return };
        let answer = db.ask_within(&FunctionChanges { since }, ANSWER).await;
        let Some(versions) = versions.upgrade() else { return };
        match answer {
            Ok(changes) => versions.take_in(changes),
            Err(error) => debug!(%error, "which functions have changed is not known"),
        }
        // If this round brought nothing new it pauses: db is away or overloaded.
        let gets_further = versions.taken_in() > since;
        let is_behind = versions.taken_in() < db.functions_seen() && db.functions_seen().is_settled();
        drop(versions);
        if !(is_behind && gets_further) {
            // Notified or not, it is asked.
            let _ = tokio::time::timeout(ASK_EVERY, db.functions_rose()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use faena_domain::{FunctionId, Serving};
    use faena_transport::Endpoint;

    use super::*;

    /// A memory whose db never answers.
    fn versions() -> Arc<Versions> {
        let folder = tempfile::tempdir().unwrap();
        Versions::new(DbClient::connect(Endpoint::new(folder.path().join("db.sock")).unwrap()))
    }

    fn remember(versions: &Versions, name: &str, seen: u64) {
        let code = faena_test_support::code(name, Serving::default());
        let (namespace, function) = (code.namespace.clone(), code.function.clone());
        let current = Arc::new(Current { status: FunctionStatus::Ready, code: Arc::new(code) });
        versions.remember(&namespace, &function, FunctionsSeen(seen), &current);
    }

    fn names(versions: &Versions) -> Vec<String> {
        let mut names: Vec<String> = versions.known.read().values().flat_map(HashMap::keys).cloned().collect();
        names.sort();
        names
    }

    fn changed(at: u64, names: &[&str]) -> ChangedFunctions {
        let function = |name: &&str| FunctionId::new(&Namespace::default(), &name.parse().unwrap());
        ChangedFunctions { at: FunctionsSeen(at), what: Changed::Functions(names.iter().map(function).collect()) }
    }

    #[tokio::test]
    async fn only_what_has_changed_is_forgotten_however_it_was_written() {
        let versions = versions();
        for name in ["a", "A", "b"] {
            remember(&versions, name, 2);
        }
        versions.take_in(changed(4, &["a"]));
        assert_eq!(names(&versions), ["b"]);
        versions.take_in(ChangedFunctions { at: FunctionsSeen(6), what: Changed::All });
        assert!(names(&versions).is_empty());
    }

    #[tokio::test]
    async fn what_was_read_before_a_change_that_was_taken_in_is_not_remembered() {
        let versions = versions();
        versions.take_in(changed(4, &["a"]));
        remember(&versions, "a", 2);
        assert!(names(&versions).is_empty());
        remember(&versions, "a", 4);
        assert_eq!(names(&versions), ["a"]);
    }

    #[tokio::test]
    async fn what_is_remembered_counts_while_all_that_db_has_shown_is_taken_in() {
        let versions = versions();
        remember(&versions, "a", 0);
        assert!(versions.known(&Namespace::default(), "a").is_some());
        versions.take_in(changed(2, &[]));
        assert!(versions.known(&Namespace::default(), "a").is_none(), "it is another db");
    }
}
