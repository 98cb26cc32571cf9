//! Idempotency keys: the same request is the same call.

use std::collections::HashMap;

use faena_domain::FunctionId;
use faena_protocol::DbError;
use faena_protocol::records::CallSpec;

use super::RuleResult;
use crate::tx::{StoreResult, StoredKey, Tx};

/// How long a key lives at least: a day.
const LIFE_MS: i64 = 24 * 3600 * 1000;
/// The most keys of one function: ten for each call that may wait.
const MAX_KEYS: u64 = 100_000;

/// The keys of the calls of one message: those that stand for calls already, and those that come.
#[derive(Debug, Default)]
pub(super) struct Keys {
    stored: HashMap<(FunctionId, String), StoredKey>,
    /// Counted once for each function; only functions whose calls have keys are counted.
    counts: HashMap<FunctionId, u64>,
    new: Vec<StoredKey>,
}

/// A key as it is kept: it belongs to the account that sent it. A key has no spaces, so no key of one account is
/// that of another.
fn kept(spec: &CallSpec) -> Option<(FunctionId, String)> {
    let key = spec.key.as_ref()?;
    let text = spec.account.as_ref().map_or_else(|| key.key.clone(), |account| format!("{account} {}", key.key));
    Some((FunctionId::new(&spec.namespace, &spec.function), text))
}

impl Keys {
    /// Reads the keys of these calls.
    pub(super) fn of<'a>(tx: &dyn Tx, calls: impl Iterator<Item = &'a CallSpec>) -> StoreResult<Self> {
        let asked: Vec<(FunctionId, String)> = calls.filter_map(kept).collect();
        if asked.is_empty() {
            return Ok(Self::default());
        }
        let stored = tx.stored_keys(&asked)?.into_iter().map(|key| ((key.function.clone(), key.text.clone()), key));
        Ok(Self { stored: stored.collect(), ..Self::default() })
    }

    /// The call that was accepted with the same key.
    ///
    /// # Errors
    /// [`DbError::KeyReused`] where the key stood for another request.
    pub(super) fn earlier(&self, spec: &CallSpec) -> Result<Option<&StoredKey>, DbError> {
        let (Some(key), Some(kept)) = (&spec.key, kept(spec)) else { return Ok(None) };
        match self.stored.get(&kept) {
            Some(stored) if stored.hash == key.hash => Ok(Some(stored)),
            Some(_) => Err(DbError::KeyReused { key: key.key.clone() }),
            None => Ok(None),
        }
    }

    /// Keeps the key of a call that is accepted now.
    ///
    /// # Errors
    /// [`DbError::QueueFull`] where the function has as many as it may.
    pub(super) fn remember(&mut self, tx: &dyn Tx, spec: &CallSpec, now: i64) -> RuleResult<()> {
        let (Some(key), Some((function, text))) = (&spec.key, kept(spec)) else { return Ok(()) };
        if !self.counts.contains_key(&function) {
            // Counting is cheap while there are few.
            self.counts.insert(function.clone(), tx.count_keys(&function, MAX_KEYS)?);
        }
        let count = self.counts.entry(function.clone()).or_default();
        if *count >= MAX_KEYS {
            let message = format!(
                "the function {} has {MAX_KEYS} Idempotency-Keys already; each is kept for a day",
                spec.function
            );
            return super::refuse(DbError::QueueFull { message });
        }
        *count += 1;
        let expires_at = now.saturating_add(LIFE_MS);
        let stored = StoredKey { function, text, hash: key.hash, call: spec.num, expires_at };
        self.stored.insert((stored.function.clone(), stored.text.clone()), stored.clone());
        self.new.push(stored);
        Ok(())
    }

    /// The keys that were added for this message.
    pub(super) fn into_new(self) -> Vec<StoredKey> {
        self.new
    }
}
