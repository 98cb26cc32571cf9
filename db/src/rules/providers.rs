//! Identity providers, and who signs in with them.

use faena_auth::CredentialKind;
use faena_domain::Namespace;
use faena_domain::config::SecretText;
use faena_protocol::db::{
    IdentityRefused, IdentitySignIn, ProviderDelete, ProviderGet, ProviderList, ProviderPut, Put, Resource,
};
use faena_protocol::records::{AccountRecord, ProviderLogin, ProviderRecord, SecretHash};

use super::{Read, Request, RequestContext, RuleResult, Write, conflict, not_found, read, refuse, write};
use super::{accounts, credentials, quotas, secrets};
use crate::tx::{IdentityAccount, SecretPlace, StoreResult, StoredProvider, Tx};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    write::<ProviderPut>(),
    read::<ProviderGet>(),
    read::<ProviderList>(),
    write::<ProviderDelete>(),
    write::<IdentityRefused>(),
    write::<IdentitySignIn>(),
];

/// The most providers.
const MAX_PROVIDERS: usize = 100;

/// Whether who signs in, and as whom, stays the same: a change of that ends existing sessions.
fn has_same_identities(one: &ProviderRecord, other: &ProviderRecord) -> bool {
    (&one.issuer, &one.client_id, &one.mappings) == (&other.issuer, &other.client_id, &other.mappings)
}

impl Write for ProviderPut {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Put<ProviderRecord>> {
        let Self { provider, client_secret } = self;
        let name = &provider.name;
        let before = tx.provider(name)?.map(|stored| stored.provider);
        if before.is_none() && tx.providers()?.len() >= MAX_PROVIDERS {
            return conflict(format!("there are {MAX_PROVIDERS} providers, which is the most"));
        }
        if before.as_ref().is_some_and(|before| !has_same_identities(before, provider)) {
            tx.end_access_by(name)?;
            context.changes_access();
        }
        let place = SecretPlace::Provider(name.clone());
        let secret = client_secret.as_ref().map(|SecretText(text)| secrets::seal(context, &place, text)).transpose()?;
        tx.put_provider(provider, secret.as_deref())?;
        Ok(Put { record: provider.clone(), created: before.is_none() })
    }
}

impl Read for ProviderGet {
    fn read(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<ProviderLogin> {
        let found = tx.provider(&self.name)?.ok_or_else(|| not_found(Resource::Provider, &self.name))?;
        let StoredProvider { provider, secret } = found;
        let Some(sealed) = secret else { return Ok(ProviderLogin { provider, client_secret: None }) };
        match secrets::open(context, &SecretPlace::Provider(self.name.clone()), &sealed) {
            Some(secret) => Ok(ProviderLogin { provider, client_secret: Some(SecretText(secret)) }),
            None => conflict(format!(
                "the client secret of the provider {} cannot be opened with the keys of this platform: put the provider again",
                self.name
            )),
        }
    }
}

impl Read for ProviderList {
    fn read(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<Vec<ProviderRecord>> {
        Ok(tx.providers()?)
    }
}

/// Removes the mappings of all providers to a namespace. An identity that has others signs in by those.
pub(super) fn remove_mappings(tx: &dyn Tx, namespace: &Namespace) -> StoreResult<()> {
    for mut provider in tx.providers()? {
        let before = provider.mappings.len();
        provider.mappings.retain(|mapping| mapping.namespace != *namespace);
        if provider.mappings.len() < before {
            tx.update_provider(&provider)?;
        }
    }
    Ok(())
}

impl Write for IdentityRefused {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        tx.end_access_of(&self.provider, &self.issuer, &self.subject)?;
        context.changes_access();
        Ok(())
    }
}

impl Write for ProviderDelete {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<()> {
        tx.end_access_by(&self.name)?;
        if !tx.delete_provider(&self.name)? {
            return refuse(not_found(Resource::Provider, &self.name));
        }
        context.changes_access();
        Ok(())
    }
}

/// The account with a free name: a suffix is added where another one has its name.
fn with_free_name(tx: &dyn Tx, account: &AccountRecord) -> RuleResult<AccountRecord> {
    let account = account.clone();
    if !tx.is_account_name_taken(&account.namespace, &account.name)? {
        return Ok(account);
    }
    // Ids are random.
    let short: String = account.id.0.chars().take(8).collect();
    match format!("{}-{short}", account.name).parse() {
        Ok(name) => Ok(AccountRecord { name, ..account }),
        Err(_) => conflict(format!("the name {} is taken", account.name)),
    }
}

impl Write for IdentitySignIn {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<AccountRecord> {
        let Self { provider, issuer, subject, account, session, cookie, keys_end_at } = self;
        if tx.provider(provider)?.is_none() {
            return refuse(not_found(Resource::Provider, provider));
        }
        if !tx.is_locked()? {
            return conflict(
                "the platform has no account yet: create an administrator who signs in with a secret first",
            );
        }
        let namespace = &account.namespace;
        quotas::quota(tx, namespace)?;
        context.changes_access();
        let account = match tx.identity_account(issuer, subject, namespace)? {
            Some(there) => {
                tx.update_account(&there.id, &account.scopes, &account.metadata)?;
                AccountRecord { scopes: account.scopes.clone(), metadata: account.metadata.clone(), ..there }
            }
            None => {
                let account = with_free_name(tx, account)?;
                // No secret has this hash.
                accounts::add(tx, &account, &SecretHash(String::new()))?;
                account
            }
        };
        let (account_id, signed_in_at, keys_end_at) = (&account.id, context.wall, *keys_end_at);
        tx.put_identity(IdentityAccount {
            issuer,
            subject,
            namespace,
            account: account_id,
            provider,
            signed_in_at,
            keys_end_at,
        })?;
        let begun = (session.as_str(), account_id, cookie.expires_at);
        credentials::begin_session(tx, context, begun, &[(CredentialKind::Cookie, cookie)])?;
        Ok(account)
    }
}
