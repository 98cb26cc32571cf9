//! What a request is to the store: it reads or writes, under a context. Each module registers its own.

use std::cell::{Cell, RefCell};

use faena_domain::FunctionId;
use faena_protocol::db::{Access, AccessSeen};
use faena_protocol::{DbError, DbRequest, Envelope, EnvelopeError};
use rusqlite::Connection;
use serde_json::value::RawValue;

use super::changes::ChangeLog;
use super::keyring::Keyring;
use super::reserve::Disk;
use crate::StoreSettings;

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
    /// Who may do what may be something else after the transaction.
    pub(crate) fn changes_access(&self) {
        self.access_changes.set(true);
    }

    /// The calls of a function may run something else after the transaction.
    pub(crate) fn changes_function(&self, function: FunctionId) {
        self.changed.borrow_mut().push(function);
    }

    /// Drawn from \[0, 1).
    pub(crate) fn uniform(&self) -> f64 {
        fastrand::f64()
    }

    /// # Errors
    /// [`DbError::DiskLow`].
    pub(crate) fn takes_new_work(&self) -> Result<(), DbError> {
        if self.disk == Disk::Short { Err(DbError::DiskLow) } else { Ok(()) }
    }
}

/// A request that changes something. It runs in a savepoint; an error undoes it alone.
pub(crate) trait Write: DbRequest {
    /// The function whose calls may run something else afterwards.
    fn changed_function(&self) -> Option<FunctionId> {
        None
    }

    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Self::Reply, DbError>;
}

/// A request that only looks.
pub(crate) trait Read: DbRequest {
    fn read(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Self::Reply, DbError>;
}

/// A request, ready to run.
pub(crate) type Work = Box<dyn FnOnce(&Connection, &RequestContext<'_>) -> Result<Box<RawValue>, DbError> + Send>;

/// Where a request runs.
pub(crate) enum Job {
    Write {
        work: Work,
        /// See [`Write::changed_function`].
        changes: Option<FunctionId>,
    },
    Read(Work),
}

/// The most claims of one request of a worker: more than any has slots.
const MAX_CLAIMS: usize = 8192;

/// # Errors
/// More claims than a worker can have: one request must not hold the database.
pub(crate) fn check_claims(count: usize) -> Result<(), DbError> {
    if count <= MAX_CLAIMS {
        return Ok(());
    }
    Err(DbError::TooMuch { message: format!("{count} claims in one request are more than {MAX_CLAIMS}") })
}

fn reply(value: &impl serde::Serialize) -> Result<Box<RawValue>, DbError> {
    serde_json::value::to_raw_value(value).map_err(|error| DbError::Internal { message: error.to_string() })
}

/// A kind of request, and how one is made ready to run.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) name: &'static str,
    pub(crate) prepare: fn(&Envelope) -> Result<Job, EnvelopeError>,
}

/// Registers a request that changes something.
pub(crate) const fn write<R: Write>() -> Request {
    const { assert!(matches!(R::ACCESS, Access::Write), "it is declared as one that only looks") };
    Request { name: R::TYPE, prepare: prepare_write::<R> }
}

/// Registers a request that only looks.
pub(crate) const fn read<R: Read>() -> Request {
    const { assert!(matches!(R::ACCESS, Access::Read), "it is declared as one that changes something") };
    Request { name: R::TYPE, prepare: prepare_read::<R> }
}

fn prepare_write<R: Write>(envelope: &Envelope) -> Result<Job, EnvelopeError> {
    let request: R = envelope.parse()?;
    Ok(Job::Write {
        changes: request.changed_function(),
        work: Box::new(move |connection, context| reply(&request.write(connection, context)?)),
    })
}

fn prepare_read<R: Read>(envelope: &Envelope) -> Result<Job, EnvelopeError> {
    let request: R = envelope.parse()?;
    Ok(Job::Read(Box::new(move |connection, context| reply(&request.read(connection, context)?))))
}
