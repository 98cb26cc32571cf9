//! Instances that are containers of a Docker daemon, or of Podman's socket.

mod code;
mod container;
mod images;
mod overlay;
mod probe;
mod processors;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::errors::Error as DockerError;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder,
};
use faena_domain::{BlobKey, EngineKind};
use faena_instance_protocol::ToMiniworker;
use faena_launcher::{Order, SPAWNER};
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::cgroup::{Freezer, meter_paths_of_process};
use crate::meter::Meter;
use crate::spawner::Spawner;
use crate::uids::Uids;
use crate::{
    AgentSocket, Belonging, Engine, EngineError, ImageId, Instance, InstanceHandle, InstanceNetwork, InstanceSpec,
    LocalImage, Pull, Usage,
};
use code::Code;
pub use code::CodeBy;
use container::{Container, LABEL_INCARNATION, LABEL_PLATFORM, LABEL_WORKER};

/// How long the daemon may take to answer one request.
const ANSWER_S: u64 = 60;
/// How long an agent may take until it says that it is ready.
const READY: Duration = Duration::from_secs(30);
/// How long an image may take to be pulled.
const PULL: Duration = Duration::from_secs(600);
/// How often an image is asked for while the network does not answer.
const PULL_SILENCE: Duration = Duration::from_secs(30);
/// How long the daemon may take to say that it lives.
const PING: Duration = Duration::from_secs(2);
/// The most containers that are made at once: the daemon slows down beyond it.
const CREATIONS: usize = 8;

/// How the engine is set up.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    /// Who its containers belong to.
    pub belonging: Belonging,
    /// The daemon's socket; none takes `DOCKER_HOST` or the usual place.
    pub socket: Option<String>,
    /// The program that becomes a launcher: ours.
    pub launcher: PathBuf,
    /// The agent, as `install_agent` placed it.
    pub agent: PathBuf,
    /// The shims, as `install_shims` placed them.
    pub shims: PathBuf,
    /// A folder of our own that the daemon sees under the same path.
    pub folder: PathBuf,
    /// How code gets into containers; none finds out.
    pub code_by: Option<CodeBy>,
}

/// The engine.
#[derive(Debug)]
pub struct Docker {
    docker: bollard::Docker,
    config: DockerConfig,
    uids: Uids,
    creations: Arc<Semaphore>,
    version: String,
    code_by: CodeBy,
    /// The processors that its containers keep to, where those are not all.
    processors: Option<String>,
    /// What makes network devices in containers.
    spawner: Spawner,
    /// Why containers with egress have no network device, where they have none.
    no_device: Option<String>,
}

fn unavailable(error: impl std::fmt::Display) -> EngineError {
    EngineError::Unavailable { engine: EngineKind::Docker, message: error.to_string() }
}

/// What the daemon refuses cannot be made; where it does not answer, another delivery may find it again.
fn refused(step: &'static str, error: &DockerError) -> EngineError {
    match error {
        DockerError::DockerResponseServerError { .. } => EngineError::create(step, error),
        _ => unavailable(format!("{step}: {error}")),
    }
}

impl Docker {
    /// Connects, and agrees on a version with the daemon.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] where no daemon answers, or where it sees nothing of our data folder.
    pub async fn connect(config: DockerConfig, uids: Uids) -> Result<Self, EngineError> {
        let docker = match &config.socket {
            Some(socket) => bollard::Docker::connect_with_socket(socket, ANSWER_S, bollard::API_DEFAULT_VERSION),
            None => bollard::Docker::connect_with_unix_defaults(),
        };
        let docker = docker.map_err(unavailable)?.with_timeout(Duration::from_secs(ANSWER_S));
        let docker = docker.negotiate_version().await.map_err(unavailable)?;
        let version = docker.version().await.map_err(unavailable)?;
        let version = format!("Docker {} (API {})", version.version.unwrap_or_default(), docker.client_version());
        std::fs::create_dir_all(&config.folder).map_err(|error| EngineError::create("making a folder", error))?;
        let (creations, code_by) = (Arc::new(Semaphore::new(CREATIONS)), config.code_by.unwrap_or(CodeBy::Overlay));
        let processors = match processors::bound_to() {
            Some(bound) => bound.where_known(&docker).await.map_err(unavailable)?,
            None => None,
        };
        let spawner = Spawner::new(config.launcher.clone(), vec![SPAWNER.to_owned()]);
        let no_device = why_no_device();
        if let Some(why) = &no_device {
            info!(why, "containers have no network device here: egress is by the proxy alone");
        }
        let mut docker = Self { docker, config, uids, creations, version, code_by, processors, spawner, no_device };
        if docker.config.code_by.is_none() && probe::is_needed(docker.config.socket.as_deref()).await {
            docker.code_by = docker.probe().await?;
        }
        Ok(docker)
    }

