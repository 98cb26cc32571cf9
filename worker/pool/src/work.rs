//! What a pool's state holds without looking into it: work, and handles to instances.

use std::sync::Arc;

use faena_miniworker::{InstanceCall, ServerInstance, StartError};

use crate::exec::{ExecRequest, ExecSlot};
use crate::state::{Refusal, Resources, Waiting};

/// Names what the state holds.
#[derive(Debug)]
pub(crate) struct Shell;

impl Resources for Shell {
    type Work = Work;
    type Instance = PoolInstance;
    type Error = StartError;
}

/// What waits for an instance.
#[derive(Debug)]
pub(crate) enum Work {
    /// A call for an instance that answers many.
    Call(Box<InstanceCall>),
    /// An attempt that wants an instance for itself.
    Exec(ExecRequest),
}

impl Work {
    /// The same as the state takes it.
    pub(crate) fn waiting(self) -> Waiting<Self> {
        match &self {
            Self::Call(call) => {
                Waiting { until: call.deadline, num: Some(call.num), is_cold: call.is_cold, work: self }
            }
            Self::Exec(request) => Waiting { until: request.until, num: None, is_cold: false, work: self },
        }
    }

    /// Tells who waits that there is no instance.
    pub(crate) fn refuse(self, why: Refusal<StartError>) {
        let error = match why {
            Refusal::Late => StartError::Late,
            Refusal::NotStarted(error) => error,
        };
        match self {
            Self::Call(call) => {
                let end = call.not_started(error);
                call.end(end);
            }
            // The attempt may have gone.
            Self::Exec(request) => drop(request.give.send(Err(error))),
        }
    }
}

/// A handle to an instance.
#[derive(Clone, Debug)]
pub(crate) enum PoolInstance {
    /// It answers many calls.
    Server(Arc<ServerInstance>),
    /// A process can be started in it, by one attempt at a time.
    Exec(ExecSlot),
}

impl PoolInstance {
    /// The instance, where it answers many calls.
    pub(crate) fn server(&self) -> Option<&Arc<ServerInstance>> {
        match self {
            Self::Server(server) => Some(server),
            Self::Exec(_) => None,
        }
    }

    /// What it holds of memory, in bytes, and whether it is frozen now; it is frozen where that is asked for and nothing
    /// runs in it.
    pub(crate) fn measure(&self, freeze: bool) -> (Option<u64>, bool) {
        match self {
            Self::Server(server) => (server.memory(), freeze && server.freeze()),
            Self::Exec(slot) => slot.measure(freeze),
        }
    }

    /// Returns when nothing of it is left; calls that it works at may end until then.
    pub(crate) async fn destroy(self, end: tokio::time::Instant) {
        match self {
            Self::Server(server) => {
                server.retire();
                if tokio::time::timeout_at(end, server.gone()).await.is_err() {
                    server.cut();
                    server.gone().await;
                }
            }
            Self::Exec(slot) => slot.destroy().await,
        }
    }
}
