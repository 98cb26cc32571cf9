//! Instances whose making nobody can abandon half-way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use faena_engine::{Engine, EngineError, Instance, InstanceSpec};
use tokio::sync::oneshot;

/// Makes an instance. Whoever asked may go away: what is then made is destroyed at once.
pub(crate) async fn create(engine: Arc<dyn Engine>, spec: InstanceSpec) -> Result<Instance, EngineError> {
    let (give, given) = oneshot::channel();
    let kind = engine.kind();
    tokio::spawn(async move {
        let made = engine.create(spec).await;
        if let Err(Ok(instance)) = give.send(made) {
            instance.guard.destroy().await;
        }
    });
    let gone = |_| EngineError::Unavailable { engine: kind, message: "making the instance was given up".to_owned() };
    given.await.map_err(gone)?
}

/// A name that no other instance of this run of the worker has, short enough for the path of a socket.
pub(crate) fn name(beginning: char) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{beginning}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
