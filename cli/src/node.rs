//! What a worker of this machine has: engines, folders, certificates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use faena_blob::BlobStore;
use faena_domain::units::ByteSize;
use faena_domain::{EngineKind, Owner};
use faena_engine::{
    Belonging, Docker, DockerConfig, Engine, EngineError, Pull, Sandbox, SandboxConfig, Uids, install_agent,
    install_shims, install_zygote,
};
use faena_worker::node::{
    BuildLimits, CodeStore, EgressPolicy, Gateway, ImageStore, LiveLogs, Node, NodeEgress, PoolConfig, PoolPolicy,
    Ports, PreloadSetting, Resolvers, StreamBounds, Upstream, unpack_image,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::folders::Folders;
use crate::settings::Settings;

/// The largest artifact.
const ARTIFACT: ByteSize = ByteSize(1 << 30);

/// Where the engines of this machine work, and what they are given.
pub(crate) struct Place<'a> {
    settings: &'a Settings,
    belonging: Belonging,
    folder: PathBuf,
    run: PathBuf,
    launcher: PathBuf,
    agent: PathBuf,
    shims: PathBuf,
    zygote: Option<PathBuf>,
    uids: Uids,
}

impl<'a> Place<'a> {
    fn new(settings: &'a Settings, belonging: Belonging, folder: PathBuf, run: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let of = |what: &str| format!("cannot write the {what} below {}", folder.display());
        Ok(Self {
            settings,
            launcher: std::env::current_exe().context("cannot find this program")?,
            agent: install_agent(&folder).with_context(|| of("agent"))?,
            shims: install_shims(&folder).with_context(|| of("shims"))?,
            zygote: install_zygote(&folder).with_context(|| of("zygote's library"))?,
            uids: Uids::of_host(&format!("{}/{}", belonging.platform, belonging.worker)),
            belonging,
            folder,
            run,
        })
    }

    /// A place to try engines in, beside any worker of this machine.
    pub(crate) fn trial(settings: &'a Settings, folder: &Path) -> anyhow::Result<Self> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let belonging = Belonging { platform: id.clone(), worker: "doctor".to_owned(), incarnation: id };
        Self::new(settings, belonging, folder.join("worker"), folder.to_owned())
    }

    /// Docker, where the settings have it.
    pub(crate) async fn docker(&self) -> Result<Option<Arc<dyn Engine>>, EngineError> {
        let named = match self.settings.docker.as_str() {
            "off" => return Ok(None),
            "auto" => None,
            socket => Some(socket.to_owned()),
        };
        let config = DockerConfig {
            belonging: self.belonging.clone(),
            socket: named,
            launcher: self.launcher.clone(),
            agent: self.agent.clone(),
            shims: self.shims.clone(),
            folder: self.run.join("containers"),
            code_by: None,
        };
        Ok(Some(Arc::new(Docker::connect(config, self.uids.clone()).await?)))
    }

    /// The sandbox, where the settings have it.
    pub(crate) async fn sandbox(&self) -> anyhow::Result<Option<Arc<dyn Engine>>> {
        let settings = self.settings;
        if !settings.sandbox {
            return Ok(None);
        }
        let config = SandboxConfig {
            belonging: self.belonging.clone(),
            launcher: self.launcher.clone(),
            agent: self.agent.clone(),
            shims: self.shims.clone(),
            zygote: self.zygote.clone(),
            folder: self.folder.clone(),
            accept_missing: settings.layers()?,
            host_images: settings.host_images.iter().map(|host| (host.image.clone(), host.program.clone())).collect(),
            unpack: unpack_image,
            reserve: settings.disk_reserve.0,
        };
        Ok(Some(Arc::new(Sandbox::start(config, self.uids.clone()).await?)))
    }
}

/// Docker for a worker, which goes without it unless the settings name its socket.
async fn docker(place: &Place<'_>) -> anyhow::Result<Option<Arc<dyn Engine>>> {
    match place.docker().await {
        Err(error) if place.settings.docker == "auto" => {
            warn!(%error, "going without Docker");
            Ok(None)
        }
        connected => connected.context("Docker was named in the settings and does not answer"),
    }
}