    async fn inspect(&self, image: &str) -> Result<Option<ImageId>, EngineError> {
        match self.docker.inspect_image(image).await {
            Ok(found) => Ok(found.id.map(ImageId)),
            Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// Pulls, telling the log how it goes; the daemon coalesces pulls of the same image.
    async fn pull(&self, image: &str) -> Result<(), String> {
        info!(image, "pulling an image");
        let (name, tag) = image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).unwrap_or((image, "latest"));
        let options = CreateImageOptionsBuilder::default().from_image(name).tag(tag).build();
        let mut progress = std::pin::pin!(self.docker.create_image(Some(options), None, None));
        let whole = async {
            loop {
                match tokio::time::timeout(PULL_SILENCE, progress.next()).await {
                    Ok(None) => return Ok(()),
                    Ok(Some(Ok(step))) => tracing::debug!(image, status = step.status, "pulling"),
                    Ok(Some(Err(DockerError::DockerStreamError { error }))) => return Err(error),
                    Ok(Some(Err(DockerError::DockerResponseServerError { message, .. }))) => return Err(message),
                    Ok(Some(Err(error))) => return Err(error.to_string()),
                    Err(_) => return Err("the registry does not answer".to_owned()),
                }
            }
        };
        tokio::time::timeout(PULL, whole).await.unwrap_or_else(|_| Err("it took longer than ten minutes".to_owned()))
    }

    async fn remove(&self, id: &str) {
        remove_container(&self.docker, id).await;
    }

    async fn make(&self, spec: &InstanceSpec, held: &mut DockerGuard) -> Result<Connected, EngineError> {
        let _permit = self.creations.acquire().await.map_err(|error| EngineError::create("waiting", error))?;
        let folder = self.config.folder.join(format!("{}-{}", self.config.belonging.incarnation, spec.name));
        let uid = self
            .uids
            .take()
            .ok_or_else(|| EngineError::create("taking a user", "every user of the range is in use"))?;
        let host_id = uid.id();
        held.code = Some(Code::prepare(self.code_by, &self.config.launcher, &folder, spec, uid).await?);
        let socket = folder.join("socket");
        container::write_identity(&folder, host_id)
            .map_err(|error| EngineError::create("writing /etc/passwd", error))?;
        let listener =
            code::listen(&socket, host_id).map_err(|error| EngineError::create("a socket for the agent", error))?;
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        let volumes = self.volumes(&spec.image).await?;
        let body = container::body(&Container {
            spec,
            config: &self.config,
            folder: &folder,
            code_by: self.code_by,
            host_id,
            nonce: &nonce,
            volumes: &volumes,
            processors: self.processors.as_deref(),
        });
        let name = format!("faena-{}-{}", self.config.belonging.incarnation, spec.name);
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let created = self
            .docker
            .create_container(Some(options), body)
            .await
            .map_err(|error| refused("creating a container", &error))?;
        held.container = Some(created.id.clone());
        self.docker
            .start_container(&created.id, None)
            .await
            .map_err(|error| refused("starting a container", &error))?;
        let Met { agent, listener, pid } = accept(listener, &nonce).await?;
        held.pid = pid;
        held.freezer = pid.and_then(Freezer::of_process);
        held.meter = pid.map(|pid| Meter::open(meter_paths_of_process(pid))).unwrap_or_default();
        if let (CodeBy::Overlay, Some(code), Some(held)) = (self.code_by, &spec.code, &mut held.code) {
            held.mount_code(code).await?;
        }
        // The agent is connected, and no other process should find the socket.
        let _ = std::fs::remove_file(&socket);
        let device = if spec.egress && self.no_device.is_none() { self.make_device(pid).await } else { None };
        Ok(Connected { agent, listener, device })
    }

    /// Makes a network device in the namespace of an agent, before any process of the user's runs there. Without one, the
    /// proxy is the way out.
    async fn make_device(&self, agent: Option<i32>) -> Option<OwnedFd> {
        let Some(pid) = agent else {
            warn!(
                "the daemon lives among other processes: a container has no network device, and egress is by the proxy"
            );
            return None;
        };
        let made = match foreign_namespace(pid) {
            Ok(namespace) => self.spawner.order(Order::MakeDevice, &[namespace.as_fd()]).await,
            Err(error) => Err(EngineError::create("opening a network namespace", error)),
        };
        match made {
            Ok(made) => made.into_iter().next(),
            Err(error) => {
                warn!(%error, "a container has no network device: egress is by the proxy");
                None
            }
        }
    }

    /// What the image declares as volumes; each is covered, so that nothing is written to the host's disk.
    async fn volumes(&self, image: &ImageId) -> Result<Vec<String>, EngineError> {
        let found = self.docker.inspect_image(&image.0).await.map_err(unavailable)?;
        Ok(found.config.and_then(|config| config.volumes).unwrap_or_default())
    }
}

/// The network namespace of a process, if it is not this one's: a number may be another process's by now.
fn foreign_namespace(pid: i32) -> io::Result<std::fs::File> {
    use std::os::unix::fs::MetadataExt;
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
    if namespace.metadata()?.ino() == std::fs::metadata("/proc/self/ns/net")?.ino() {
        return Err(io::Error::other("it is this host's own"));
    }
    Ok(namespace)
}

/// Why no device can be made in a container, as far as that is known before one is there.
fn why_no_device() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root may make a device in a container".to_owned());
    }
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    opened.err().map(|error| format!("/dev/net/tun: {error}"))
}

