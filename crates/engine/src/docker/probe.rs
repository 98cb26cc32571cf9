//! Whether the daemon sees what we give its containers: asked of a container, where there is reason to doubt it.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use bollard::query_parameters::CreateImageOptionsBuilder;
use faena_domain::Limits;
use faena_instance_protocol::ToAgent;
use futures_util::StreamExt;
use tokio::io::AsyncReadExt;
use tracing::{debug, info};

use super::{CodeBy, Docker};
use crate::{Engine, EngineError, ImageId, InstanceSpec};

/// An image of nothing; the agent needs nothing.
const IMAGE: &str = "faena-probe";
/// The end of an archive, and so an archive of nothing (tar(5)).
const EMPTY_TAR: [u8; 1024] = [0; 1024];
/// The file that has to be found inside.
const MARK: &str = "faena-was-here";
/// How long the tree of a probe may take to be read.
const READ: Duration = Duration::from_secs(10);

/// Whether there is reason to doubt: we are not root, or the daemon is not known to live among our mounts.
pub(super) async fn is_needed(socket: Option<&str>) -> bool {
    !rustix::process::geteuid().is_root() || !shares_our_mounts(socket).await
}

/// The process that listens on the daemon's socket, as far as we can see it (unix(7), `SO_PEERCRED`).
async fn shares_our_mounts(socket: Option<&str>) -> bool {
    let named = std::env::var("DOCKER_HOST").ok();
    let path = socket.or(named.as_deref()).unwrap_or("/var/run/docker.sock");
    let listener = tokio::net::UnixStream::connect(path.trim_start_matches("unix://")).await;
    let mounts = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    // A process of another PID namespace has the number 0 here.
    let theirs = listener.and_then(|stream| stream.peer_cred()).ok().and_then(|peer| mounts(&peer.pid()?.to_string()));
    theirs.is_some() && theirs == mounts("self")
}

impl Docker {
    /// Finds out how code gets into a container.
    ///
    /// # Errors
    /// A sentence about the data folder, where it does not get in at all.
    pub(super) async fn probe(&mut self) -> Result<CodeBy, EngineError> {
        let image = self.empty_image().await?;
        let mut last = String::new();
        let all = [CodeBy::Overlay, CodeBy::Copy];
        let ways = if rustix::process::geteuid().is_root() { &all[..] } else { &all[1..] };
        for &way in ways {
            self.code_by = way;
            match self.finds_mark(&image).await {
                Ok(()) => {
                    info!(?way, "how code gets into containers");
                    return Ok(way);
                }
                Err(why) => {
                    debug!(?way, why, "code does not get into containers so");
                    last = why;
                }
            }
        }
        let folder = self.config.folder.display();
        let message = format!(
            "the daemon does not see our folders ({last}); give a worker in a container its data folder and {folder} under the same paths as on the host"
        );
        Err(super::unavailable(message))
    }

    async fn empty_image(&self) -> Result<ImageId, EngineError> {
        if let Some(found) = self.inspect(IMAGE).await? {
            return Ok(found);
        }
        let options = CreateImageOptionsBuilder::default().from_src("-").repo(IMAGE).build();
        let body = bollard::body_full(EMPTY_TAR.to_vec().into());
        let mut steps = std::pin::pin!(self.docker.create_image(Some(options), Some(body), None));
        while let Some(step) = steps.next().await {
            step.map_err(super::unavailable)?;
        }
        self.inspect(IMAGE).await?.ok_or_else(|| super::unavailable("it did not take an image of nothing"))
    }

    /// Makes an instance of one file, and looks for that file inside.
    async fn finds_mark(&self, image: &ImageId) -> Result<(), String> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let code = self.config.folder.join(format!("{}-code-{id}", self.config.belonging.incarnation));
        let made = open_folder(&code).map_err(|error| error.to_string());
        let found = match made {
            Ok(()) => self.look(image, &code, format!("probe-{id}")).await,
            Err(error) => Err(error),
        };
        // What stays goes with the leftovers of this incarnation.
        let _ = std::fs::remove_dir_all(&code);
        found
    }

    async fn look(&self, image: &ImageId, code: &Path, name: String) -> Result<(), String> {
        let spec = InstanceSpec {
            name,
            image: image.clone(),
            code: Some(code.to_owned()),
            path: "/ws".to_owned(),
            limits: Limits::DEFAULT,
            egress: false,
            ca_bundle: None,
            resident: None,
        };
        let mut instance = self.create(spec).await.map_err(|error| error.to_string())?;
        let tree = tokio::time::timeout(READ, read_tree(&mut instance.agent)).await;
        instance.guard.destroy().await;
        let tree = tree.map_err(|_| "its agent does not answer")?.map_err(|error| error.to_string())?;
        let has_mark = tree.windows(MARK.len()).any(|bytes| bytes == MARK.as_bytes());
        if has_mark { Ok(()) } else { Err("a file that we put there is not inside".to_owned()) }
    }
}

/// A folder with the mark in it, for everybody to read.
fn open_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let open = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    std::fs::create_dir(folder)?;
    open(folder, 0o755)?;
    let mark = folder.join(MARK);
    std::fs::write(&mark, "")?;
    open(&mark, 0o644)
}

async fn read_tree(agent: &mut crate::AgentSocket) -> std::io::Result<Vec<u8>> {
    let (read, written) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let pack = ToAgent::Pack { path: "/ws".to_owned() };
    agent.send(&pack, &[written.as_fd()]).await.map_err(std::io::Error::other)?;
    drop(written);
    let mut tree = Vec::new();
    tokio::net::unix::pipe::Receiver::from_owned_fd(read)?.read_to_end(&mut tree).await?;
    Ok(tree)
}
