//! What an instance tells its owner.

use std::fmt::Debug;

use async_trait::async_trait;
use faena_engine::InstanceHandle;

use crate::call::InstanceCall;

/// The number of an instance, unique among those of a worker's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InstanceId(pub u64);

/// Who owns an instance that answers many calls, and hands calls to it.
#[async_trait]
pub trait InstanceOwner: Send + Sync + Debug {
    /// A call has ended, and the instance may take another.
    fn finished(&self);

    /// A call has ended, and the instance takes no more.
    fn retired(&self);

    /// The process never saw this call, and the instance takes no more: another one may have it.
    fn returned(&self, call: Box<InstanceCall>);

    /// What runs in the instance waits for another function (`is_waiting`), or goes on. Told in turns.
    fn lends(&self, is_waiting: bool);

    /// The instance has ended, and its calls with it.
    fn gone(&self);

    /// Destroys what is left of the instance, now or later; `is_spent` where it has served the one call that it was for.
    async fn tear_down(&self, handle: Box<dyn InstanceHandle>, is_spent: bool);
}
