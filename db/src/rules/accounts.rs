//! Accounts, and the secrets of those who sign in without a provider.

use faena_auth::Scope;
use faena_domain::Namespace;
use faena_protocol::DbError;
use faena_protocol::db::{AccountDelete, AccountGet, AccountList, AccountPut, LoginGet, Resource, SecretPut};
use faena_protocol::records::{AccountRecord, LoginRecord, SecretHash};

use super::quotas::quota;
use super::{Read, Request, RequestContext, RuleResult, Write, conflict, not_found, read, refuse, write};
use crate::tx::Tx;

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    write::<AccountPut>(),
    read::<AccountGet>(),
    read::<AccountList>(),
    write::<AccountDelete>(),
    read::<LoginGet>(),
    write::<SecretPut>(),
];

/// The most accounts of a namespace.
const MAX_ACCOUNTS: usize = 10_000;

fn login(tx: &dyn Tx, namespace: &Namespace, account: &str) -> RuleResult<LoginRecord> {
    Ok(tx.login(namespace, account)?.ok_or_else(|| not_found(Resource::Account, account))?)
}

/// Adds an account, whose name must be free in its namespace.
pub(super) fn add(tx: &dyn Tx, account: &AccountRecord, secret: &SecretHash) -> RuleResult<()> {
    let there = tx.accounts(&account.namespace)?;
    if there.iter().any(|other| other.name == account.name) {
        return conflict(format!("the namespace {} has an account {} already", account.namespace, account.name));
    }
    if there.len() >= MAX_ACCOUNTS {
        return conflict(format!("the namespace {} has {MAX_ACCOUNTS} accounts, which is the most", account.namespace));
    }
    Ok(tx.insert_account(account, secret)?)
}

impl Write for AccountPut {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<AccountRecord> {
        context.changes_access();
        let Self { account, secret, first } = self;
        quota(tx, &account.namespace)?;
        // The same message may be sent again.
        if let Some(there) = tx.login(&account.namespace, &account.id.0)? {
            return Ok(there.account);
        }
        let is_locked = tx.is_locked()?;
        if *first && is_locked {
            return conflict("the platform has accounts already");
        }
        let is_root = account.namespace == Namespace::default() && account.scopes.include(Scope::Admin);
        if !is_locked && !is_root {
            let message = "the first account must have the scope admin in the namespace default".to_owned();
            return refuse(DbError::AdministratorNeeded { message });
        }
        add(tx, account, secret)?;
        tx.lock_platform()?;
        Ok(account.clone())
    }
}

impl Read for AccountGet {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<AccountRecord> {
        login(tx, &self.namespace, &self.account).map(|login| login.account)
    }
}

impl Read for AccountList {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Vec<AccountRecord>> {
        Ok(tx.accounts(&self.namespace)?)
    }
}

impl Write for AccountDelete {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        context.changes_access();
        let namespace = tx.account_namespace(&self.id)?.ok_or_else(|| not_found(Resource::Account, &self.id))?;
        let accounts = tx.accounts_with_secrets(&namespace)?;
        let is_admin = |account: &&AccountRecord| account.scopes.include(Scope::Admin);
        let (going, staying): (Vec<_>, Vec<_>) = accounts.iter().filter(is_admin).partition(|one| one.id == self.id);
        if let ([last], []) = (going.as_slice(), staying.as_slice()) {
            return conflict(format!("{} is the last administrator of the namespace {namespace}", last.name));
        }
        Ok(tx.delete_account(&self.id)?)
    }
}

impl Read for LoginGet {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<LoginRecord> {
        login(tx, &self.namespace, &self.account)
    }
}

impl Write for SecretPut {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        context.changes_access();
        if !tx.replace_secret(&self.id, &self.secret, self.proven.as_ref())? {
            return refuse(not_found(Resource::Account, &self.id));
        }
        tx.delete_sessions_of(&self.id)?;
        if self.ends_keys {
            tx.delete_api_keys_of(&self.id)?;
        }
        Ok(())
    }
}