/// What is new of an instance, before its guard is joined to it.
struct Connected {
    agent: AgentSocket,
    listener: Option<std::net::TcpListener>,
    device: Option<OwnedFd>,
}

/// An agent that has connected.
struct Met {
    agent: AgentSocket,
    listener: Option<std::net::TcpListener>,
    /// Its number on this host, where daemon and worker share one.
    pid: Option<i32>,
}

async fn accept(listener: tokio::net::UnixListener, nonce: &str) -> Result<Met, EngineError> {
    let failed = |error: &dyn std::fmt::Display| EngineError::lost("waiting for the agent", error);
    let meet = async {
        let (stream, _) = listener.accept().await.map_err(|error| failed(&error))?;
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
        let mut agent = AgentSocket::from_stream(stream);
        match agent.receive().await.map_err(|error| failed(&error))? {
            (ToMiniworker::Ready { nonce: shown, .. }, fds) if shown == nonce => {
                Ok(Met { agent, listener: fds.into_iter().next().map(std::net::TcpListener::from), pid })
            }
            _ => Err(failed(&"somebody else connected")),
        }
    };
    let late = |_| failed(&"it did not connect in time; does the daemon see our data folder under the same path?");
    tokio::time::timeout(READY, meet).await.map_err(late)?
}

async fn remove_container(docker: &bollard::Docker, id: &str) {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    match docker.remove_container(id, Some(options)).await {
        Ok(()) | Err(DockerError::DockerResponseServerError { status_code: 404 | 409, .. }) => {}
        Err(error) => warn!(%error, container = id, "a container could not be removed; it goes at the next start"),
    }
}

#[async_trait]
impl Engine for Docker {
    fn kind(&self) -> EngineKind {
        EngineKind::Docker
    }

    fn version(&self) -> String {
        match self.code_by {
            CodeBy::Overlay => self.version.clone(),
            CodeBy::Copy => format!("{}, code copied into each container", self.version),
        }
    }

    fn missing_layers(&self) -> Vec<String> {
        Vec::new()
    }

    async fn resolve(&self, image: &str, pull: Pull) -> Result<ImageId, EngineError> {
        if let Some(id) = self.inspect(image).await? {
            return Ok(id);
        }
        let missing = || EngineError::Image(format!("Docker has no image {image}"));
        if pull == Pull::Never {
            return Err(missing());
        }
        self.pull(image).await.map_err(|message| {
            EngineError::Image(format!("Docker has no image {image} and cannot pull it: {message}"))
        })?;
        self.inspect(image).await?.ok_or_else(missing)
    }

    fn id_of(&self, image: &BlobKey) -> ImageId {
        images::id_of(image)
    }

