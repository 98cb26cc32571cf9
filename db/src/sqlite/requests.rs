//! Which request does what.

use faena_protocol::db::{
    BuildFinish, BuildGet, BuildRetry, BuildsClaim, CallAccept, CallAdopt, CallFinish, CallGet, CallList,
    CallNumReserve, CallRecordEnded, CallsClaim, FunctionDelete, FunctionGet, FunctionList, LeaseRenew, Ping, Reap,
    RuntimeDelete, RuntimeGet, RuntimeList, RuntimePut, VersionList, VersionPut, VersionResolve, WorkerJoin,
};
use faena_protocol::{DbError, DbRequest, Envelope, EnvelopeError};
use rusqlite::Connection;
use serde_json::value::RawValue;

/// A request that changes something. It runs in a savepoint; an error undoes it alone.
pub(crate) trait Write: DbRequest {
    fn write(self, connection: &Connection, now: i64) -> Result<Self::Reply, DbError>;
}

/// A request that only looks.
pub(crate) trait Read: DbRequest {
    fn read(self, connection: &Connection) -> Result<Self::Reply, DbError>;
}

pub(crate) type WriteJob = Box<dyn FnOnce(&Connection, i64) -> Result<Box<RawValue>, DbError> + Send>;
pub(crate) type ReadJob = Box<dyn FnOnce(&Connection) -> Result<Box<RawValue>, DbError> + Send>;

/// A request, ready to run.
pub(crate) enum Job {
    Write(WriteJob),
    Read(ReadJob),
}

fn reply(value: &impl serde::Serialize) -> Result<Box<RawValue>, DbError> {
    serde_json::value::to_raw_value(value).map_err(|error| DbError::Internal { message: error.to_string() })
}

fn write<R: Write>(envelope: &Envelope) -> Result<Job, EnvelopeError> {
    let request: R = envelope.parse()?;
    Ok(Job::Write(Box::new(move |connection, now| reply(&request.write(connection, now)?))))
}

fn read<R: Read>(envelope: &Envelope) -> Result<Job, EnvelopeError> {
    let request: R = envelope.parse()?;
    Ok(Job::Read(Box::new(move |connection| reply(&request.read(connection)?))))
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
        BuildGet::TYPE => read::<BuildGet>(envelope),
        BuildRetry::TYPE => write::<BuildRetry>(envelope),
        BuildsClaim::TYPE => write::<BuildsClaim>(envelope),
        BuildFinish::TYPE => write::<BuildFinish>(envelope),
        CallNumReserve::TYPE => write::<CallNumReserve>(envelope),
        CallAccept::TYPE => write::<CallAccept>(envelope),
        CallRecordEnded::TYPE => write::<CallRecordEnded>(envelope),
        CallAdopt::TYPE => write::<CallAdopt>(envelope),
        CallsClaim::TYPE => write::<CallsClaim>(envelope),
        CallFinish::TYPE => write::<CallFinish>(envelope),
        CallGet::TYPE => read::<CallGet>(envelope),
        CallList::TYPE => read::<CallList>(envelope),
        WorkerJoin::TYPE => write::<WorkerJoin>(envelope),
        LeaseRenew::TYPE => write::<LeaseRenew>(envelope),
        Reap::TYPE => write::<Reap>(envelope),
        unknown => Err(EnvelopeError::UnknownType(unknown.to_owned())),
    }
}

impl Read for Ping {
    fn read(self, connection: &Connection) -> Result<(), DbError> {
        connection.query_row("SELECT 1", [], |_| Ok(())).map_err(|error| super::internal("asking SQLite", &error))
    }
}
