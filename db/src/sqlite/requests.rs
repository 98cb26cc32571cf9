//! Which request does what.

use faena_protocol::db::{
    BlobsReleased, BlobsRemoved, BlobsUnused, BuildFinish, BuildGet, BuildRetry, BuildsClaim, CallAcknowledge,
    CallCancel, CallFinish, CallGet, CallList, CallNumReserve, CallPersist, CallReplay, CallbackFinish,
    CallbackPostpone, CallbacksDue, CallbacksTake, CallsAccept, CallsClaim, CallsRecord, CallsStarted,
    DeadLetterForget, FunctionDelete, FunctionGet, FunctionList, FunctionLogs, Health, LeaseRenew, Ping, Reap,
    RuntimeDelete, RuntimeGet, RuntimeList, RuntimePut, VersionList, VersionPut, VersionResolve, VersionsMinimum,
    WorkerJoin,
};
use faena_protocol::{DbError, DbRequest, Envelope, EnvelopeError};
use rusqlite::Connection;
use serde_json::value::RawValue;

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
}

impl RequestContext<'_> {
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
    /// Whether it may change what calls run.
    const CHANGES_FUNCTIONS: bool = false;

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
        /// See [`Write::CHANGES_FUNCTIONS`].
        changes_functions: bool,
    },
    Read(Work),
}

fn reply(value: &impl serde::Serialize) -> Result<Box<RawValue>, DbError> {
    serde_json::value::to_raw_value(value).map_err(|error| DbError::Internal { message: error.to_string() })
}

fn write<R: Write>(envelope: &Envelope) -> Result<Job, EnvelopeError> {
    let request: R = envelope.parse()?;
    Ok(Job::Write {
        work: Box::new(move |connection, context| reply(&request.write(connection, context)?)),
        changes_functions: R::CHANGES_FUNCTIONS,
    })
}

fn read<R: Read>(envelope: &Envelope) -> Result<Job, EnvelopeError> {
    let request: R = envelope.parse()?;
    Ok(Job::Read(Box::new(move |connection, context| reply(&request.read(connection, context)?))))
}

/// Finds out what a message asks for.
pub(crate) fn route(envelope: &Envelope) -> Result<Job, EnvelopeError> {
    match envelope.msg_type.as_str() {
        Ping::TYPE => read::<Ping>(envelope),
        RuntimePut::TYPE => write::<RuntimePut>(envelope),
        RuntimeDelete::TYPE => write::<RuntimeDelete>(envelope),
        RuntimeGet::TYPE => read::<RuntimeGet>(envelope),
        RuntimeList::TYPE => read::<RuntimeList>(envelope),
        VersionPut::TYPE => write::<VersionPut>(envelope),
        FunctionGet::TYPE => read::<FunctionGet>(envelope),
        FunctionList::TYPE => read::<FunctionList>(envelope),
        FunctionDelete::TYPE => write::<FunctionDelete>(envelope),
        VersionList::TYPE => read::<VersionList>(envelope),
        VersionResolve::TYPE => read::<VersionResolve>(envelope),
        VersionsMinimum::TYPE => read::<VersionsMinimum>(envelope),
        BuildGet::TYPE => read::<BuildGet>(envelope),
        BuildRetry::TYPE => write::<BuildRetry>(envelope),
        BuildsClaim::TYPE => write::<BuildsClaim>(envelope),
        BuildFinish::TYPE => write::<BuildFinish>(envelope),
        CallNumReserve::TYPE => write::<CallNumReserve>(envelope),
        CallsAccept::TYPE => write::<CallsAccept>(envelope),
        CallsRecord::TYPE => write::<CallsRecord>(envelope),
        CallPersist::TYPE => write::<CallPersist>(envelope),
        CallsClaim::TYPE => write::<CallsClaim>(envelope),
        CallFinish::TYPE => write::<CallFinish>(envelope),
        CallAcknowledge::TYPE => write::<CallAcknowledge>(envelope),
        CallCancel::TYPE => write::<CallCancel>(envelope),
        CallReplay::TYPE => write::<CallReplay>(envelope),
        CallsStarted::TYPE => write::<CallsStarted>(envelope),
        CallbacksDue::TYPE => read::<CallbacksDue>(envelope),
        CallbacksTake::TYPE => write::<CallbacksTake>(envelope),
        CallbackFinish::TYPE => write::<CallbackFinish>(envelope),
        CallbackPostpone::TYPE => write::<CallbackPostpone>(envelope),
        DeadLetterForget::TYPE => write::<DeadLetterForget>(envelope),
        BlobsUnused::TYPE => read::<BlobsUnused>(envelope),
        BlobsReleased::TYPE => read::<BlobsReleased>(envelope),
        BlobsRemoved::TYPE => write::<BlobsRemoved>(envelope),
        CallGet::TYPE => read::<CallGet>(envelope),
        CallList::TYPE => read::<CallList>(envelope),
        FunctionLogs::TYPE => read::<FunctionLogs>(envelope),
        WorkerJoin::TYPE => write::<WorkerJoin>(envelope),
        LeaseRenew::TYPE => write::<LeaseRenew>(envelope),
        Reap::TYPE => write::<Reap>(envelope),
        unknown => Err(EnvelopeError::UnknownType(unknown.to_owned())),
    }
}

impl Read for Ping {
    fn read(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Health, DbError> {
        connection.query_row("SELECT 1", [], |_| Ok(())).map_err(|error| super::internal("asking SQLite", &error))?;
        Ok(Health { clock_step_ms: context.clock_step_ms, disk_low: context.disk == Disk::Short })
    }
}
