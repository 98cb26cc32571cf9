//! What instances that answer many calls tell the pool.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use faena_engine::InstanceHandle;
use faena_miniworker::{InstanceCall, InstanceOwner};

use crate::Shared;
use crate::state::InstanceRef;
use crate::work::Work;

/// The pool, as one of its instances knows it.
pub(crate) struct Member {
    pub(crate) pool: Arc<Shared>,
    pub(crate) at: InstanceRef,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The pool holds the instance that holds this.
        f.debug_struct("Member").field("at", &self.at).finish_non_exhaustive()
    }
}

#[async_trait]
impl InstanceOwner for Member {
    fn finished(&self) {
        self.pool.apply(|state, now| state.finished(&self.at, now));
    }

    fn retired(&self) {
        self.pool.apply(|state, now| state.retired(&self.at, now));
    }

    fn returned(&self, call: Box<InstanceCall>) {
        self.pool.apply(|state, now| state.returned(&self.at, Work::Call(call).waiting(), now));
    }

    fn lends(&self, is_waiting: bool) {
        self.pool.apply(|state, _| state.lends(is_waiting));
    }

    fn gone(&self) {
        self.pool.apply(|state, _| state.gone(&self.at));
    }

    async fn tear_down(&self, handle: Box<dyn InstanceHandle>, is_spent: bool) {
        if is_spent {
            self.pool.tear_down(handle).await;
        } else {
            handle.destroy().await;
        }
        self.pool.apply(|state, now| state.replenish(&self.at.version, now));
    }
}
