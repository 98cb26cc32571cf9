//! Who is let in: accounts, credentials and rules, cached until db reports a change.
//!
//! A platform on which no account was ever made is open: what reaches it from this machine is the local operator's. The
//! first account locks it, for ever.

mod audit;
mod cache;
mod peer;
mod rates;
mod request_auth;
mod secrets;
mod sign_in_limits;

use std::fs::File;
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use faena_auth::{Account, Credential, CredentialKind, Principal, Requirement, Target};
use faena_db_client::DbClient;
use faena_domain::{Namespace, Quota, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{AccessState, AccessStateGet, CredentialGet, KeysUsed, Resource, RuleList, SetupPut};
use faena_protocol::records::SecretHash;
use faena_scheduler::unix_ms;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::problem::{ErrorCode, Problem, Reply};
pub(crate) use audit::{Audit, AuditEntry, Audited};
pub(crate) use cache::Rules;
use cache::{AccessCache, KnownCredential};
pub use peer::Operators;
pub(crate) use peer::{Peer, client_address};
pub(crate) use rates::CallPlace;
use rates::{Concurrency, Rates};
use request_auth::unknown_credential;
pub(crate) use request_auth::{Origin, RequestAuth, SESSION_COOKIE, cookie, session_cookie};
pub(crate) use secrets::{Secrets, check as check_secret, new_credential, new_secret};
pub(crate) use sign_in_limits::Network;
use sign_in_limits::{Attempt, SignInLimits};

/// How often db is asked whether anything has changed.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// The longest time for which an answer of db about access is used without a newer one. It bounds how long a credential that
/// was revoked by another api is still accepted.
const MAX_ACCESS_AGE: Duration = Duration::from_secs(2);
/// How long db may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How often last uses of keys are noted.
const NOTE_USES: Duration = Duration::from_secs(20);

static OPERATOR: LazyLock<Arc<Principal>> = LazyLock::new(|| Arc::new(Principal::operator()));

/// What a request was admitted by, so that it can be judged again while it lasts.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) principal: Arc<Principal>,
    pub(crate) credential: Option<Credential>,
    pub(crate) requirement: Requirement,
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) endpoint: String,
    /// Counts the call as running while the grant exists, where the namespace has such a quota.
    pub(crate) _place: Option<Arc<CallPlace>>,
}

/// What an api knows of accounts.
#[derive(Debug)]
pub(crate) struct Access {
    db: DbClient,
    cache: RwLock<AccessCache>,
    /// Whom the platform is open for; none where it may not be open.
    open_for: Option<Operators>,
    /// Sent when anything has changed.
    changed: watch::Sender<()>,
    sign_in_limits: SignInLimits,
    pub(crate) secrets: Secrets,
    rates: Rates,
    concurrency: Concurrency,
    pub(crate) audit: Audit,
}

impl Access {
    /// What an api knows at its start: nothing. The tasks that follow db end when this is dropped.
    pub(crate) fn new(db: DbClient, open_for: Option<Operators>, audit_file: Option<File>) -> Arc<Self> {
        let access = Arc::new(Self {
            audit: Audit::new(db.clone(), audit_file),
            cache: RwLock::default(),
            open_for,
            changed: watch::Sender::new(()),
            sign_in_limits: SignInLimits::default(),
            secrets: Secrets::default(),
            rates: Rates::default(),
            concurrency: Concurrency::default(),
            db,
        });
        tokio::spawn(follow(Arc::downgrade(&access)));
        access
    }

    /// The state of access, at most [`MAX_ACCESS_AGE`] old.
    async fn state(&self) -> Reply<AccessState> {
        {
            let known = self.cache.read();
            if let Some((state, heard)) = known.state
                && heard.elapsed() < MAX_ACCESS_AGE
            {
                return Ok(state);
            }
        }
        self.refresh().await
    }

    /// Reads the state of access from db. Called after a change, so that the next request of its author sees it.
    pub(crate) async fn refresh(&self) -> Reply<AccessState> {
        let asked = Instant::now();
        let state = self.db.ask_within(&AccessStateGet {}, ANSWER).await?;
        let has_changed = self.cache.write().hear(state, asked);
        if has_changed {
            self.changed.send_replace(());
        }
        Ok(state)
    }

    /// The token with which the first account can be made; none where the platform is open or locked. It replaces an
    /// earlier token.
    pub(crate) async fn offer_setup(&self) -> Reply<Option<String>> {
        if self.open_for.is_some() || self.state().await?.locked {
            return Ok(None);
        }
        let token = new_secret()?;
        self.db.ask(&SetupPut { hash: setup_hash(&token) }).await?;
        Ok(Some(token))
    }

    /// Who sends a request.
    ///
    /// # Errors
    /// 401 for a credential that is none of ours; 400 for a namespace that cannot be one.
    pub(crate) async fn principal(&self, request: &RequestAuth<'_>) -> Reply<Arc<Principal>> {
        let named = request.namespace()?;
        if !self.state().await?.locked && self.is_open_to(request) {
            return self.operator(named).await;
        }
        let Some(credential) = request.credential()? else {
            return Ok(Arc::new(Principal::anonymous(named.unwrap_or_default())));
        };
        let known = self.credential(&credential).await?;
        match named {
            Some(named) if named != known.principal.namespace => {
                Ok(Arc::new(Principal { namespace: named, ..(*known.principal).clone() }))
            }
            _ => Ok(Arc::clone(&known.principal)),
        }
    }

