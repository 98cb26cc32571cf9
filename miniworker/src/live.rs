//! Logs of calls and builds that have not ended, for people who follow them.

use std::collections::HashMap;
use std::sync::Arc;

use faena_domain::CallNum;
use faena_domain::build::MAX_LOG;
use faena_domain::limits::{MAX_CALL_LOG, MAX_RESULT};
use faena_domain::log::{LogBuffer, LogStream, StoredLog};
use faena_protocol::node::LogOf;
use faena_protocol::records::BuildRef;
use parking_lot::{Mutex, MutexGuard};

/// A buffer that is written by one task and may be read by others.
#[derive(Clone, Debug)]
pub(crate) struct SharedBuffer(Arc<Mutex<LogBuffer>>);

impl SharedBuffer {
    pub(crate) fn new(stream: LogStream, most: u64) -> Self {
        Self(Arc::new(Mutex::new(LogBuffer::new(stream, most))))
    }

    /// Whether both are the same buffer.
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, LogBuffer> {
        self.0.lock()
    }
}

/// The processes of a node whose output is being read, by what they run.
#[derive(Clone, Debug, Default)]
pub struct LiveLogs(Arc<Mutex<HashMap<LogOf, Vec<SharedBuffer>>>>);

/// What one process writes; it can be read in [`LiveLogs`] until this is dropped.
#[derive(Debug)]
pub(crate) struct LiveLog {
    logs: LiveLogs,
    of: LogOf,
    pub(crate) stdout: SharedBuffer,
    /// None where standard output and standard error share a pipe.
    pub(crate) stderr: Option<SharedBuffer>,
}

impl LiveLogs {
    /// The log of a call with a process of its own, whose standard output may be its result.
    pub(crate) fn of_command(&self, num: CallNum) -> LiveLog {
        let stdout = SharedBuffer::new(LogStream::Stdout, MAX_RESULT);
        self.open(LogOf::Call(num), stdout, Some(SharedBuffer::new(LogStream::Stderr, MAX_CALL_LOG)))
    }

    /// The log of a build.
    pub(crate) fn of_build(&self, build: BuildRef) -> LiveLog {
        self.open(LogOf::Build(build), SharedBuffer::new(LogStream::Output, MAX_LOG), None)
    }

    fn open(&self, of: LogOf, stdout: SharedBuffer, stderr: Option<SharedBuffer>) -> LiveLog {
        self.lock().insert(of.clone(), std::iter::once(&stdout).chain(&stderr).cloned().collect());
        LiveLog { logs: self.clone(), of, stdout, stderr }
    }

    /// What was written until now, as it is stored; none where nothing of that name runs.
    pub fn read(&self, of: &LogOf) -> Option<String> {
        let buffers = self.lock().get(of).cloned()?;
        Some(stored(&buffers.iter().map(|buffer| buffer.lock().whole_lines()).collect::<Vec<_>>()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LogOf, Vec<SharedBuffer>>> {
        self.0.lock()
    }
}

impl Drop for LiveLog {
    fn drop(&mut self) {
        let mut logs = self.logs.lock();
        // A later attempt of the same call may have begun meanwhile.
        let is_ours = |buffers: &Vec<SharedBuffer>| buffers.first().is_some_and(|first| first.is(&self.stdout));
        if logs.get(&self.of).is_some_and(is_ours) {
            logs.remove(&self.of);
        }
    }
}

/// Buffers in the form that is kept of a call's log.
pub(crate) fn stored(buffers: &[LogBuffer]) -> String {
    let mut log = StoredLog::new(MAX_CALL_LOG);
    log.add(&buffers.iter().collect::<Vec<_>>());
    log.into_text()
}
