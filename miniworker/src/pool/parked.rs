//! An instance in which a process can be started, by the attempt that has taken it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use faena_domain::Reuse;
use faena_engine::{EngineError, Instance};
use faena_instance_protocol::ToAgent;
use faena_protocol::records::Code;
use tracing::debug;

use super::Shared;
use super::state::Key;
use crate::code::CodeLease;
use crate::egress::Egress;
use crate::instance::{self, Unclean};

/// What a call left of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// No process ran in it.
    Clean,
    /// A process ran and ended, and all of it is dead.
    Used,
    /// It has to go: it was lost, or memory ran out in it.
    Spent,
}

/// A whole instance for one process at a time.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) instance: Instance,
    pub(crate) egress: Option<Egress>,
    /// Whether it was made while somebody waited for it.
    pub(crate) is_cold: bool,
    pub(super) key: Arc<Key>,
    pub(super) code: Arc<Code>,
    pub(super) tree: CodeLease,
    pub(super) pool: Arc<Shared>,
    pub(super) is_frozen: bool,
    /// Calls that it has answered.
    pub(super) calls: u64,
}

/// An instance that somebody has taken: dropping it gives back its slot, and destroys it.
#[derive(Debug)]
pub(crate) struct Taken(Option<Parked>);

impl Taken {
    pub(super) fn new(parked: Parked) -> Self {
        Self(Some(parked))
    }

    /// Gives it back.
    pub(crate) fn done(mut self, state: State) -> Leave {
        // It is there until this.
        self.0.take().map_or_else(Leave::none, |parked| parked.done(state))
    }
}

impl std::ops::Deref for Taken {
    type Target = Parked;

    fn deref(&self) -> &Parked {
        self.0.as_ref().unwrap_or_else(|| unreachable!("only done and drop take it out"))
    }
}

impl std::ops::DerefMut for Taken {
    fn deref_mut(&mut self) -> &mut Parked {
        self.0.as_mut().unwrap_or_else(|| unreachable!("only done and drop take it out"))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(parked) = self.0.take() {
            parked.done(State::Spent);
        }
    }
}

impl Parked {
    /// Gives it back, as new, or has it destroyed; nobody waits for that, and the slot is free at once.
    fn done(self, state: State) -> Leave {
        let (pool, key) = (Arc::clone(&self.pool), Arc::clone(&self.key));
        let serves_again = self.code.serving.reuse == Reuse::Version;
        let is_kept = state == State::Clean || (serves_again && state == State::Used);
        let actions = pool.state().given_back(&key, is_kept);
        let (tell, told) = tokio::sync::oneshot::channel();
        pool.tasks.spawn(async move {
            if is_kept {
                self.renew(state).await;
            } else {
                Box::new(self).destroy().await;
            }
            let _ = tell.send(());
        });
        pool.perform(actions);
        let actions = pool.state().replenish(&key, Instant::now());
        pool.perform(actions);
        Leave(told)
    }

    async fn renew(mut self, state: State) {
        let (pool, key) = (Arc::clone(&self.pool), Arc::clone(&self.key));
        if state == State::Used
            && let Err(error) = self.clean().await
        {
            debug!(%error, "an instance cannot be made as new; it is destroyed");
            Box::new(self).destroy().await;
            let actions = pool.state().not_renewed(&key);
            return pool.perform(actions);
        }
        self.is_cold = false;
        self.calls += u64::from(state == State::Used);
        let actions = pool.state().renewed(&key, Box::new(self), Instant::now());
        pool.perform(actions);
    }

    /// Nothing that a call left is found by the next one.
    async fn clean(&mut self) -> Result<(), EngineError> {
        let lost = |error: &dyn std::fmt::Display| EngineError::Lost {
            step: "cleaning up".to_owned(),
            message: error.to_string(),
        };
        if let Some(egress) = &self.egress {
            egress.end_call();
        }
        let agent = &mut self.instance.agent;
        agent.send(&ToAgent::Lease { until_ms: u64::MAX }, &[]).await.map_err(|error| lost(&error))?;
        instance::clean(agent).await.map_err(|error| match error {
            Unclean::Ended(_) => lost(&"it sent what no agent sends now"),
            Unclean::Lost(error) => lost(&error),
        })?;
        self.instance.guard.lay(self.tree.path()).await
    }

    pub(super) async fn destroy(self: Box<Self>) {
        self.instance.guard.destroy().await;
    }

    pub(super) fn memory(&self) -> Option<u64> {
        self.instance.guard.memory()
    }

    /// Freezes it; true where it is frozen.
    pub(super) fn freeze(&mut self) -> bool {
        self.is_frozen = self.instance.guard.freeze().is_ok();
        self.is_frozen
    }

    /// Thaws it for the attempt that has taken it.
    pub(crate) fn thaw(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.is_frozen) {
            self.instance.guard.thaw()?;
        }
        Ok(())
    }
}

/// Ends when an instance that was given back is as new, or gone.
#[derive(Debug)]
pub(crate) struct Leave(tokio::sync::oneshot::Receiver<()>);

impl Leave {
    /// Nothing is left.
    fn none() -> Self {
        Self(tokio::sync::oneshot::channel().1)
    }

    /// Waits for that.
    pub(crate) async fn over(self) {
        // A task that panicked is over too.
        let _ = self.0.await;
    }
}
