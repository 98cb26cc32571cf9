//! Calls of other functions, from inside an instance: the api is told who calls, how deep, and for how long.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use faena_domain::{FunctionName, Namespace};
use faena_protocol::internal::InternalCall;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::Outlet;
use crate::owner::InstanceOwner;

/// The function of an instance, and its calls that run.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) namespace: Namespace,
    pub(super) function: FunctionName,
    /// The api's socket.
    pub(super) internal: PathBuf,
    pub(super) running: Mutex<Running>,
    /// Connections to other functions that are open.
    pub(super) open: Mutex<u32>,
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

impl Caller {
    /// A call begins; its number here is returned.
    pub(super) fn begin(&self, deadline: Instant, depth: u32) -> u64 {
        let mut running = self.running.lock();
        running.last += 1;
        let id = running.last;
        running.calls.push(RunningCall { id, deadline, depth });
        id
    }

    /// One more connection to another function is open, or one less. An instance lends one slot, however many it has open.
    fn waits(&self, is_waiting: bool) {
        let mut open = self.open.lock();
        let before = *open;
        *open = if is_waiting { before + 1 } else { before.saturating_sub(1) };
        let has_turned = (before == 0) != (*open == 0);
        if let Some(owner) = self.owner.as_ref().filter(|_| has_turned) {
            // Under this lock, so that it is told in turns; calls that begin in this very instance take the other one.
            owner.lends(is_waiting);
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
        self.running.lock().calls.retain(|call| call.id != id);
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