    /// Whether an open platform accepts a request: it comes from an operator, and through no proxy.
    fn is_open_to(&self, request: &RequestAuth<'_>) -> bool {
        let is_operators = |operators: &Operators| request.peer.is_none_or(|peer| peer.is_of(operators));
        self.open_for.as_ref().is_some_and(|operators| !request.is_forwarded() && is_operators(operators))
    }

    async fn operator(&self, named: Option<Namespace>) -> Reply<Arc<Principal>> {
        match named.filter(|named| *named != OPERATOR.namespace) {
            None => Ok(Arc::clone(&OPERATOR)),
            Some(namespace) => {
                self.rules(&namespace).await?;
                Ok(Arc::new(Principal { namespace, ..(**OPERATOR).clone() }))
            }
        }
    }

    /// What a credential stands for, where it is one that is sent with requests and has not ended.
    async fn credential(&self, credential: &Credential) -> Reply<Arc<KnownCredential>> {
        let known = self.lookup(credential).await?;
        let now = unix_ms();
        if known.has_ended(now) {
            return Err(unknown_credential());
        }
        known.used(now);
        Ok(known)
    }

    /// What a credential stands for, also where it has ended.
    async fn lookup(&self, credential: &Credential) -> Reply<Arc<KnownCredential>> {
        let there = self.cache.read().credential(credential.id);
        let known = match there {
            Some(known) => known,
            None => match self.db.ask_within(&CredentialGet { id: credential.id }, ANSWER).await {
                Ok(found) => self.cache.write().learn(credential.id, found),
                Err(DbError::NotFound { what: Resource::Credential, .. }) => return Err(unknown_credential()),
                Err(error) => return Err(error.into()),
            },
        };
        if known.kind != credential.kind || !known.hash.admits(&credential.secret) {
            return Err(unknown_credential());
        }
        Ok(known)
    }

    /// Returns when a request that lasts would not be admitted any longer.
    pub(crate) async fn revoked(&self, grant: &Grant) {
        let mut changes = self.changed.subscribe();
        let ends = async {
            match self.end_of(grant).await {
                Some(end) => tokio::time::sleep_until(end.into()).await,
                None => std::future::pending().await,
            }
        };
        let changing = async {
            while self.holds(grant).await {
                // It is sent by ourselves.
                let _ = changes.changed().await;
            }
        };
        tokio::select! {
            () = changing => {}
            () = ends => {}
        }
    }

    /// When what a request was admitted by ends by itself.
    async fn end_of(&self, grant: &Grant) -> Option<Instant> {
        let known = self.lookup(grant.credential.as_ref()?).await.ok()?;
        let left = known.lasts_until()?.0.saturating_sub(unix_ms());
        Some(Instant::now() + Duration::from_millis(u64::try_from(left).unwrap_or(0)))
    }

    /// Whether a request would still be admitted; while db says nothing it would.
    pub(crate) async fn holds(&self, grant: &Grant) -> bool {
        let Grant { principal, credential, .. } = grant;
        let holds = async {
            let principal = match (&principal.account, credential) {
                (Account::Operator, _) => return Ok(!self.state().await?.locked),
                (Account::Named { .. }, Some(credential)) => {
                    // A token goes on for as long as its session.
                    let known = self.lookup(credential).await?;
                    if known.lasts_until().is_some_and(|end| end.0 <= unix_ms()) {
                        return Err(unknown_credential());
                    }
                    Principal { namespace: principal.namespace.clone(), ..(*known.principal).clone() }
                }
                _ => (**principal).clone(),
            };
            let target = Target { kind: grant.kind, name: &grant.name, endpoint: &grant.endpoint };
            let rules = self.rules(&principal.namespace).await?;
            Reply::Ok(principal.may(grant.requirement, &target, &rules.rules).is_ok())
        };
        let ends = [ErrorCode::Unauthenticated, ErrorCode::UnknownNamespace];
        holds.await.unwrap_or_else(|problem| !ends.iter().any(|code| problem.is(*code)))
    }

    /// When the key of a request ends, where it has one that does.
    pub(crate) async fn end_of_key(&self, request: &RequestAuth<'_>) -> Reply<Option<Timestamp>> {
        let Some(credential) = request.read_credential() else { return Ok(None) };
        if credential.kind != CredentialKind::Key {
            return Ok(None);
        }
        Ok(self.credential(&credential).await?.lasts_until())
    }

    /// The session of a credential, where it is an access token.
    pub(crate) async fn session(&self, request: &RequestAuth<'_>) -> Reply<Option<String>> {
        let Some(credential) = request.credential()? else { return Ok(None) };
        Ok(self.credential(&credential).await?.session.clone())
    }

