//! Instances of Linux namespaces, made by our own launcher; no daemon.

mod etc;
mod groups;
mod handle;
mod images;
mod layers;
mod zygotes;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use faena_domain::limits::DEV_SHM;
use faena_domain::{BlobKey, EngineKind, Limits};
use faena_instance_protocol::ToMiniworker;
use faena_launcher::{Order, Remount, SPAWNER, Spec};
use sha2::{Digest, Sha256};
use tracing::{debug, info, warn};

use groups::Groups;
use handle::SandboxHandle;
use images::Images;
pub use images::Unpack;
pub use layers::Layer;
use zygotes::Zygotes;

use crate::cgroup::{Controller, Group, Trees};
use crate::host::host_program;
use crate::spawner::Spawner;
use crate::uids::{Uid, Uids};
use crate::{
    AgentSocket, Belonging, Engine, EngineError, ImageId, Instance, InstanceHandle, InstanceSpec, LocalImage, Pull,
};

/// The folder over which spawners mount the roots that they prepare.
const ROOTS: &str = "roots";
/// How long an agent may take until it says that it is ready.
const READY: Duration = Duration::from_secs(10);

/// How a sandbox is set up.
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// Who its instances belong to.
    pub belonging: Belonging,
    /// The program that becomes a launcher: ours.
    pub launcher: PathBuf,
    /// The agent, as `install_agent` placed it.
    pub agent: PathBuf,
    /// The shims, as `install_shims` placed them.
    pub shims: PathBuf,
    /// What makes interpreters of this host spawners, as `install_zygote` placed it, where there is one.
    pub zygote: Option<PathBuf>,
    /// A folder of our own for what instances are given.
    pub folder: PathBuf,
    /// Layers that may be missing.
    pub accept_missing: Vec<Layer>,
    /// Images that are the host's own system, where their interpreter is there: name and program.
    pub host_images: Vec<(String, String)>,
    /// What unpacks images.
    pub unpack: Unpack,
    /// Bytes that stay free on the disk of the folder when an image is unpacked.
    pub reserve: u64,
}

