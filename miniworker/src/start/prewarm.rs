//! Instances that are made before their code is known, with an interpreter in them where the engine can do that.

use std::sync::Arc;

use faena_domain::{EngineKind, Limits};
use faena_engine::{Engine, EngineError, ImageId, Instance, InstanceSpec};
use faena_instance_protocol::ToAgent;
use faena_protocol::records::{Code, ImageContent};

use super::wiring::{Channel, waiting};
use crate::{Node, names};

/// All that has to be known of an instance before it is made, but for its code.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PrewarmKey {
    /// What makes it.
    pub engine: EngineKind,
    /// Its image, as the engine identifies it.
    pub image: String,
    /// What its image is, where the platform keeps it.
    pub content: Option<ImageContent>,
    /// Where its code will appear.
    pub path: String,
    /// What it may use; the timeout, which is nothing to an instance, is the default.
    pub limits: Limits,
    /// Whether it has egress.
    pub has_egress: bool,
    /// Whose interpreter waits in it, where one does.
    pub domain: Option<String>,
}

/// An instance that waits without code.
#[derive(Debug)]
pub struct Prewarmed {
    pub(super) instance: Instance,
    /// The pipes to the interpreter in it.
    pub(super) channel: Option<Channel>,
}

impl PrewarmKey {
    /// What a version's instances are prewarmed as, and by which engine, where that pays off; `domain` is whose they are,
    /// where an interpreter may wait in them.
    pub fn of(code: &Code, domain: Option<&str>, node: &Node) -> Option<(Self, Arc<dyn Engine>)> {
        let engine = code.engine?;
        let maker = node.engines.get(&engine)?;
        // Interpreters that are held are the host's own.
        let is_held = maker.interpreters() > 0 && code.image_content.is_none();
        let domain = domain.filter(|_| is_held).map(str::to_owned);
        if !maker.is_slow_to_make() && domain.is_none() {
            return None;
        }
        let key = Self {
            engine,
            image: code.image_id.clone().unwrap_or_else(|| code.image.clone()),
            content: code.image_content.clone(),
            path: code.path.clone(),
            limits: Limits { timeout: Limits::DEFAULT.timeout, ..code.limits },
            has_egress: code.reaches_out(),
            domain,
        };
        Some((key, Arc::clone(maker)))
    }

    /// Makes one.
    ///
    /// # Errors
    /// [`EngineError`]; nothing is left of it.
    pub async fn make(&self, node: &Node, engine: &Arc<dyn Engine>) -> Result<Prewarmed, EngineError> {
        if let Some(image) = &self.content {
            node.images.get(engine, image).await?;
        }
        let failed = |error: &dyn std::fmt::Display| EngineError::Lost {
            step: "making an instance without code".to_owned(),
            message: error.to_string(),
        };
        let (resident, channel) = match &self.domain {
            Some(domain) => waiting(domain, &self.path).map(|(run, channel)| (Some(Arc::new(run)), Some(channel))),
            None => Ok((None, None)),
        }
        .map_err(|error| failed(&error))?;
        let instance = engine.create(InstanceSpec { resident, ..self.spec(node) }).await?;
        // An agent that is never told of a lease ends after a minute.
        let told = instance.agent.send(&ToAgent::Lease { until_ms: u64::MAX }, &[]).await;
        let why = match told {
            Ok(()) if channel.is_none() || instance.is_inhabited => return Ok(Prewarmed { instance, channel }),
            Ok(()) => failed(&"no interpreter is held ready"),
            Err(error) => failed(&error),
        };
        instance.guard.destroy().await;
        Err(why)
    }

    fn spec(&self, node: &Node) -> InstanceSpec {
        InstanceSpec {
            name: names::unique('b'),
            image: ImageId(self.image.clone()),
            code: None,
            path: self.path.clone(),
            limits: self.limits,
            egress: self.has_egress,
            ca_bundle: node.ca_bundle.clone().filter(|_| self.has_egress),
            resident: None,
        }
    }
}

impl Prewarmed {
    /// What it holds of memory, in bytes.
    pub fn memory(&self) -> Option<u64> {
        self.instance.guard.memory()
    }

    /// Ends it.
    pub async fn destroy(self) {
        self.instance.guard.destroy().await;
    }
}
