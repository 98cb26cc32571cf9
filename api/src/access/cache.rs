//! What was read of credentials and rules, and how new that is.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use faena_auth::{Account, CredentialHash, CredentialId, CredentialKind, Principal, RuleSet};
use faena_domain::{Namespace, Quota, Timestamp};
use faena_protocol::db::{AccessSeen, AccessState, KeyUse, NamespaceRules, Seen};
use faena_protocol::records::CredentialRecord;

/// Credentials that are remembered, and namespaces; beyond it all are forgotten, and those in use come back at once.
const MOST: usize = 20_000;

/// A credential that was looked up.
#[derive(Debug)]
pub(super) struct KnownCredential {
    pub(super) kind: CredentialKind,
    pub(super) hash: CredentialHash,
    pub(super) session: Option<String>,
    pub(super) principal: Arc<Principal>,
    ends_at: Option<Timestamp>,
    /// Of a token, when its session ends.
    session_ends_at: Option<Timestamp>,
    /// When it was used last, in Unix milliseconds; 0 where db knows.
    used_at: AtomicI64,
}

impl KnownCredential {
    pub(super) fn has_ended(&self, now: i64) -> bool {
        self.ends_at.is_some_and(|end| end.0 <= now)
    }

    /// Until when what it began may go on.
    pub(super) fn lasts_until(&self) -> Option<Timestamp> {
        self.session_ends_at.or(self.ends_at)
    }

    pub(super) fn used(&self, now: i64) {
        self.used_at.store(now, Ordering::Relaxed);
    }
}

impl From<CredentialRecord> for KnownCredential {
    fn from(record: CredentialRecord) -> Self {
        let CredentialRecord { kind, hash, expires_at, account, scopes, session, session_ends_at } = record;
        let scopes = scopes.map_or_else(|| account.scopes.clone(), |own| own.bounded_by(&account.scopes));
        let name = account.name.as_str().into();
        let principal = Principal {
            namespace: account.namespace.clone(),
            home: Some(account.namespace),
            account: Account::Named { id: account.id, name, kind: account.kind },
            scopes,
        };
        Self {
            kind,
            hash,
            session,
            principal: Arc::new(principal),
            ends_at: expires_at,
            session_ends_at,
            used_at: AtomicI64::new(0),
        }
    }
}

/// By what the calls of a namespace are judged.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) rules: RuleSet,
    pub(crate) quota: Quota,
}

/// Credentials and rules that were read from db since the last change of access.
#[derive(Debug, Default)]
pub(super) struct AccessCache {
    /// What db has said last, and when it was asked.
    pub(super) state: Option<(AccessState, Instant)>,
    credentials: HashMap<CredentialId, Arc<KnownCredential>>,
    rules: HashMap<Namespace, Arc<Rules>>,
    /// Uses of keys that were forgotten since db was told.
    uses: Vec<KeyUse>,
}

impl AccessCache {
    fn seen(&self) -> Option<AccessSeen> {
        self.state.map(|(state, _)| state.seen)
    }

    /// Takes the word of db; true where anything has changed.
    pub(super) fn hear(&mut self, state: AccessState, asked: Instant) -> bool {
        if self.seen().is_some_and(|seen| seen > state.seen) {
            // A later question was answered earlier.
            return false;
        }
        let has_changed = self.seen() != Some(state.seen);
        if has_changed {
            self.forget();
        }
        self.state = Some((state, asked));
        has_changed
    }

    fn forget(&mut self) {
        let gone = std::mem::take(&mut self.credentials);
        self.uses.extend(gone.iter().filter_map(|(id, known)| key_use(*id, known)));
        self.uses.truncate(MOST);
        self.rules.clear();
    }

    pub(super) fn credential(&self, id: CredentialId) -> Option<Arc<KnownCredential>> {
        self.credentials.get(&id).cloned()
    }

    pub(super) fn rules(&self, namespace: &Namespace) -> Option<Arc<Rules>> {
        self.rules.get(namespace).cloned()
    }

