//! Tokens of sessions, and keys.

use faena_auth::{AccountId, CredentialKind};
use faena_domain::Timestamp;
use faena_protocol::db::{
    CredentialGet, KeyDelete, KeyList, KeyPut, KeysUsed, Refreshed, Resource, Seen, SessionBegin, SessionEnd,
    SessionRefresh,
};
use faena_protocol::records::{CredentialRecord, KeyRecord, TokenRecord};

use super::{Read, Request, RequestContext, RuleResult, Write, conflict, not_found, read, refuse, write};
use crate::tx::{StoreResult, Tx};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    read::<CredentialGet>(),
    write::<SessionBegin>(),
    write::<SessionRefresh>(),
    write::<SessionEnd>(),
    write::<KeyPut>(),
    read::<KeyList>(),
    write::<KeyDelete>(),
    write::<KeysUsed>(),
];

const DAY_MS: i64 = 24 * 3600 * 1000;
/// The most sessions of an account.
const MAX_SESSIONS: u32 = 100;
/// The most tokens of a session: more than one that is refreshed every ten minutes needs.
const MAX_TOKENS: u32 = 10_000;
/// The most keys of an account.
const MAX_KEYS: usize = 100;

impl Read for CredentialGet {
    fn read(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Seen<CredentialRecord>> {
        let record = tx.credential(&self.id)?.ok_or_else(|| not_found(Resource::Credential, &self.id))?;
        Ok(Seen { seen: context.access_seen, record })
    }
}

/// Begins a session: its id, its account and its end. If the account has too many, its oldest session ends.
pub(super) fn begin_session(
    tx: &dyn Tx,
    context: &RequestContext<'_>,
    (session, account, ends_at): (&str, &AccountId, Timestamp),
    tokens: &[(CredentialKind, &TokenRecord)],
) -> StoreResult<()> {
    tx.insert_session(session, account, context.wall, ends_at)?;
    if tx.end_oldest_sessions(account, MAX_SESSIONS)? {
        context.changes_access();
    }
    tx.insert_tokens(session, tokens)
}

impl Write for SessionBegin {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        // The same message may be sent again.
        if tx.is_token(&self.access.id)? {
            return Ok(());
        }
        // The secret that was proven may have been changed meanwhile.
        if !tx.has_secret(&self.account, &self.proven)? {
            return refuse(not_found(Resource::Account, &self.account));
        }
        let tokens = [(CredentialKind::Access, &self.access), (CredentialKind::Refresh, &self.refresh)];
        Ok(begin_session(tx, context, (&self.session, &self.account, self.ends_at), &tokens)?)
    }
}

impl Write for SessionRefresh {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Refreshed> {
        let found = tx.session_of_token(&self.used)?.ok_or_else(|| not_found(Resource::Credential, &self.used))?;
        let next = &self.refresh.id;
        // The same message may be sent again.
        if found.successor.as_ref().is_some_and(|successor| *successor == next.to_string()) {
            return Ok(Refreshed::Done(Box::new(found.account)));
        }
        if found.successor.is_some() || tx.count_tokens(&found.session)? >= MAX_TOKENS {
            context.changes_access();
            tx.delete_session(&found.session)?;
            return Ok(Refreshed::Reused);
        }
        tx.set_successor(&self.used, next)?;
        let tokens = [(CredentialKind::Access, &self.access), (CredentialKind::Refresh, &self.refresh)];
        tx.insert_tokens(&found.session, &tokens)?;
        Ok(Refreshed::Done(Box::new(found.account)))
    }
}

impl Write for SessionEnd {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        if tx.delete_session(&self.session)? {
            context.changes_access();
        }
        Ok(())
    }
}

impl Write for KeyPut {
    fn write(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<KeyRecord> {
        let Self { key, hash } = self;
        let there = tx.api_keys(&key.account)?;
        match there.iter().find(|other| other.name == key.name) {
            // The same message was sent again.
            Some(same) if same.id == key.id => return Ok(same.clone()),
            Some(_) => return conflict(format!("the account has a key {} already", key.name)),
            None => {}
        }
        if there.len() >= MAX_KEYS {
            return conflict(format!("the account has {MAX_KEYS} keys, which is the most"));
        }
        tx.insert_api_key(key, hash)?;
        Ok(key.clone())
    }
}

impl Read for KeyList {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Vec<KeyRecord>> {
        Ok(tx.api_keys(&self.account)?)
    }
}

impl Write for KeyDelete {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        if !tx.delete_api_key(&self.account, &self.id)? {
            return refuse(not_found(Resource::Key, &self.id));
        }
        context.changes_access();
        Ok(())
    }
}

impl Write for KeysUsed {
    fn write(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<()> {
        Ok(tx.note_key_uses(&self.uses)?)
    }
}

/// Forgets sessions and tokens that have ended. A token that was exchanged is kept as long as its session, so
/// that its reuse is noticed. One for access is known for a day longer: what it began goes on with its session.
pub(super) fn forget(tx: &dyn Tx, wall: i64) -> StoreResult<()> {
    tx.forget_sessions(wall, wall - DAY_MS)
}
