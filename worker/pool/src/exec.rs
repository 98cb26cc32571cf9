//! Instances that one attempt has at a time.

use std::sync::Arc;
use std::time::Instant;

use faena_domain::Reuse;
use faena_miniworker::{ExecInstance, InstanceState, StartError};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tracing::debug;

use crate::Shared;
use crate::state::InstanceRef;

/// An attempt that wants an instance for itself.
#[derive(Debug)]
pub(crate) struct ExecRequest {
    pub(crate) until: Instant,
    pub(crate) give: oneshot::Sender<Result<ExecLease, StartError>>,
}

/// Where an instance is while no attempt has it; clones share the place.
#[derive(Clone, Debug)]
pub(crate) struct ExecSlot {
    exec: Arc<Mutex<Option<Box<ExecInstance>>>>,
    reuse: Reuse,
}

impl ExecSlot {
    pub(crate) fn holding(exec: Box<ExecInstance>, reuse: Reuse) -> Self {
        Self { exec: Arc::new(Mutex::new(Some(exec))), reuse }
    }

    fn exec(&self) -> MutexGuard<'_, Option<Box<ExecInstance>>> {
        self.exec.lock()
    }

    /// What it holds of memory, in bytes, and whether it is frozen now.
    pub(crate) fn measure(&self, freeze: bool) -> (Option<u64>, bool) {
        match &mut *self.exec() {
            Some(exec) => (exec.memory(), freeze && exec.freeze().is_ok()),
            None => (None, false),
        }
    }

    /// Ends it, unless an attempt has it.
    pub(crate) async fn destroy(self) {
        let exec = self.exec().take();
        if let Some(exec) = exec {
            exec.destroy().await;
        }
    }
}

/// An instance that an attempt has: dropping it destroys the instance.
#[derive(Debug)]
pub struct ExecLease {
    /// There until it is released.
    exec: Option<Box<ExecInstance>>,
    slot: ExecSlot,
    at: InstanceRef,
    pool: Arc<Shared>,
    /// Whether the instance was made while the attempt waited.
    pub is_cold: bool,
}

impl ExecLease {
    /// Gives an instance to the attempt that asked for one.
    pub(crate) fn grant(pool: &Arc<Shared>, at: InstanceRef, slot: ExecSlot, request: ExecRequest, is_cold: bool) {
        let exec = slot.exec().take();
        if exec.is_none() {
            // A stop has taken it. The attempt may have gone.
            return drop(request.give.send(Err(StartError::Late)));
        }
        let lease = Self { exec, slot, at, pool: Arc::clone(pool), is_cold };
        if let Err(Ok(unwanted)) = request.give.send(Ok(lease)) {
            unwanted.release(InstanceState::Clean);
        }
    }

    /// The instance.
    pub fn instance(&mut self) -> &mut ExecInstance {
        self.exec.as_mut().unwrap_or_else(|| unreachable!("only release and drop take it out"))
    }

    /// Gives it back: its slot is free at once, and it is cleaned or destroyed afterwards.
    pub fn release(mut self, state: InstanceState) -> Release {
        self.give_back(state)
    }

    fn give_back(&mut self, state: InstanceState) -> Release {
        let (tell, told) = oneshot::channel();
        let Some(exec) = self.exec.take() else { return Release(told) };
        let (pool, at, slot) = (Arc::clone(&self.pool), self.at.clone(), self.slot.clone());
        let serves_again = self.slot.reuse == Reuse::Version;
        if state == InstanceState::Clean || (serves_again && state == InstanceState::Used) {
            pool.apply(|state, _| state.cleaning(&at));
            self.pool.node.tasks.spawn(async move {
                renew(pool, at, slot, exec, state).await;
                let _ = tell.send(());
            });
        } else {
            pool.apply(|state, _| state.gone(&at));
            self.pool.node.tasks.spawn(async move {
                exec.destroy().await;
                let _ = tell.send(());
            });
        }
        self.pool.apply(|state, now| state.replenish(&self.at.version, now));
        Release(told)
    }
}

impl Drop for ExecLease {
    fn drop(&mut self) {
        self.give_back(InstanceState::Spent);
    }
}

/// Cleans an instance, and makes it idle again.
async fn renew(pool: Arc<Shared>, at: InstanceRef, slot: ExecSlot, mut exec: Box<ExecInstance>, state: InstanceState) {
    let has_run = state == InstanceState::Used;
    if has_run && let Err(error) = exec.clean().await {
        debug!(%error, "an instance cannot be cleaned; it is destroyed");
        exec.destroy().await;
        return pool.apply(|state, _| state.gone(&at));
    }
    let mut exec = Some(exec);
    pool.apply(|state, now| {
        if state.is_closed() {
            return Vec::new();
        }
        *slot.exec() = exec.take();
        state.cleaned(&at, has_run, now)
    });
    if let Some(exec) = exec {
        exec.destroy().await;
    }
}

/// Ends when an instance that was given back is clean, or gone.
#[derive(Debug)]
pub struct Release(oneshot::Receiver<()>);

impl Release {
    /// Waits for that.
    pub async fn done(self) {
        // A task that panicked is over too.
        let _ = self.0.await;
    }
}
