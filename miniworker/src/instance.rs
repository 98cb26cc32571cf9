//! Instances whose making nobody can abandon half-way.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use faena_domain::config::SecretText;
use faena_engine::{AgentSocket, Engine, EngineError, Instance, InstanceHandle, InstanceNetwork, InstanceSpec, Usage};
use faena_instance_protocol::{Ended, SECRETS, ToAgent, ToMiniworker};
use tokio::sync::oneshot;

use crate::code::CodeLease;
use crate::failure::StartError;
use crate::process::sealed;

/// How long an agent may take to clean up.
pub(crate) const CLEAN: Duration = Duration::from_secs(2);

/// Makes an instance of code that stays while it lives. If this is dropped meanwhile, what is made is destroyed at once.
pub(crate) async fn create(
    engine: Arc<dyn Engine>,
    spec: InstanceSpec,
    code: CodeLease,
) -> Result<Instance, EngineError> {
    let (give, given) = oneshot::channel();
    let kind = engine.kind();
    tokio::spawn(async move {
        let made = engine.create(spec).await.map(|made| {
            let guard = Box::new(Holding { guard: made.guard, code });
            Instance { guard, ..made }
        });
        if let Err(Ok(instance)) = give.send(made) {
            instance.guard.destroy().await;
        }
    });
    let gone = |_| EngineError::Unavailable { engine: kind, message: "making the instance was given up".to_owned() };
    given.await.map_err(gone)?
}

/// Mounts code in an instance that has none yet; one in which it cannot be mounted is destroyed.
pub(crate) async fn mount_code(mut empty: Instance, code: CodeLease) -> Result<Instance, EngineError> {
    match empty.guard.mount_code(code.path()).await {
        Ok(()) => Ok(Instance { guard: Box::new(Holding { guard: empty.guard, code }), ..empty }),
        Err(error) => {
            empty.guard.destroy().await;
            Err(error)
        }
    }
}

/// Why an instance could not be cleaned.
#[derive(Debug)]
pub(crate) enum Unclean {
    /// The process that was to be kept has ended.
    Ended(Ended),
    /// What went wrong.
    Lost(String),
}

/// Has an agent remove what ended processes left outside `path`, and kill whatever is there beside the process that was
/// started, if that still runs; tells how often memory ran out meanwhile.
pub(crate) async fn clean(agent: &mut AgentSocket) -> Result<u64, Unclean> {
    let lost = |error: &dyn std::fmt::Display| Unclean::Lost(error.to_string());
    agent.send(&ToAgent::Clean, &[]).await.map_err(|error| lost(&error))?;
    match tokio::time::timeout(CLEAN, agent.receive()).await {
        Ok(Ok((ToMiniworker::Cleaned { error: None, oom_kills }, _))) => Ok(oom_kills),
        Ok(Ok((ToMiniworker::Cleaned { error: Some(error), .. }, _))) => Err(lost(&error)),
        Ok(Ok((ToMiniworker::Ended(ended), _))) => Err(Unclean::Ended(ended)),
        Ok(Ok(_)) => Err(lost(&"its agent sent a frame that is not expected now")),
        Ok(Err(error)) => Err(lost(&error)),
        Err(_) => Err(lost(&"it does not answer")),
    }
}

/// Has an agent keep a file with a value of the configuration.
///
/// # Errors
/// [`StartError`]; the instance is of no use.
pub(crate) async fn keep_secret(agent: &mut AgentSocket, name: &str, value: &SecretText) -> Result<(), StartError> {
    let content = sealed(value.0.as_bytes()).map_err(|error| StartError::of_node(&error))?;
    let asked = agent.send(&ToAgent::Secret { name: name.to_owned() }, &[content.as_fd()]).await;
    asked.map_err(|error| StartError::agent_gone(&error))?;
    match tokio::time::timeout(CLEAN, agent.receive()).await {
        Ok(Ok((ToMiniworker::Kept { error: None }, _))) => Ok(()),
        Ok(Ok((ToMiniworker::Kept { error: Some(error) }, _))) => {
            Err(StartError::refused(format!("the file {SECRETS}/{name} could not be written: {error}")))
        }
        Ok(Ok(_)) => Err(StartError::unexpected_frame()),
        Ok(Err(error)) => Err(StartError::agent_gone(&error)),
        Err(_) => Err(StartError::refused(format!("the file {SECRETS}/{name} was not written in time"))),
    }
}

/// Keeps the code of an instance until that is destroyed.
#[derive(Debug)]
struct Holding {
    guard: Box<dyn InstanceHandle>,
    code: CodeLease,
}

#[async_trait]
impl InstanceHandle for Holding {
    async fn destroy(self: Box<Self>) {
        let Self { guard, code } = *self;
        guard.destroy().await;
        drop(code);
    }

    async fn mount_code(&mut self, code: &Path) -> Result<(), EngineError> {
        self.guard.mount_code(code).await
    }

    fn freeze(&self) -> io::Result<()> {
        self.guard.freeze()
    }

    fn thaw(&self) -> io::Result<()> {
        self.guard.thaw()
    }

    fn memory(&self) -> Option<u64> {
        self.guard.memory()
    }

    fn usage(&self) -> Usage {
        self.guard.usage()
    }

    fn network(&self) -> Option<InstanceNetwork> {
        self.guard.network()
    }
}
