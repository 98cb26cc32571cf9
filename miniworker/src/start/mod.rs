//! Makes an instance of a version, and starts in it what answers calls.
//!
//! The steps are types: a [`Preparation`] has the code, [`Created`] the instance, [`Made`] what can take a call. Dropping
//! one of them leaves nothing behind.

mod greet;
mod listen;
mod prewarm;
pub(crate) mod program;
mod wiring;

use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::{CallError, Contract, EngineKind, ErrorKind, Layer};
use faena_egress::Reach;
use faena_engine::{Engine, ImageId, Instance, InstanceSpec};
use faena_instance_protocol::ToAgent;
use faena_protocol::records::Code;
use tracing::debug;

pub use prewarm::{PrewarmKey, Prewarmed};

use crate::code::CodeLease;
use crate::egress::Ways;
use crate::exec::ExecInstance;
use crate::failure::StartError;
use crate::images::fetch_image;
use crate::owner::InstanceOwner;
use crate::server::ServerInstance;
use crate::{Node, instance, names};
use program::Executed;
use wiring::{Wiring, launch, say_begin};

/// What was made.
#[derive(Debug)]
pub enum Made {
    /// Its process answers many calls.
    Server(Arc<ServerInstance>),
    /// A process can be started in it.
    Exec(Box<ExecInstance>),
}

/// Whether a version's instances answer many calls each.
fn is_server(code: &Code) -> bool {
    code.serving.contract != Contract::Command
}

/// Whose interpreters a version's instances may be clones of, where they may.
pub fn interpreter_domain(code: &Code, tree: &CodeLease) -> Option<String> {
    let executed = Executed::of(code, tree).ok().filter(|_| is_server(code))?;
    executed.may_be_clone(code, tree).then(|| code.namespace.to_string())
}

/// A version whose code is unpacked.
#[derive(Debug)]
pub struct Preparation {
    node: Arc<Node>,
    code: Arc<Code>,
    tree: CodeLease,
    wiring: Option<Wiring>,
}

impl Preparation {
    /// Unpacks a version's code, where it is not there; `preloads` where it may run in an interpreter that is held ready.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn new(node: &Arc<Node>, code: &Arc<Code>, preloads: bool) -> Result<Self, StartError> {
        let (node, code) = (Arc::clone(node), Arc::clone(code));
        program::check_config(&code)?;
        let tree = node.code.get(&code).await?;
        let wiring = if is_server(&code) { Some(Wiring::new(&node, &code, &tree, preloads)?) } else { None };
        Ok(Self { node, code, tree, wiring })
    }

    /// Whose interpreters the instance may be a clone of.
    pub fn domain(&self) -> Option<&str> {
        self.wiring.as_ref().filter(|wiring| wiring.may_be_clone).map(|wiring| wiring.resident.domain.as_str())
    }

    /// Makes the instance, out of a prewarmed one where there is one.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn create(mut self, prewarmed: Option<Prewarmed>) -> Result<Created, StartError> {
        let began = Instant::now();
        let from_prewarmed = match prewarmed {
            Some(prewarmed) => self.enter(prewarmed).await?,
            None => None,
        };
        let instance = match from_prewarmed {
            Some(instance) => instance,
            None => self.make().await?,
        };
        debug!(function = %self.code.function, took = ?began.elapsed(), "an instance was made");
        let instance = Unfinished { instance: Some(instance), node: Arc::clone(&self.node) };
        Ok(Created { preparation: self, instance })
    }

    /// Mounts the code in a prewarmed instance; none where that turned out to be of no use.
    async fn enter(&mut self, prewarmed: Prewarmed) -> Result<Option<Instance>, StartError> {
        let instance = match instance::mount_code(prewarmed.instance, self.tree.clone()).await {
            Ok(instance) => instance,
            Err(error) => {
                debug!(%error, "a prewarmed instance cannot be used");
                return Ok(None);
            }
        };
        let is_there = instance.agent.send(&ToAgent::Lease { until_ms: u64::MAX }, &[]).await.is_ok();
        let joined = match (prewarmed.channel, &mut self.wiring) {
            (Some(channel), Some(wiring)) if is_there => wiring.take_over(channel),
            _ => Ok(()),
        };
        if is_there && joined.is_ok() {
            return Ok(Some(instance));
        }
        debug!(?joined, "a prewarmed instance is gone");
        instance.guard.destroy().await;
        joined.map_err(|error| StartError::of_node(&error))?;
        Ok(None)
    }

    async fn make(&self) -> Result<Instance, StartError> {
        let (node, code) = (&self.node, &self.code);
        let kind = code.engine.unwrap_or(EngineKind::Sandbox);
        let none = || CallError::new(ErrorKind::Unavailable, Layer::Start, format!("this worker has no engine {kind}"));
        let engine = node.engines.get(&kind).ok_or_else(|| StartError::Failed(none()))?;
        let has_egress = code.reaches_out();
        let spec = InstanceSpec {
            name: names::unique('c'),
            image: ImageId(code.image_id.clone().unwrap_or_else(|| code.image.clone())),
            code: Some(self.tree.path().to_owned()),
            path: code.path.clone(),
            limits: code.limits,
            egress: has_egress,
            ca_bundle: node.ca_bundle.clone().filter(|_| has_egress),
            resident: self.wiring.as_ref().and_then(Wiring::offered),
        };
        match instance::create(Arc::clone(engine), spec.clone(), self.tree.clone()).await {
            // It was removed after it was fetched.
            Err(_) if self.has_lost_image(engine).await => {
                fetch_image(node, code).await?;
                Ok(instance::create(Arc::clone(engine), spec, self.tree.clone()).await?)
            }
            created => Ok(created?),
        }
    }

    async fn has_lost_image(&self, engine: &Arc<dyn Engine>) -> bool {
        match &self.code.image_content {
            Some(image) => matches!(engine.has_image(&image.key).await, Ok(false)),
            None => false,
        }
    }
}

