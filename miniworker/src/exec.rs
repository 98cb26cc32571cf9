//! An instance in which a process is started for each call, by the attempt that has it alone.

use std::io;

use faena_domain::Layer;
use faena_engine::{EngineError, Instance};
use faena_gateway::Counters;
use faena_instance_protocol::ToAgent;

use crate::code::CodeLease;
use crate::egress::{Connections, Egress};
use crate::failure::AttemptFailure;
use crate::instance::{self, Unclean};
use crate::process::{self, LeaseEnd, RunError};

/// What a call left of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// No process ran in it.
    Clean,
    /// A process ran and ended, and all of it is dead.
    Used,
    /// It has to go: it was lost, or memory ran out in it.
    Spent,
}

/// A whole instance for one process at a time.
#[derive(Debug)]
pub struct ExecInstance {
    pub(crate) instance: Instance,
    pub(crate) egress: Option<Egress>,
    tree: CodeLease,
    is_frozen: bool,
    /// Packets without a route, as they were counted last.
    unroutable: u64,
}

impl ExecInstance {
    pub(crate) fn new(instance: Instance, egress: Option<Egress>, tree: CodeLease) -> Self {
        Self { instance, egress, tree, is_frozen: false, unroutable: 0 }
    }

    /// Makes it ready for a process: thawed, and with an agent that knows until when it may run.
    ///
    /// # Errors
    /// [`AttemptFailure`]; it has to go.
    pub async fn prepare(&mut self, lease: &mut LeaseEnd) -> Result<(), AttemptFailure> {
        if std::mem::take(&mut self.is_frozen) {
            self.instance.guard.thaw().map_err(|error| AttemptFailure::of_platform(Layer::Start, error))?;
        }
        process::tell_lease(&self.instance.agent, lease).await.map_err(|error| RunError::from(error).into())
    }

    /// Removes what a call left, so that the next one does not find it.
    ///
    /// # Errors
    /// [`EngineError`]; it has to go.
    pub async fn clean(&mut self) -> Result<(), EngineError> {
        let lost = |error: &dyn std::fmt::Display| EngineError::Lost {
            step: "cleaning up".to_owned(),
            message: error.to_string(),
        };
        if let Some(egress) = &self.egress {
            // What the call has done is told already.
            egress.end_call(Counters::default(), Connections::Reset);
        }
        let agent = &mut self.instance.agent;
        agent.send(&ToAgent::Lease { until_ms: u64::MAX }, &[]).await.map_err(|error| lost(&error))?;
        instance::clean(agent).await.map_err(|error| match error {
            Unclean::Ended(_) => lost(&"its agent sent a frame that is not expected now"),
            Unclean::Lost(error) => lost(&error),
        })?;
        self.instance.guard.mount_code(self.tree.path()).await
    }

    /// Whether something in an instance without egress has tried to reach something since this was asked last.
    pub(crate) fn found_no_route(&mut self) -> bool {
        let counted = self.egress.is_none().then(|| self.instance.guard.network()?.unroutable()).flatten().unwrap_or(0);
        counted > std::mem::replace(&mut self.unroutable, counted)
    }

    /// Ends it.
    pub async fn destroy(self) {
        self.instance.guard.destroy().await;
    }

    /// What it holds of memory, in bytes.
    pub fn memory(&self) -> Option<u64> {
        self.instance.guard.memory()
    }

    /// Freezes it until it is prepared for its next process.
    ///
    /// # Errors
    /// A control group that cannot be written to, or none that freezes.
    pub fn freeze(&mut self) -> io::Result<()> {
        self.instance.guard.freeze()?;
        self.is_frozen = true;
        Ok(())
    }
}
