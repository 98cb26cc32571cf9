//! Calls of other functions, from inside an instance: the api is told who calls, how deep, and for how long.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use faena_domain::{FunctionName, FunctionScope, Namespace};
use faena_protocol::internal::InternalCall;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::Outlet;
use crate::owner::InstanceOwner;

/// The function of an instance, and its calls that run.
#[derive(Debug)]
pub(super) struct CallingFunction {
    pub(super) namespace: Namespace,
    pub(super) function: FunctionName,
    /// Its scopes.
    pub(super) scopes: Vec<FunctionScope>,
    /// The api's socket.
    pub(super) internal: PathBuf,
    pub(super) running: Mutex<Running>,
    /// Connections to other functions.
    pub(super) waiting: Mutex<Waiting>,
    /// Who is told that a call waits for another function, where that is anybody.
    pub(super) owner: Option<Arc<dyn InstanceOwner>>,
}

#[derive(Debug, Default)]
pub(super) struct Running {
    last: u64,
    calls: Vec<RunningCall>,
    /// The last call that had begun when the budget was renewed.
    renewed_at: u64,
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    open: u32,
    /// Whether the slot of the instance is lent.
    is_lending: bool,
}

/// An instance waits for another function until this is dropped.
#[derive(Debug)]
pub(super) struct Wait(Arc<Outlet>);

impl Drop for Wait {
    fn drop(&mut self) {
        self.0.caller.waits(false);
    }
}

impl Wait {
    /// It begins to wait.
    pub(super) fn of(outlet: &Arc<Outlet>) -> Self {
        outlet.caller.waits(true);
        Self(Arc::clone(outlet))
    }
}

#[derive(Clone, Copy, Debug)]
struct RunningCall {
    id: u64,
    deadline: Instant,
    depth: u32,
}

impl CallingFunction {
    /// A call begins; its number here is returned.
    pub(super) fn begin(&self, deadline: Instant, depth: u32) -> u64 {
        let mut running = self.running.lock();
        running.last += 1;
        let id = running.last;
        running.calls.push(RunningCall { id, deadline, depth });
        id
    }

    /// One more connection to another function is open, or one less. An instance lends one slot, however many it has open, and
    /// only while a call of its own runs: without one it holds no slot.
    fn waits(&self, is_waiting: bool) {
        let mut waiting = self.waiting.lock();
        waiting.open = if is_waiting { waiting.open + 1 } else { waiting.open.saturating_sub(1) };
        let lends = waiting.open > 0 && !self.running.lock().calls.is_empty() && (waiting.is_lending || is_waiting);
        self.lend(&mut waiting, lends);
    }

    /// Told under the lock, so that it is told in turns; calls that begin in this very instance take the other one.
    fn lend(&self, waiting: &mut Waiting, lends: bool) {
        if lends != std::mem::replace(&mut waiting.is_lending, lends)
            && let Some(owner) = &self.owner
        {
            owner.lends(lends);
        }
    }

    /// Whether every call that runs began after this was true the last time.
    pub(super) fn is_another_generation(&self) -> bool {
        let mut running = self.running.lock();
        let is_another = running.calls.iter().all(|call| call.id > running.renewed_at);
        if is_another {
            running.renewed_at = running.last;
        }
        is_another
    }

    /// A call has ended.
    pub(super) fn end(&self, id: u64) {
        let is_last = {
            let mut running = self.running.lock();
            running.calls.retain(|call| call.id != id);
            running.calls.is_empty()
        };
        if is_last {
            let mut waiting = self.waiting.lock();
            // Another call may have begun meanwhile.
            let lends = waiting.is_lending && !self.running.lock().calls.is_empty();
            self.lend(&mut waiting, lends);
        }
    }

    /// A call may go on until this.
    pub(super) fn extend(&self, id: u64, deadline: Instant) {
        let mut running = self.running.lock();
        running.calls.iter_mut().filter(|call| call.id == id).for_each(|call| call.deadline = deadline);
    }

    /// Opens a connection on which a function answers. Which call of an instance that has several asks for it cannot be
    /// known: the deepest counts, and the one with the most time left.
    pub(super) async fn call(&self, target: FunctionName) -> io::Result<UnixStream> {
        let (depth, deadline) = {
            let running = self.running.lock();
            let depth = running.calls.iter().map(|call| call.depth).max();
            let deadline = running.calls.iter().map(|call| call.deadline).max();
            depth.zip(deadline).ok_or_else(|| io::Error::other("no call runs that could call another function"))?
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let preface = serde_json::to_vec(&InternalCall {
            namespace: self.namespace.clone(),
            caller: self.function.clone(),
            scopes: self.scopes.clone(),
            target,
            depth: depth + 1,
            remaining_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        })?;
        let length = u16::try_from(preface.len()).map_err(io::Error::other)?;
        let mut stream = UnixStream::connect(&self.internal).await?;
        stream.write_all(&[&length.to_be_bytes()[..], &preface].concat()).await?;
        Ok(stream)
    }
}
