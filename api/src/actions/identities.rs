//! Sessions of identities: people who sign in with a provider.

use faena_auth::{AccountId, AccountKind, CredentialKind, mapped};
use faena_domain::{AccountName, Namespace, ProviderName, Timestamp};
use faena_protocol::db::{IdentityRefused, IdentitySignIn, ProviderGet};
use faena_protocol::records::{AccountRecord, ProviderRecord, TokenRecord};
use faena_scheduler::unix_ms;
use faena_sign_in::{Callback, Identity, Pending};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::access::new_credential;
use crate::app::App;
use crate::problem::{ErrorCode, Problem, Reply};

/// Claims shown with an account so that people recognise it; they grant nothing.
const SHOWN: [&str; 3] = ["name", "preferred_username", "email"];
/// The longest claim that is shown, in characters.
const MAX_SHOWN: usize = 200;
/// Bytes of the digest that makes the name of an account unique.
const NAME_DIGEST: usize = 8;

/// What a provider has answered, and what the browser was sent to it with.
pub(crate) struct ProviderAnswer {
    pub(crate) redirect: String,
    pub(crate) callback: Callback,
    pub(crate) pending: Pending,
}

/// An identity that has signed in.
pub(crate) struct SignedIn {
    pub(crate) account: AccountRecord,
    /// The credential that the browser keeps.
    pub(crate) cookie: String,
    /// How many seconds it is valid.
    pub(crate) seconds: i64,
}

/// Verifies an answer, and begins a session of the account that the provider's mappings give to the identity.
pub(crate) async fn sign_in(
    app: &App,
    provider: ProviderName,
    answer: ProviderAnswer,
    namespace: Option<&Namespace>,
) -> Reply<SignedIn> {
    let login = app.db().ask(&ProviderGet { name: provider.clone() }).await?;
    let record = login.provider.clone();
    let claims: Vec<String> = record.mappings.iter().map(|mapping| mapping.claim.clone()).collect();
    let identity = app.providers().ask(login, move |provider| {
        let claims: Vec<&str> = claims.iter().map(String::as_str).collect();
        provider.finish(answer.redirect, answer.callback, answer.pending, &claims)
    });
    let identity = identity.await?;
    let Some((namespace, scopes)) = mapped(&record.mappings, &identity.claims, namespace) else {
        return Err(refuse(app, &record, identity).await?);
    };
    let account = AccountRecord {
        id: AccountId(uuid::Uuid::new_v4().simple().to_string().into()),
        name: account_name(&record.name, &identity)?,
        namespace,
        kind: AccountKind::User,
        scopes,
        metadata: metadata(&record.name, &identity),
        created_at: Timestamp(unix_ms()),
    };
    let signed_in = begin_session(app, provider, identity, account).await?;
    app.access().refresh().await?;
    Ok(signed_in)
}

/// Why an identity gets no access. If no mapping applies in any namespace, its existing access ends.
async fn refuse(app: &App, provider: &ProviderRecord, identity: Identity) -> Reply<Problem> {
    let subject: String = identity.subject.chars().take(MAX_SHOWN).collect();
    if mapped(&provider.mappings, &identity.claims, None).is_none() {
        let Identity { issuer, subject, .. } = identity;
        app.db().ask(&IdentityRefused { provider: provider.name.clone(), issuer, subject }).await?;
        app.access().refresh().await?;
    }
    let detail = format!("no mapping of the provider {} gives the subject {subject:?} access", provider.name);
    Ok(Problem::new(ErrorCode::UnmappedIdentity, detail))
}

/// Begins a session of an identity.
async fn begin_session(
    app: &App,
    provider: ProviderName,
    identity: Identity,
    account: AccountRecord,
) -> Reply<SignedIn> {
    let made = new_credential(CredentialKind::Cookie)?;
    let lifetimes = app.sign_in_lifetimes();
    let now = unix_ms();
    let request = IdentitySignIn {
        provider,
        issuer: identity.issuer,
        subject: identity.subject,
        account,
        session: uuid::Uuid::new_v4().simple().to_string(),
        cookie: TokenRecord {
            id: made.id,
            hash: made.hash.clone(),
            expires_at: Timestamp(now.saturating_add(lifetimes.session_ms)),
        },
        keys_end_at: Timestamp(now.saturating_add(lifetimes.keys_ms)),
    };
    let account = app.db().ask(&request).await?;
    Ok(SignedIn { account, cookie: made.text, seconds: lifetimes.session_ms / 1000 })
}

/// The name of an identity's account. It has no text that the person has chosen: such names prove nothing.
fn account_name(provider: &ProviderName, identity: &Identity) -> Reply<AccountName> {
    let digest = Sha256::digest(format!("{}\0{}", identity.issuer, identity.subject));
    let short: String = provider.as_str().chars().take(40).collect();
    Ok(format!("{short}-{}", hex::encode(&digest[..NAME_DIGEST])).parse()?)
}

/// What an account shows of its identity.
fn metadata(provider: &ProviderName, identity: &Identity) -> Map<String, Value> {
    let cut = |text: &str| text.chars().take(MAX_SHOWN).collect::<String>();
    let claims =
        SHOWN.iter().filter_map(|name| Some(((*name).to_owned(), json!(cut(identity.claims.get(*name)?.as_str()?)))));
    let own = [("provider", provider.as_str()), ("issuer", &identity.issuer), ("subject", &identity.subject)];
    claims.chain(own.map(|(name, value)| (name.to_owned(), json!(cut(value))))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_account_is_nothing_that_a_person_has_chosen() {
        let identity = |issuer: &str, subject: &str| {
            let claims = json!({"preferred_username": "root", "email": "e"}).as_object().cloned().unwrap_or_default();
            Identity { issuer: issuer.to_owned(), subject: subject.to_owned(), claims }
        };
        let provider: ProviderName = "p".repeat(63).parse().expect("a name");
        let name = |issuer, subject| account_name(&provider, &identity(issuer, subject)).expect("a name").to_string();
        assert_eq!(name("a", "b"), name("a", "b"));
        assert!(name("a", "b") != name("ab", "") && !name("a", "root").contains("root"));
        assert_eq!(metadata(&provider, &identity("a", "b"))["preferred_username"], "root");
    }
}
