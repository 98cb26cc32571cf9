//! What the rules need of a database: one transaction, with methods for the rows of each resource.
//!
//! The rules (`crate::rules`) know nothing else of a database, and a store (`crate::store`) knows no rule. A transaction is
//! serialisable: what a rule has read stays as it was until its commit. A rule may be run again, after a conflict. On the paths that
//! every call takes, reads of rows that the rule is about to change end in `_for_update`, for stores with locks; elsewhere isolation
//! and a second run are enough. Methods on these paths take slices, so that a store across a network needs one round trip for all.

mod accounts;
mod audit;
mod blobs;
mod builds;
mod callbacks;
mod calls;
mod config;
mod credentials;
mod functions;
mod idempotency_keys;
mod images;
mod namespaces;
mod nodes;
mod providers;
mod queues;
mod retention;
mod runtimes;

pub(crate) use accounts::AccountRows;
pub(crate) use audit::AuditRows;
pub(crate) use blobs::{BlobOwner, BlobRows};
pub(crate) use builds::{BuildEnd, BuildRows};
pub(crate) use callbacks::{CallbackRows, CallbackStatus, DueCallback};
pub(crate) use calls::{
    CallFilter, CallRows, CallSelection, ClaimedCall, CompletedSpan, EndedLog, EndedRow, NewCallRow, SavedEntry,
    StoredEntry,
};
pub(crate) use config::{ConfigRows, Leaf, LeafValue, SealedSecret, SecretPlace, SecretRows};
pub(crate) use credentials::{CredentialRows, TokenSession};
pub(crate) use functions::{FunctionHead, FunctionRows, StoredVersion};
pub(crate) use idempotency_keys::{IdempotencyKeyRows, StoredKey};
pub(crate) use images::ImageRows;
pub(crate) use namespaces::{NamespaceContent, NamespaceRows, RuleRows};
pub(crate) use nodes::{NodeRows, StoredNodeToken};
pub(crate) use providers::{IdentityAccount, ProviderRows, StoredProvider};
pub(crate) use queues::{Candidate, Offer, QueueRows, Waiting, WaitingNamespace, WaitingQueue};
pub(crate) use retention::{KeptCalls, KeptLog, RetentionRows};
pub(crate) use runtimes::RuntimeRows;

/// A failure of the store itself, not of a request: the database, its file, or what is stored in it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct StoreError(Box<dyn std::error::Error + Send + Sync>);

impl StoreError {
    /// The failure that a database has told, or that reading a stored value has shown.
    pub(crate) fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}

/// What a row method returns.
pub(crate) type StoreResult<T> = Result<T, StoreError>;

/// What the platform keeps of itself, beside its resources.
pub(crate) trait PlatformRows {
    /// Succeeds if the database answers.
    fn ping(&self) -> StoreResult<()>;

    /// Keeps db time, for the next start.
    fn keep_clock(&self, now: i64) -> StoreResult<()>;

    /// Whether an account was ever created: from then on every request needs one.
    fn is_locked(&self) -> StoreResult<bool>;

    /// Locks the platform, and forgets the token of its set-up.
    fn lock_platform(&self) -> StoreResult<()>;

    /// The hash of the token that makes the first account; none once the platform is locked.
    fn setup_token(&self) -> StoreResult<Option<String>>;

    /// Keeps the hash of that token, unless the platform is locked.
    fn put_setup_token(&self, hash: &str) -> StoreResult<()>;
}

/// One transaction: the rows of every resource.
pub(crate) trait Tx:
    PlatformRows
    + AccountRows
    + AuditRows
    + BlobRows
    + BuildRows
    + CallRows
    + CallbackRows
    + ConfigRows
    + CredentialRows
    + FunctionRows
    + IdempotencyKeyRows
    + ImageRows
    + NamespaceRows
    + NodeRows
    + ProviderRows
    + QueueRows
    + RetentionRows
    + RuleRows
    + RuntimeRows
    + SecretRows
{
}
