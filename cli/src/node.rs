//! What a worker of this machine has: engines, folders, certificates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use faena_blob::BlobStore;
use faena_domain::units::ByteSize;
use faena_domain::{EngineKind, Owner};
use faena_engine::{
    Belonging, Docker, DockerConfig, Engine, Pull, Sandbox, SandboxConfig, Uids, install_agent, install_shims,
    install_zygote,
};
use faena_worker::node::{
    BuildLimits, CodeStore, EgressPolicy, Gateway, LiveLogs, Node, NodeEgress, PoolConfig, PoolPolicy, Ports,
    Resolvers, StreamBounds, Upstream,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::folders::Folders;
use crate::settings::Settings;

/// The largest artifact.
const ARTIFACT: ByteSize = ByteSize(1 << 30);

struct Place<'a> {
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

/// Starts the engines and puts the node together.
pub(crate) async fn node(
    settings: &Settings,
    folders: &Folders,
    owner: &Owner,
    blobs: BlobStore,
) -> anyhow::Result<Node> {
    let folder = folders.worker();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let place = Place {
        settings,
        belonging: Belonging {
            platform: folders.platform.clone(),
            worker: owner.worker.clone(),
            incarnation: owner.incarnation.clone(),
        },
        run: folders.run.clone(),
        launcher: std::env::current_exe().context("cannot find this program")?,
        agent: install_agent(&folder).with_context(|| format!("cannot write the agent below {}", folder.display()))?,
        shims: install_shims(&folder).with_context(|| format!("cannot write the shims below {}", folder.display()))?,
        zygote: install_zygote(&folder)
            .with_context(|| format!("cannot write the zygote's library below {}", folder.display()))?,
        uids: Uids::of_host(&format!("{}/{}", folders.platform, owner.worker)),
        folder,
    };
    let mut engines: BTreeMap<EngineKind, Arc<dyn Engine>> = BTreeMap::new();
    for engine in [docker(&place).await?, sandbox(&place).await?].into_iter().flatten() {
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
            preload: settings.preload,
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

async fn docker(place: &Place<'_>) -> anyhow::Result<Option<Arc<dyn Engine>>> {
    let named = match place.settings.docker.as_str() {
        "off" => return Ok(None),
        "auto" => None,
        socket => Some(socket.to_owned()),
    };
    let config = DockerConfig {
        belonging: place.belonging.clone(),
        socket: named.clone(),
        launcher: place.launcher.clone(),
        agent: place.agent.clone(),
        shims: place.shims.clone(),
        folder: place.run.join("containers"),
        code_by: None,
    };
    match Docker::connect(config, place.uids.clone()).await {
        Ok(docker) => Ok(Some(Arc::new(docker))),
        Err(error) if named.is_some() => Err(error).context("Docker was named in the settings and does not answer"),
        Err(error) => {
            warn!(%error, "going without Docker");
            Ok(None)
        }
    }
}

async fn sandbox(place: &Place<'_>) -> anyhow::Result<Option<Arc<dyn Engine>>> {
    if !place.settings.sandbox {
        return Ok(None);
    }
    let config = SandboxConfig {
        belonging: place.belonging.clone(),
        launcher: place.launcher.clone(),
        agent: place.agent.clone(),
        shims: place.shims.clone(),
        zygote: place.zygote.clone(),
        folder: place.folder.clone(),
        accept_missing: place.settings.layers()?,
        host_images: place.settings.host_images.iter().map(|host| (host.image.clone(), host.program.clone())).collect(),
    };
    Ok(Some(Arc::new(Sandbox::start(config, place.uids.clone()).await?)))
}
