//! Sessions of accounts that sign in with a secret.

use faena_auth::{Credential, CredentialKind, NewCredential};
use faena_domain::name::MAX_NAME;
use faena_domain::{Namespace, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{CredentialGet, LoginGet, Refreshed, SessionBegin, SessionRefresh};
use faena_protocol::records::{AccountRecord, LoginRecord, TokenRecord};
use faena_scheduler::unix_ms;

use crate::access::{Audited, Network, new_credential, wrong_secret};
use crate::app::App;
use crate::problem::{ErrorCode, Problem, Reply};

/// How long an access token is valid, in milliseconds.
const ACCESS_MS: i64 = 15 * 60 * 1000;
/// How long a session lasts, however often its tokens are exchanged, in milliseconds.
const SESSION_MS: i64 = 30 * 24 * 3600 * 1000;

/// New tokens of a session, and whose they are.
pub(crate) struct NewSession {
    pub(crate) account: AccountRecord,
    pub(crate) access: String,
    pub(crate) refresh: String,
    /// When the access token ends.
    pub(crate) ends_at: Timestamp,
}

fn record(made: &NewCredential, expires_at: i64) -> TokenRecord {
    TokenRecord { id: made.id, hash: made.hash.clone(), expires_at: Timestamp(expires_at) }
}

/// Begins a session of an account by its secret. A failure comes with what the audit log tells of it.
pub(crate) async fn sign_in(
    app: &App,
    (namespace, account): (Namespace, String),
    secret: String,
    network: Network,
) -> Result<NewSession, (Audited, Problem)> {
    let named = Audited { account: None, target: Some(account.clone()), namespace: Some(namespace.clone()) };
    let failed = |problem: Problem| (named.clone(), problem);
    // No account has a longer name, and such a name is not recorded.
    if account.len() > MAX_NAME {
        let nobody = Audited { namespace: Some(namespace), ..Audited::default() };
        return Err((nobody, wrong_secret()));
    }
    let login = match app.db().ask(&LoginGet { namespace: namespace.clone(), account: account.clone() }).await {
        Ok(login) => Some(login),
        Err(DbError::NotFound { .. }) => None,
        Err(error) => return Err(failed(error.into())),
    };
    let hash = login.as_ref().and_then(|login| login.secret.clone());
    // Its name and its id count as one account for guesses.
    let name = login.as_ref().map_or(account, |login| login.account.name.to_string());
    app.access().prove((&namespace, &name), secret, hash, network).await.map_err(failed)?;
    let login = login.ok_or_else(wrong_secret).map_err(failed)?;
    begin(app, login).await.map_err(failed)
}

/// Begins a session of an account whose secret was proven.
async fn begin(app: &App, LoginRecord { account, secret }: LoginRecord) -> Reply<NewSession> {
    let proven = secret.ok_or_else(wrong_secret)?;
    let (access, refresh) = (new_credential(CredentialKind::Access)?, new_credential(CredentialKind::Refresh)?);
    let now = unix_ms();
    let ends_at = Timestamp(now + SESSION_MS);
    let begin = SessionBegin {
        session: uuid::Uuid::new_v4().simple().to_string(),
        account: account.id.clone(),
        proven,
        ends_at,
        access: record(&access, now + ACCESS_MS),
        refresh: record(&refresh, ends_at.0),
    };
    match app.db().ask(&begin).await {
        // Its secret was changed, or it was deleted, meanwhile.
        Err(DbError::NotFound { .. }) => return Err(wrong_secret()),
        begun => begun?,
    }
    let (access, refresh) = (access.text, refresh.text);
    Ok(NewSession { account, access, refresh, ends_at: Timestamp(now + ACCESS_MS) })
}

fn ended() -> Problem {
    Problem::new(ErrorCode::BadCredentials, "the refresh token is unknown, or its session has ended")
}

/// When a refresh token ends that can be exchanged now.
async fn end_of_refresh_token(app: &App, token: &Credential, now: i64) -> Reply<i64> {
    let found = match app.db().ask(&CredentialGet { id: token.id }).await {
        Ok(found) => found.record,
        Err(DbError::NotFound { .. }) => return Err(ended()),
        Err(error) => return Err(error.into()),
    };
    let is_refresh = token.kind == CredentialKind::Refresh && found.kind == CredentialKind::Refresh;
    match found.expires_at {
        Some(end) if end.0 > now && is_refresh && found.hash.admits(&token.secret) => Ok(end.0),
        _ => Err(ended()),
    }
}

/// Exchanges a refresh token for new tokens of its session.
pub(crate) async fn refresh(app: &App, token: &str) -> Reply<NewSession> {
    let now = unix_ms();
    let token: Credential = token.parse().map_err(|_| ended())?;
    let ends_at = end_of_refresh_token(app, &token, now).await?;
    let (access, refresh) = (new_credential(CredentialKind::Access)?, new_credential(CredentialKind::Refresh)?);
    let exchange =
        SessionRefresh { used: token.id, access: record(&access, now + ACCESS_MS), refresh: record(&refresh, ends_at) };
    let refreshed = match app.db().ask(&exchange).await {
        Err(DbError::NotFound { .. }) => return Err(ended()),
        refreshed => refreshed?,
    };
    match refreshed {
        Refreshed::Done(account) => {
            let (access, refresh) = (access.text, refresh.text);
            Ok(NewSession { account: *account, access, refresh, ends_at: Timestamp(now + ACCESS_MS) })
        }
        Refreshed::Reused => {
            app.access().refresh().await?;
            Err(ended()
                .hint("it was used before, so someone else may have a copy; the session has ended: sign in again"))
        }
    }
}