    async fn has_image(&self, image: &BlobKey) -> Result<bool, EngineError> {
        Ok(self.inspect(&images::id_of(image).0).await?.is_some())
    }

    async fn import_image(&self, image: &BlobKey, archive: File) -> Result<(), EngineError> {
        self.import(image, archive).await
    }

    async fn images(&self) -> Result<Vec<LocalImage>, EngineError> {
        self.local_images().await
    }

    async fn remove_image(&self, image: &BlobKey) {
        self.remove_local(image).await;
    }

    async fn create(&self, spec: InstanceSpec) -> Result<Instance, EngineError> {
        let docker = self.docker.clone();
        let mut held = Box::new(DockerGuard {
            docker,
            container: None,
            code: None,
            freezer: None,
            meter: Meter::default(),
            pid: None,
        });
        match self.make(&spec, &mut held).await {
            Ok(Connected { agent, listener, device }) => {
                Ok(Instance { agent, listener, device, is_inhabited: false, guard: held })
            }
            Err(error) => {
                held.destroy().await;
                Err(error)
            }
        }
    }

    fn is_slow_to_make(&self) -> bool {
        self.code_by == CodeBy::Overlay
    }

    async fn is_available(&self) -> bool {
        matches!(tokio::time::timeout(PING, self.docker.ping()).await, Ok(Ok(_)))
    }

    fn no_device(&self) -> Option<&str> {
        self.no_device.as_deref()
    }

    async fn remove_orphans(&self) {
        let ours = &self.config.belonging;
        let labels = vec![format!("{LABEL_PLATFORM}={}", ours.platform), format!("{LABEL_WORKER}={}", ours.worker)];
        let options =
            ListContainersOptionsBuilder::default().all(true).filters(&HashMap::from([("label", labels)])).build();
        let containers = match self.docker.list_containers(Some(options)).await {
            Ok(containers) => containers,
            Err(error) => return warn!(%error, "containers of earlier incarnations could not be listed"),
        };
        for container in containers {
            let labels = container.labels.unwrap_or_default();
            if labels.get(LABEL_INCARNATION) != Some(&ours.incarnation)
                && let Some(id) = container.id
            {
                warn!(container = id, "removing a container of an earlier incarnation");
                self.remove(&id).await;
            }
        }
        code::remove_leftovers(&self.config.folder, &ours.incarnation);
    }
}

/// Holds one container and the mount of its code.
#[derive(Debug)]
struct DockerGuard {
    docker: bollard::Docker,
    container: Option<String>,
    code: Option<Code>,
    freezer: Option<Freezer>,
    meter: Meter,
    /// The agent's number on this host, where daemon and worker share one.
    pid: Option<i32>,
}

#[async_trait]
impl InstanceHandle for DockerGuard {
    async fn destroy(mut self: Box<Self>) {
        if let Some(id) = self.container.take() {
            remove_container(&self.docker, &id).await;
        }
        // The code goes after the container that holds it.
        drop(self.code.take());
    }

    async fn mount_code(&mut self, code: &Path) -> Result<(), EngineError> {
        let gone = || EngineError::lost("laying the code", "there is no container");
        self.code.as_mut().ok_or_else(gone)?.mount_code(code).await
    }

    fn freeze(&self) -> io::Result<()> {
        self.freezer.as_ref().ok_or(io::ErrorKind::Unsupported)?.freeze()
    }

    fn thaw(&self) -> io::Result<()> {
        self.freezer.as_ref().ok_or(io::ErrorKind::Unsupported)?.thaw()
    }

    fn memory(&self) -> Option<u64> {
        self.meter.memory()
    }

    fn usage(&self) -> Usage {
        self.meter.usage()
    }

    fn network(&self) -> Option<InstanceNetwork> {
        self.pid.map(InstanceNetwork::of_process)
    }
}

impl Drop for DockerGuard {
    fn drop(&mut self) {
        let (container, code) = (self.container.take(), self.code.take());
        // Without a runtime nobody can ask the daemon; the container ends with its socket and goes at the next start.
        if let (Some(id), Ok(runtime)) = (container, tokio::runtime::Handle::try_current()) {
            let docker = self.docker.clone();
            runtime.spawn(async move {
                remove_container(&docker, &id).await;
                drop(code);
            });
        }
    }
}