/// Why there is no sandbox here.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Layers are missing that the settings do not permit to be.
    #[error("the sandbox cannot be started safely here:{}\nTo go without them: {}", each(.0), flags(.0))]
    Missing(Vec<(Layer, String)>),
    /// What instances are given cannot be prepared.
    #[error("cannot prepare the sandbox in {folder}")]
    Prepare {
        /// Where.
        folder: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// A line for each missing layer: how that showed, and how to get it.
fn each(missing: &[(Layer, String)]) -> String {
    let line = |(layer, why): &(Layer, String)| format!("\n  {}: {why}. To get it: {}", layer.as_str(), layer.remedy());
    missing.iter().map(line).collect()
}

fn flags(missing: &[(Layer, String)]) -> String {
    missing.iter().map(|(layer, _)| format!("--accept-missing {}", layer.as_str())).collect::<Vec<_>>().join(" ")
}

/// The engine.
#[derive(Debug)]
pub struct Sandbox {
    config: SandboxConfig,
    etc: PathBuf,
    trees: Trees,
    uids: Uids,
    privileged: bool,
    missing: Vec<Layer>,
    /// Why instances with egress have no network device, where they have none.
    no_device: Option<String>,
    host_id: ImageId,
    images: Images,
    spawner: Arc<Spawner>,
    zygotes: Option<Zygotes>,
    groups: Arc<Groups>,
}

impl Sandbox {
    /// Prepares a sandbox, and makes one instance to see that it holds what it promises.
    ///
    /// # Errors
    /// All layers that are missing and may not be.
    pub async fn start(config: SandboxConfig, uids: Uids) -> Result<Self, SandboxError> {
        let prepare = |source| SandboxError::Prepare { folder: config.folder.clone(), source };
        let etc = etc::make(&config.folder).map_err(prepare)?;
        let empty = config.folder.join("empty");
        for folder in [&empty, &config.folder.join(ROOTS)] {
            std::fs::create_dir_all(folder).map_err(prepare)?;
        }
        let trees = Trees::prepare(&config.belonging);
        let mut sandbox = Self {
            groups: Groups::new(trees.clone(), config.belonging.incarnation.clone()),
            trees,
            privileged: rustix::process::geteuid().is_root(),
            missing: Vec::new(),
            no_device: None,
            host_id: host_id(),
            images: Images::open(&config.folder, config.unpack, config.reserve).map_err(prepare)?,
            spawner: Arc::new(Spawner::new(config.launcher.clone(), vec![SPAWNER.to_owned()])),
            zygotes: zygotes(&config),
            etc,
            uids,
            config,
        };
        let mut refused = sandbox.accept(sandbox.find_missing());
        refused.extend(sandbox.probe(empty.clone()).await);
        if !refused.is_empty() {
            return Err(SandboxError::Missing(refused));
        }
        sandbox.no_device = sandbox.probe_device(empty).await;
        Ok(sandbox)
    }

    /// Makes an instance with a network device; why there was none.
    async fn probe_device(&self, code: PathBuf) -> Option<String> {
        match self.create(InstanceSpec { egress: true, ..self.probe_spec(code) }).await {
            Ok(instance) => {
                tokio::spawn(instance.guard.destroy());
                None
            }
            Err(error) => {
                let why = error.to_string();
                info!(why, "instances have no network device here: egress is by the proxy alone");
                Some(why)
            }
        }
    }

    fn probe_spec(&self, code: PathBuf) -> InstanceSpec {
        InstanceSpec {
            name: format!("probe-{}", uuid::Uuid::new_v4().simple()),
            image: self.host_id.clone(),
            code: Some(code),
            path: "/ws".to_owned(),
            limits: Limits::DEFAULT,
            egress: false,
            ca_bundle: None,
            resident: None,
        }
    }

    /// Goes without the layers that may be missing; those that may not are given back.
    fn accept(&mut self, missing: Vec<(Layer, String)>) -> Vec<(Layer, String)> {
        let may_be = |layer: Layer| layer == Layer::OwnUid || self.config.accept_missing.contains(&layer);
        let (accepted, refused): (Vec<_>, Vec<_>) = missing.into_iter().partition(|(layer, _)| may_be(*layer));
        for (layer, why) in accepted {
            info!(layer = layer.as_str(), why, "going without a layer of the sandbox");
            self.missing.push(layer);
        }
        refused
    }

    fn find_missing(&self) -> Vec<(Layer, String)> {
        let group = |layer, controller| {
            (!self.trees.bounds(controller)).then(|| (layer, "no control group of ours bounds it".to_owned()))
        };
        let kill =
            (!self.trees.can_kill()).then(|| (Layer::Kill, "there is no cgroup.kill that we may write to".to_owned()));
        let own = (!self.privileged).then(|| (Layer::OwnUid, "only root can map other users".to_owned()));
        [
            group(Layer::Memory, Controller::Memory),
            group(Layer::Pids, Controller::Pids),
            group(Layer::Cpu, Controller::Cpu),
            kill,
            own,
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// One instance of nothing: its agent is ready only after every step of the launcher and its own filter.
    async fn probe(&mut self, code: PathBuf) -> Vec<(Layer, String)> {
        let Err(error) =
            self.create(self.probe_spec(code.clone())).await.map(|instance| tokio::spawn(instance.guard.destroy()))
        else {
            return Vec::new();
        };
        let why = error.to_string();
        let layer = match &error {
            // All that an agent does before it is ready, and can fail at, is its filter.
            EngineError::Lost { .. } => Layer::Seccomp,
            _ if why.starts_with("landlock") => Layer::Landlock,
            _ => Layer::Namespaces,
        };
        let refused = self.accept(vec![(layer, why)]);
        if !refused.is_empty() {
            return refused;
        }
        // Without Landlock an instance can still be made; without namespaces there is none.
        match self.create(self.probe_spec(code.clone())).await {
            Ok(instance) => {
                tokio::spawn(instance.guard.destroy());
                Vec::new()
            }
            Err(error) => vec![(Layer::Namespaces, error.to_string())],
        }
    }

    fn launcher_spec(&self, spec: &InstanceSpec, group: &Group, host_id: u32, root: Option<PathBuf>) -> Spec {
        let (oom, peak) = group.memory_files();
        Spec {
            agent: self.config.agent.clone(),
            root,
            etc: self.etc.clone(),
            code: spec.code.clone(),
            shims: self.config.shims.clone(),
            roots: self.config.folder.join(ROOTS),
            path: spec.path.clone(),
            disk: spec.limits.disk.0,
            tmp: spec.limits.tmp.0,
            shm: DEV_SHM,
            files: u64::from(spec.limits.files),
            ca_bundle: spec.ca_bundle.clone(),
            host_id,
            privileged: self.privileged,
            birth_group: group.birth(),
            agent_groups: group.agent_entrances(),
            user_groups: group.user_entrances(),
            oom,
            peak,
            egress: spec.egress,
            device: spec.egress && self.no_device.is_none(),
            without_landlock: self.missing.contains(&Layer::Landlock),
            process: None,
        }
    }

    async fn create_one(&self, spec: &InstanceSpec) -> Result<Instance, EngineError> {
        let group =
            self.groups.take(&spec.limits).map_err(|error| EngineError::create("making control groups", error))?;
        self.start_instance(spec, group).await
    }

    /// The interpreter that an instance may be a clone of. Those held are the host's own, trusted as it is; the interpreter
    /// of an imported image starts within its instance.
    async fn zygote(&self, spec: &InstanceSpec, wanted: &Spec) -> Option<Arc<Spawner>> {
        let (resident, zygotes) = (spec.resident.as_ref()?, self.zygotes.as_ref()?);
        if wanted.root.is_some() || !wanted.privileged || resident.answers.is_none() {
            return None;
        }
        zygotes.ready(&resident.domain).await
    }

    async fn start_instance(&self, spec: &InstanceSpec, group: Group) -> Result<Instance, EngineError> {
        let uid = if self.privileged {
            let none = || EngineError::create("taking a user", "every user of the range is in use");
            Some(self.uids.take().ok_or_else(none)?)
        } else {
            None
        };
        let host_id = uid.as_ref().map_or_else(|| rustix::process::geteuid().as_raw(), Uid::id);
        let image = self.images.root(&spec.image)?;
        let root = image.as_ref().map(|image| image.path.clone());
        let mut wanted = self.launcher_spec(spec, &group, host_id, root);
        let zygote = self.zygote(spec, &wanted).await;
        // From here on the guard sees to it that nothing is left.
        let relay = Remount {
            code: PathBuf::new(),
            path: spec.path.clone(),
            disk: spec.limits.disk.0,
            privileged: self.privileged,
        };
        let mut held = Box::new(SandboxHandle {
            freezer: group.freezer(),
            group: Some(group),
            pidfd: None,
            spawner: Arc::clone(&self.spawner),
            relay,
            _uid: uid,
            _image: image,
        });
        let (ours, theirs) =
            std::os::unix::net::UnixStream::pair().map_err(|error| EngineError::create("a socket", error))?;
        let (spawner, mut fds) = (zygote.as_ref().unwrap_or(&self.spawner), vec![theirs.as_fd()]);
        if let Some(resident) = spec.resident.as_ref().filter(|_| zygote.is_some()) {
            wanted.process = Some(resident.run.clone());
            fds.extend([&resident.input, &resident.output].into_iter().chain(&resident.answers).map(AsFd::as_fd));
        }
        let is_inhabited = wanted.process.is_some();
        let device = match spawner.order(Order::Launch(Box::new(wanted)), &fds).await {
            Ok(made) => {
                let mut made = made.into_iter();
                held.pidfd = made.next().map(Arc::new);
                made.next()
            }
            Err(error) => {
                held.destroy().await;
                return Err(error);
            }
        };
        drop(theirs);
        match ready(ours).await {
            Ok((agent, listener)) => Ok(Instance { agent, listener, device, is_inhabited, guard: held }),
            Err(error) => {
                held.destroy().await;
                Err(error)
            }
        }
    }
}

async fn ready(
    socket: std::os::unix::net::UnixStream,
) -> Result<(AgentSocket, Option<std::net::TcpListener>), EngineError> {
    let failed = |error: &dyn std::fmt::Display| EngineError::lost("waiting for the agent", error);
    let mut agent = AgentSocket::new(socket).map_err(|error| failed(&error))?;
    match tokio::time::timeout(READY, agent.receive()).await {
        Ok(Ok((ToMiniworker::Ready { .. }, fds))) => {
            Ok((agent, fds.into_iter().next().map(std::net::TcpListener::from)))
        }
        Ok(Ok(_)) => Err(failed(&"it said something else than that it is ready")),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(failed(&"it did not say that it is ready in time")),
    }
}

/// Interpreters of the host's own system, where they can be held.
fn zygotes(config: &SandboxConfig) -> Option<Zygotes> {
    let library = config.zygote.as_ref()?.to_str()?;
    let (interpreter, shim) = (host_program("python3")?, config.shims.join("python.py"));
    let words = [interpreter.to_str()?, "-S", shim.to_str()?, "--hold", library];
    Some(Zygotes::new(config.launcher.clone(), words.map(str::to_owned).into()))
}

/// What tells this host's own system from another, or from itself after an upgrade.
fn host_id() -> ImageId {
    let mut hash = Sha256::new();
    hash.update(std::fs::read("/etc/os-release").unwrap_or_default());
    for folder in ["/usr/bin", "/usr/lib", "/usr/local/bin", "/usr/local/lib"] {
        let changed = std::fs::metadata(folder).and_then(|metadata| metadata.modified()).ok();
        hash.update(format!("{folder} {changed:?}\n"));
    }
    ImageId(format!("host:{}", hex::encode(&hash.finalize()[..16])))
}

#[async_trait]
impl Engine for Sandbox {
    fn kind(&self) -> EngineKind {
        EngineKind::Sandbox
    }

    fn version(&self) -> String {
        let system = rustix::system::uname();
        format!("Linux {}", system.release().to_string_lossy())
    }

    fn missing_layers(&self) -> Vec<String> {
        self.missing.iter().map(|layer| layer.as_str().to_owned()).collect()
    }

    async fn resolve(&self, image: &str, _pull: Pull) -> Result<ImageId, EngineError> {
        let Some((_, program)) = self.config.host_images.iter().find(|(name, _)| name == image) else {
            let known: Vec<&str> = self.config.host_images.iter().map(|(name, _)| name.as_str()).collect();
            return Err(EngineError::Image(format!(
                "the sandbox maps no image {image} (it maps {}; `faena image put` gives the platform others)",
                known.join(", ")
            )));
        };
        match host_program(program) {
            Some(_) => Ok(self.host_id.clone()),
            None => Err(EngineError::Image(format!(
                "the sandbox maps {image} to this host, which has no {program} in /usr/local/bin or /usr/bin"
            ))),
        }
    }

    fn id_of(&self, image: &BlobKey) -> ImageId {
        images::id_of(image)
    }

    async fn has_image(&self, image: &BlobKey) -> Result<bool, EngineError> {
        Ok(self.images.has(image))
    }

    async fn import_image(&self, image: &BlobKey, archive: File) -> Result<(), EngineError> {
        let (images, image) = (self.images.clone(), *image);
        let imported = tokio::task::spawn_blocking(move || images.import(&image, archive)).await;
        let imported = imported.map_err(io::Error::other).flatten();
        imported.map_err(|error| EngineError::lost("unpacking its image", error))
    }

    async fn images(&self) -> Result<Vec<LocalImage>, EngineError> {
        let images = self.images.clone();
        tokio::task::spawn_blocking(move || images.list())
            .await
            .map_err(|error| EngineError::create("listing images", error))
    }

    async fn remove_image(&self, image: &BlobKey) {
        let (images, image) = (self.images.clone(), *image);
        let removed = tokio::task::spawn_blocking(move || images.remove(&image)).await;
        if let Err(error) = removed.map_err(io::Error::other).flatten() {
            warn!(%error, %image, "an image could not be removed; what is left goes at the next start");
        }
    }

    async fn create(&self, spec: InstanceSpec) -> Result<Instance, EngineError> {
        match self.create_one(&spec).await {
            // The interpreter that it was to be a clone of has ended; it starts its own.
            Err(EngineError::Lost { step, message }) if spec.resident.is_some() => {
                debug!(step, message, "an interpreter that was held ready is lost");
                self.create_one(&InstanceSpec { resident: None, ..spec }).await
            }
            made => made,
        }
    }

    async fn hold_interpreter(&self, domain: &str) {
        if let Some(zygotes) = self.zygotes.as_ref().filter(|_| self.privileged) {
            zygotes.ready(domain).await;
        }
    }

    fn forget_interpreters(&self, unused_for: Duration) {
        if let Some(zygotes) = &self.zygotes {
            zygotes.forget(unused_for);
        }
    }

    fn interpreters(&self) -> u64 {
        self.zygotes.as_ref().map_or(0, Zygotes::count)
    }

    fn no_device(&self) -> Option<&str> {
        self.no_device.as_deref()
    }

    async fn remove_orphans(&self) {
        let ours = format!("{}.", self.config.belonging.incarnation);
        for name in self.trees.instances().into_iter().filter(|name| !name.starts_with(&ours)) {
            warn!(instance = name, "removing an instance of an earlier incarnation");
            let group = self.trees.adopt(&name);
            group.kill();
            group.remove().await;
        }
    }
}