/// Starts the engines and puts the node together.
pub(crate) async fn node(
    settings: &Settings,
    folders: &Folders,
    owner: &Owner,
    blobs: BlobStore,
) -> anyhow::Result<Node> {
    let belonging = Belonging {
        platform: folders.platform.clone(),
        worker: owner.worker.clone(),
        incarnation: owner.incarnation.clone(),
    };
    let place = Place::new(settings, belonging, folders.worker(), folders.run.clone())?;
    let mut engines: BTreeMap<EngineKind, Arc<dyn Engine>> = BTreeMap::new();
    for engine in [docker(&place).await?, place.sandbox().await?].into_iter().flatten() {
        info!(engine = %engine.kind(), version = engine.version(), "engine");
        engines.insert(engine.kind(), engine);
    }
    if engines.is_empty() {
        bail!("no engine: Docker does not answer and the sandbox is switched off; start Docker, or set sandbox = true");
    }
    let code = CodeStore::open(place.folder.join("code"), blobs.clone(), settings.code_cache, settings.disk_reserve)
        .context("cannot open the folder of unpacked code")?;
    Ok(Node {
        worker: owner.worker.clone(),
        engines,
        images: ImageStore::new(blobs.clone(), settings.image_cache, settings.disk_reserve),
        blobs,
        code,
        logs: LiveLogs::default(),
        streams: StreamBounds { idle: settings.stream_idle.duration(), max: settings.stream_max.duration() },
        draining: CancellationToken::new(),
        tasks: TaskTracker::new(),
        ca_bundle: settings.ca_bundle.as_deref().map(|bundle| ca_bundle(bundle, &place.folder)).transpose()?,
        egress: NodeEgress::new(
            egress_policy(settings)?,
            Gateway::new(place.launcher, Handle::current()),
            folders.internal_socket(),
        ),
        pull: if settings.pull { Pull::Missing } else { Pull::Never },
        build: BuildLimits { limits: settings.build_limits(), artifact: ARTIFACT },
    })
}

/// How the worker's instances wait and work, as the settings say.
pub(crate) fn pool(settings: &Settings) -> PoolConfig {
    PoolConfig {
        policy: PoolPolicy {
            slots: settings.slots,
            creations: settings.creations.max(1),
            instances: settings.instances.max(1),
            memory: settings.pool_memory.unwrap_or_else(|| ByteSize(faena_worker::memory_bytes() / 2)),
            idle: settings.idle.duration(),
            freeze_after: settings.freeze_after.duration(),
            preload: PreloadSetting::new(settings.preload),
        },
        start_timeout: settings.start_timeout.duration(),
        home: tokio::runtime::Handle::current(),
    }
}

/// A copy in our own folder: where the worker is a container, the daemon does not know the original by its name.
fn ca_bundle(bundle: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let copy = folder.join("ca-bundle.pem");
    let copied = std::fs::copy(bundle, &copy).and_then(|_| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o644))
    });
    copied.with_context(|| format!("cannot copy the certificates {} to {}", bundle.display(), copy.display()))?;
    Ok(copy)
}

/// Whom instances may reach, as the settings say.
pub(crate) fn egress_policy(settings: &Settings) -> anyhow::Result<EgressPolicy> {
    let upstream = match settings.egress_proxy.as_deref() {
        None | Some("") => None,
        Some(url) => Some(Upstream::parse(url, settings.egress_hosts.clone()).context("the setting egress_proxy")?),
    };
    if let Some(upstream) = &upstream {
        info!(
            proxy = upstream.host,
            names = settings.egress_hosts.len(),
            "instances reach the world through an upstream proxy, which judges addresses; names are judged here"
        );
    }
    let mut policy = EgressPolicy::public(Resolvers::of_servers(settings.egress_resolvers.clone()));
    if !settings.egress_ports.is_empty() {
        policy.ports = Ports::Only(settings.egress_ports.clone());
    }
    policy.refused = settings.egress_refused.iter().copied().collect();
    policy.networks = settings.egress_networks.clone();
    policy.bytes = settings.egress_bytes;
    policy.upstream = upstream;
    Ok(policy)
}