    /// Stores a credential, unless access has changed since it was read.
    pub(super) fn learn(&mut self, id: CredentialId, found: Seen<CredentialRecord>) -> Arc<KnownCredential> {
        let known = Arc::new(KnownCredential::from(found.record));
        if self.seen() == Some(found.seen) {
            if self.credentials.len() >= MOST {
                self.forget();
            }
            self.credentials.insert(id, Arc::clone(&known));
        }
        known
    }

    /// The same, of rules.
    pub(super) fn learn_rules(&mut self, namespace: &Namespace, found: Seen<NamespaceRules>) -> Arc<Rules> {
        let NamespaceRules { rules, quota } = found.record;
        let rules = Arc::new(Rules { rules: RuleSet::new(rules), quota });
        if self.seen() == Some(found.seen) {
            if self.rules.len() >= MOST {
                self.rules.clear();
            }
            self.rules.insert(namespace.clone(), Arc::clone(&rules));
        }
        rules
    }

    /// The uses of keys that db was not told of.
    pub(super) fn take_uses(&mut self) -> Vec<KeyUse> {
        let mut uses = std::mem::take(&mut self.uses);
        uses.extend(self.credentials.iter().filter_map(|(id, known)| key_use(*id, known)));
        uses
    }
}

/// The use of a key that db was not told of; from now on it was.
fn key_use(id: CredentialId, known: &KnownCredential) -> Option<KeyUse> {
    let at = (known.kind == CredentialKind::Key).then(|| known.used_at.swap(0, Ordering::Relaxed))?;
    (at != 0).then_some(KeyUse { id, at: Timestamp(at) })
}

#[cfg(test)]
mod tests {
    use faena_auth::{AccountId, AccountKind, NewCredential, Scope, Scopes};
    use faena_protocol::records::AccountRecord;

    use super::*;

    fn record(seen: u64) -> (CredentialId, Seen<CredentialRecord>) {
        let made = NewCredential::new(CredentialKind::Key, [1; 8], [2; 32]);
        let account = AccountRecord {
            id: AccountId("a".into()),
            name: "ann".parse().unwrap(),
            namespace: Namespace::default(),
            kind: AccountKind::User,
            scopes: Scopes::NONE.with(Scope::Read),
            metadata: serde_json::Map::new(),
            created_at: Timestamp(0),
        };
        let scopes = Some(Scopes::NONE.with(Scope::Admin).with(Scope::Read));
        let kind = CredentialKind::Key;
        let (hash, session) = (made.hash, None);
        let record = CredentialRecord { kind, hash, expires_at: None, account, scopes, session, session_ends_at: None };
        (made.id, Seen { seen: AccessSeen(seen), record })
    }

    fn state(seen: u64) -> AccessState {
        AccessState { locked: true, seen: AccessSeen(seen) }
    }

    #[test]
    fn what_was_read_before_a_change_is_not_remembered() {
        let mut known = AccessCache::default();
        let (id, found) = record(1);
        known.learn(id, found.clone());
        assert!(known.credential(id).is_none(), "db has said nothing yet");
        assert!(known.hear(state(1), Instant::now()));
        known.learn(id, found.clone());
        assert!(known.credential(id).is_some());
        assert!(!known.hear(state(1), Instant::now()) && known.credential(id).is_some());
        assert!(known.hear(state(2), Instant::now()) && known.credential(id).is_none());
        known.learn(id, found);
        assert!(known.credential(id).is_none());
        assert!(!known.hear(state(1), Instant::now()), "an answer that is late");
    }

    #[test]
    fn a_key_has_no_scope_that_its_account_lacks() {
        let (id, found) = record(1);
        let known = AccessCache::default().learn(id, found);
        assert!(known.principal.scopes.include(Scope::Read) && !known.principal.scopes.include(Scope::Admin));
    }

    #[test]
    fn a_use_is_told_once_also_where_the_credential_was_forgotten() {
        let mut known = AccessCache::default();
        known.hear(state(1), Instant::now());
        let (id, found) = record(1);
        known.learn(id, found).used(7);
        known.hear(state(2), Instant::now());
        let uses = known.take_uses();
        assert_eq!(uses, [KeyUse { id, at: Timestamp(7) }]);
        assert!(known.take_uses().is_empty());
    }
}
