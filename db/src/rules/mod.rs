//! What each request does: who may claim, what a late result changes, what a deletion refuses. One module for each resource; each
//! registers its own requests. The rules see a database as [`Tx`] alone.

mod access;
mod access_rules;
mod accounts;
mod audit;
mod blobs;
mod builds;
mod callbacks;
mod calls;
mod claims;
mod completed;
mod config;
mod credentials;
mod functions;
mod idempotency_keys;
mod images;
mod logs;
mod namespaces;
mod nodes;
mod providers;
mod quotas;
mod registry;
mod retention;
mod runtimes;
mod secrets;
mod transitions;
mod workers;

use std::cell::{Cell, RefCell};

use faena_domain::FunctionId;
use faena_protocol::db::{Access, AccessSeen, Resource};
use faena_protocol::{DbError, DbRequest, Envelope, EnvelopeError};
use serde_json::value::RawValue;

pub(crate) use registry::prepare;
pub(crate) use workers::grant_grace;

use crate::StoreSettings;
use crate::changes::ChangeLog;
use crate::keyring::Keyring;
use crate::reserve::Disk;
use crate::tx::{StoreError, Tx};

/// What a request is judged by, beside the rows.
pub(crate) struct RequestContext<'a> {
    /// Db time.
    pub(crate) now: i64,
    /// Wall time.
    pub(crate) wall: i64,
    /// How much room the disk has.
    pub(crate) disk: Disk,
    /// How far wall time was set since the start, where that is worth telling.
    pub(crate) clock_step_ms: Option<i64>,
    pub(crate) settings: &'a StoreSettings,
    pub(crate) changes: &'a ChangeLog,
    /// How often access had changed before the request ran.
    pub(crate) access_seen: AccessSeen,
    /// Whether a request of the transaction changes access.
    pub(crate) access_changes: Cell<bool>,
    /// Functions that a request of the transaction changes, besides those that it names itself.
    pub(crate) changed: RefCell<Vec<FunctionId>>,
    pub(crate) keyring: &'a Keyring,
}

impl RequestContext<'_> {
    /// Records that permissions may change with this transaction.
    fn changes_access(&self) {
        self.access_changes.set(true);
    }

    /// Records that the calls of a function may run something else after this transaction.
    pub(crate) fn changes_function(&self, function: FunctionId) {
        self.changed.borrow_mut().push(function);
    }

    /// Drawn from \[0, 1).
    fn uniform(&self) -> f64 {
        fastrand::f64()
    }

    /// # Errors
    /// [`DbError::DiskLow`].
    fn takes_new_work(&self) -> Result<(), DbError> {
        if self.disk == Disk::Short { Err(DbError::DiskLow) } else { Ok(()) }
    }
}

/// Why a request changes nothing.
#[derive(Debug)]
enum RuleError {
    /// A rule refuses it.
    Refused(DbError),
    /// The store failed.
    Store(StoreError),
}

impl From<DbError> for RuleError {
    fn from(error: DbError) -> Self {
        Self::Refused(error)
    }
}

impl From<StoreError> for RuleError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

type RuleResult<T> = Result<T, RuleError>;

/// A refusal.
fn refuse<T>(error: DbError) -> RuleResult<T> {
    Err(RuleError::Refused(error))
}

/// The refusal of a request that contradicts what is there.
fn conflict<T>(message: impl Into<String>) -> RuleResult<T> {
    refuse(DbError::Conflict { message: message.into() })
}

/// The error for a thing that is not there.
fn not_found(what: Resource, name: &(impl ToString + ?Sized)) -> DbError {
    DbError::NotFound { what, name: name.to_string() }
}

/// A request that changes something. An error undoes this request only, not the others of its transaction.
trait Write: DbRequest {
    /// The function whose calls may run something else afterwards.
    fn changed_function(&self) -> Option<FunctionId> {
        None
    }

    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Self::Reply>;
}

/// A request that only looks.
trait Read: DbRequest {
    fn read(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Self::Reply>;
}

/// A request, ready to run. A store that has to begin another transaction runs it again, with a context of its own.
pub(crate) type Work = Box<dyn Fn(&dyn Tx, &RequestContext<'_>) -> Result<Box<RawValue>, DbError> + Send>;

/// Where a request runs.
pub(crate) enum Job {
    Write {
        work: Work,
        /// The function whose calls may run something else afterwards.
        changes: Option<FunctionId>,
    },
    Read(Work),
}

/// The most claims of one request of a worker: more than any has slots.
const MAX_CLAIMS: usize = 8192;

/// # Errors
/// More claims than a worker can have: one request must not hold the database.
fn check_claims(count: usize) -> Result<(), DbError> {
    if count <= MAX_CLAIMS {
        return Ok(());
    }
    Err(DbError::TooMuch { message: format!("{count} claims in one request are more than {MAX_CLAIMS}") })
}

/// What a request is answered with. What the store said of a failure stays in the log.
fn reply<R: DbRequest>(result: RuleResult<R::Reply>) -> Result<Box<RawValue>, DbError> {
    let internal = |message| DbError::Internal { message };
    match result {
        Ok(value) => serde_json::value::to_raw_value(&value).map_err(|error| internal(error.to_string())),
        Err(RuleError::Refused(error)) => Err(error),
        Err(RuleError::Store(error)) => {
            tracing::error!(%error, request = R::TYPE, "the database failed");
            Err(internal(format!("the request {} was not carried out", R::TYPE)))
        }
    }
}

/// A kind of request, and how one is made ready to run.
#[derive(Clone, Copy)]
struct Request {
    name: &'static str,
    prepare: fn(&Envelope) -> Result<Job, EnvelopeError>,
}

/// Registers a request that changes something.
const fn write<R: Write>() -> Request {
    const { assert!(matches!(R::ACCESS, Access::Write), "this request is declared as a read") };
    Request { name: R::TYPE, prepare: prepare_write::<R> }
}

/// Registers a request that only looks.
const fn read<R: Read>() -> Request {
    const { assert!(matches!(R::ACCESS, Access::Read), "this request is declared as a write") };
    Request { name: R::TYPE, prepare: prepare_read::<R> }
}

fn prepare_write<R: Write>(envelope: &Envelope) -> Result<Job, EnvelopeError> {
    let request: R = envelope.parse()?;
    Ok(Job::Write {
        changes: request.changed_function(),
        work: Box::new(move |tx, context| reply::<R>(request.write(tx, context))),
    })
}

fn prepare_read<R: Read>(envelope: &Envelope) -> Result<Job, EnvelopeError> {
    let request: R = envelope.parse()?;
    Ok(Job::Read(Box::new(move |tx, context| reply::<R>(request.read(tx, context)))))
}