/// An instance that has its code, and in which the version's process does not run yet.
#[derive(Debug)]
pub struct Created {
    preparation: Preparation,
    instance: Unfinished,
}

impl Created {
    /// Starts the process that answers many calls, where the version has one, and waits until it may be called; a server
    /// may take `start_timeout` until it listens.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(self, owner: Arc<dyn InstanceOwner>, start_timeout: Duration) -> Result<Made, StartError> {
        let Self { preparation: Preparation { node, code, tree, wiring }, mut instance } = self;
        let lease = ToAgent::Lease { until_ms: u64::MAX };
        instance.agent.send(&lease, &[]).await.map_err(|error| StartError::agent_gone(&error))?;
        for (name, value) in code.config.iter().flat_map(|config| &config.files) {
            instance::keep_secret(&mut instance.agent, name, value).await?;
        }
        let reach = Reach { network: code.network.clone(), networks: code.networks.clone(), calls: code.calls.clone() };
        let egress = Ways::of(&mut instance)
            .map(|ways| node.egress.serve(&code, reach, ways, Some(Arc::clone(&owner))))
            .transpose();
        let egress = egress.map_err(|error| StartError::of_node(&error))?;
        let Some(wiring) = wiring else {
            return Ok(Made::Exec(Box::new(ExecInstance::new(instance.finish(), egress, tree))));
        };
        let since = Instant::now();
        let Wiring { run, resident, mut frames, output, .. } = wiring;
        match frames.as_mut().filter(|_| instance.is_inhabited) {
            Some(frames) => say_begin(frames, &run).await.map_err(|error| StartError::of_node(&error))?,
            None => launch(&mut instance, run, &resident).await?,
        }
        // The process has its ends; its own end shows only when nobody else holds them.
        drop(resident);
        let parts = match frames {
            Some(frames) => greet::greet(&code, frames, output, instance).await?,
            None => listen::listen((&code, start_timeout), output, instance).await?,
        };
        debug!(function = %code.function, took = ?since.elapsed(), "its process may be called");
        Ok(Made::Server(ServerInstance::spawn((owner, node), (code, tree), parts, egress)))
    }
}

/// An instance whose process does not answer yet: dropping this destroys it.
#[derive(Debug)]
struct Unfinished {
    instance: Option<Instance>,
    node: Arc<Node>,
}

impl Unfinished {
    fn finish(mut self) -> Instance {
        self.instance.take().unwrap_or_else(|| unreachable!("only this and drop take it out"))
    }
}

impl std::ops::Deref for Unfinished {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        self.instance.as_ref().unwrap_or_else(|| unreachable!("only finish and drop take it out"))
    }
}

impl std::ops::DerefMut for Unfinished {
    fn deref_mut(&mut self) -> &mut Instance {
        self.instance.as_mut().unwrap_or_else(|| unreachable!("only finish and drop take it out"))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(instance) = self.instance.take() {
            self.node.tasks.spawn(instance.guard.destroy());
        }
    }
}