    /// Whether a secret is that of an account; the answer and its time are the same where there is no such account.
    ///
    /// # Errors
    /// 401 where it is not, 429 where too many attempts have failed.
    pub(crate) async fn prove(
        &self,
        (namespace, account): (&Namespace, &str),
        secret: String,
        hash: Option<SecretHash>,
        network: Network,
    ) -> Reply<()> {
        let attempt = self.sign_in_limits.attempt(namespace, account, network, Instant::now()).map_err(too_many)?;
        match self.secrets.is_right(secret, hash, network).await {
            Ok(true) => attempt.succeeded(),
            Ok(false) => return Err(wrong_secret()),
            Err(error) => {
                // Nothing was tried.
                attempt.withdraw();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Counts a sign-in with a provider; it has failed, unless it is said to have succeeded.
    ///
    /// # Errors
    /// 429 where too many from this network have failed.
    pub(crate) fn attempt_from(&self, network: Network) -> Reply<Attempt<'_>> {
        self.sign_in_limits.attempt_from(network, Instant::now()).map_err(too_many)
    }

    /// The rules of a namespace.
    ///
    /// # Errors
    /// 404 where there is no such namespace.
    pub(crate) async fn rules(&self, namespace: &Namespace) -> Reply<Arc<Rules>> {
        let there = self.cache.read().rules(namespace);
        match there {
            Some(rules) => Ok(rules),
            None => {
                let found = self.db.ask_within(&RuleList { namespace: namespace.clone() }, ANSWER).await?;
                Ok(self.cache.write().learn_rules(namespace, found))
            }
        }
    }

    /// Counts a call of a namespace. A call whose client waits counts as running until the place is dropped.
    ///
    /// # Errors
    /// 429 where as many are under way, or were made in this minute, as may be.
    pub(crate) fn count_call(&self, principal: &Principal, quota: &Quota, waited: bool) -> Reply<Option<CallPlace>> {
        let is_anonymous = principal.account == Account::Anonymous;
        let namespace = &principal.namespace;
        let place = match quota.concurrent_calls.filter(|_| waited) {
            Some(most) => Some(self.concurrency.take(namespace, is_anonymous, most).ok_or_else(|| {
                let detail =
                    format!("{} (quota concurrentCalls)", many_calls(namespace, is_anonymous, most, "at once"));
                Problem::new(ErrorCode::RateLimited, detail).retry_after(1)
            })?),
            None => None,
        };
        if let Some(most) = quota.calls_per_minute {
            self.rates.count(namespace, (is_anonymous, most), Instant::now()).map_err(|left| {
                let detail =
                    format!("{} (quota callsPerMinute)", many_calls(namespace, is_anonymous, most, "in a minute"));
                let seconds = u32::try_from(left.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
                Problem::new(ErrorCode::RateLimited, detail).retry_after(seconds)
            })?;
        }
        Ok(place)
    }

    /// How many calls this api has counted for a namespace in this minute; they are counted where there is a quota.
    pub(crate) fn calls_in_minute(&self, namespace: &Namespace) -> u32 {
        self.rates.counted(namespace, Instant::now())
    }

    /// How many calls of a namespace are under way in this api; they are counted where there is a quota.
    pub(crate) fn calls_under_way(&self, namespace: &Namespace) -> u32 {
        self.concurrency.counted(namespace)
    }

    /// Notes in db when keys were used.
    async fn note_uses(&self) {
        let uses = self.cache.write().take_uses();
        if uses.is_empty() {
            return;
        }
        if let Err(error) = self.db.ask(&KeysUsed { uses }).await {
            debug!(%error, "when keys were used is not noted");
        }
    }
}

/// The hash of a token of the set-up.
pub fn setup_hash(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

/// What a namespace may, and has reached.
fn many_calls(namespace: &Namespace, is_anonymous: bool, most: u32, when: &str) -> String {
    let half = Quota::anonymous(most);
    if is_anonymous {
        return format!(
            "the namespace {namespace} may make {most} calls {when}, at most {half} of them without a credential"
        );
    }
    format!("the namespace {namespace} may make {most} calls {when}")
}

/// 401: the account is not named, or its secret is another. Which of both is not told.
pub(crate) fn wrong_secret() -> Problem {
    Problem::new(ErrorCode::BadCredentials, "there is no account of this name with this secret")
}

fn too_many(left: Duration) -> Problem {
    let seconds = u32::try_from(left.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
    let detail = format!("too many attempts to sign in have failed; the next one is accepted in {seconds} s");
    Problem::new(ErrorCode::TooManyAttempts, detail).retry_after(seconds)
}

/// Asks db what has changed, and notes when keys were used.
async fn follow(access: Weak<Access>) {
    let mut noted = Instant::now();
    loop {
        let Some(strong) = access.upgrade() else { return };
        if strong.refresh().await.is_err() {
            debug!("whether access has changed is not known");
        }
        if noted.elapsed() >= NOTE_USES {
            strong.note_uses().await;
            noted = Instant::now();
        }
        if let Err(error) = strong.audit.flush_old().await {
            warn!(%error, "refusals are not in the audit log yet");
        }
        drop(strong);
        tokio::time::sleep(ASK_EVERY).await;
    }
}
