//! Which functions changed lately, so that who remembers what their calls run forgets what has changed, and nothing else.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use faena_domain::FunctionId;
use faena_protocol::db::{Changed, ChangedFunctions, FunctionsSeen};
use parking_lot::{Mutex, MutexGuard};

/// Changes that are remembered. Who has seen less than these is told that everything may have changed.
const REMEMBERED: usize = 64;

/// The changes of functions since the store was opened.
#[derive(Debug)]
pub(crate) struct ChangeLog {
    /// See [`FunctionsSeen`].
    seen: AtomicU64,
    recent: Mutex<Recent>,
}

#[derive(Debug)]
struct Recent {
    /// The functions that changed, each with the number after the change; the oldest first.
    changes: VecDeque<(u64, FunctionId)>,
    /// All changes above this are among them.
    complete_since: u64,
}

impl ChangeLog {
    /// It begins with db time in milliseconds, which never goes back: a database that was away has not seen less than before.
    /// It is even, and has room for 1000 changes a millisecond.
    pub(crate) fn beginning_at(now_ms: i64) -> Self {
        let seen = u64::try_from(now_ms).unwrap_or(0) * 2000;
        Self {
            seen: AtomicU64::new(seen),
            recent: Mutex::new(Recent { changes: VecDeque::new(), complete_since: seen }),
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock()
    }

    /// What is seen now.
    pub(crate) fn seen(&self) -> FunctionsSeen {
        FunctionsSeen(self.seen.load(Ordering::SeqCst))
    }

    /// Changes begin: the number is odd from before their commit until [`ChangeLog::end`].
    pub(crate) fn begin(&self) {
        self.seen.fetch_add(1, Ordering::SeqCst);
    }

    /// These functions have changed, or were not changed after all.
    pub(crate) fn end(&self, functions: Vec<FunctionId>) {
        let mut recent = self.recent();
        let seen = self.seen.load(Ordering::SeqCst) + 1;
        recent.changes.extend(functions.into_iter().map(|function| (seen, function)));
        let surplus = recent.changes.len().saturating_sub(REMEMBERED);
        let dropped = recent.changes.drain(..surplus).next_back();
        if let Some((last, _)) = dropped {
            recent.complete_since = last;
        }
        // The number rises last, so that an api that sees it also finds the change.
        self.seen.store(seen, Ordering::SeqCst);
    }

    /// The functions that have changed since a number.
    pub(crate) fn since(&self, since: FunctionsSeen) -> ChangedFunctions {
        let recent = self.recent();
        // A change under way is told when it has ended.
        let at = self.seen.load(Ordering::SeqCst) & !1;
        let what = if (recent.complete_since..=at).contains(&since.0) {
            let mut changed: Vec<FunctionId> = recent
                .changes
                .iter()
                .filter(|(seen, _)| *seen > since.0)
                .map(|(_, function)| function.clone())
                .collect();
            changed.sort_unstable();
            changed.dedup();
            Changed::Functions(changed)
        } else {
            Changed::All
        };
        ChangedFunctions { at: FunctionsSeen(at), what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str) -> FunctionId {
        FunctionId { namespace: "default".parse().unwrap(), name: name.parse().unwrap() }
    }

    fn change(log: &ChangeLog, names: &[&str]) {
        log.begin();
        log.end(names.iter().map(|name| function(name)).collect());
    }

    #[test]
    fn what_changed_since_is_told_once_by_its_name() {
        let log = ChangeLog::beginning_at(1);
        let start = log.seen();
        assert_eq!(log.since(start), ChangedFunctions { at: start, what: Changed::Functions(Vec::new()) });
        change(&log, &["a"]);
        let first = log.seen();
        change(&log, &["b", "A"]);
        assert_eq!(log.since(start).what, Changed::Functions(vec![function("a"), function("b")]));
        assert_eq!(log.since(first).what, Changed::Functions(vec![function("a"), function("b")]));
        assert_eq!(log.since(log.seen()).what, Changed::Functions(Vec::new()));
    }

    #[test]
    fn who_has_seen_too_little_or_another_database_is_told_that_all_may_have_changed() {
        let log = ChangeLog::beginning_at(1);
        let start = log.seen();
        for _ in 0..=REMEMBERED {
            change(&log, &["a"]);
        }
        assert_eq!(log.since(start).what, Changed::All);
        assert_eq!(log.since(FunctionsSeen(start.0 + 2)).what, Changed::Functions(vec![function("a")]));
        assert_eq!(log.since(FunctionsSeen(log.seen().0 + 2)).what, Changed::All);
        assert_eq!(log.since(FunctionsSeen(0)).what, Changed::All);
    }

    #[test]
    fn what_is_under_way_is_told_when_it_has_ended() {
        let log = ChangeLog::beginning_at(1);
        let start = log.seen();
        log.begin();
        assert!(!log.seen().is_settled());
        assert_eq!(log.since(start).at, start);
        log.end(vec![function("a")]);
        assert_eq!(
            log.since(start),
            ChangedFunctions { at: log.seen(), what: Changed::Functions(vec![function("a")]) }
        );
    }
}
