//! A sandbox that was made: how it is measured, frozen and destroyed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use faena_launcher::{Order, Remount};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::warn;

use super::images::Root;
use crate::spawner::Spawner;

use crate::cgroup::{Freezer, Group};
use crate::uids::Uid;
use crate::{EngineError, InstanceHandle, InstanceNetwork, Usage};

/// How long a killed instance may take until it is gone.
const GONE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Holds one instance of the sandbox.
#[derive(Debug)]
pub(super) struct SandboxHandle {
    pub(super) group: Option<Group>,
    pub(super) freezer: Option<Freezer>,
    pub(super) pidfd: Option<Arc<OwnedFd>>,
    pub(super) spawner: Arc<Spawner>,
    pub(super) relay: Remount,
    pub(super) _uid: Option<Uid>,
    pub(super) _image: Option<Root>,
}

impl SandboxHandle {
    fn kill(&self) {
        if let Some(group) = &self.group {
            group.kill();
        }
        if let Some(pidfd) = &self.pidfd {
            // PID 1 of a namespace takes everything with it; one that is gone already has done so.
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
        }
    }
}

#[async_trait]
impl InstanceHandle for SandboxHandle {
    async fn destroy(mut self: Box<Self>) {
        self.kill();
        if let Some(pidfd) = self.pidfd.clone()
            && !tokio::task::spawn_blocking(move || is_gone(&pidfd)).await.unwrap_or(false)
        {
            warn!("a killed instance is not gone yet");
        }
        if let Some(group) = self.group.take() {
            group.remove().await;
        }
    }

    async fn mount_code(&mut self, code: &Path) -> Result<(), EngineError> {
        let pidfd =
            self.pidfd.as_ref().ok_or_else(|| EngineError::lost("mounting the code", "there is no instance"))?;
        let relay = Remount { code: code.to_owned(), ..self.relay.clone() };
        self.spawner.order(Order::Remount(relay), &[pidfd.as_fd()]).await.map(drop)
    }

    fn freeze(&self) -> io::Result<()> {
        self.freezer.as_ref().ok_or(io::ErrorKind::Unsupported)?.freeze()
    }

    fn thaw(&self) -> io::Result<()> {
        self.freezer.as_ref().ok_or(io::ErrorKind::Unsupported)?.thaw()
    }

    fn memory(&self) -> Option<u64> {
        self.group.as_ref()?.meter().memory()
    }

    fn usage(&self) -> Usage {
        self.group.as_ref().map(|group| group.meter().usage()).unwrap_or_default()
    }

    fn network(&self) -> Option<InstanceNetwork> {
        InstanceNetwork::of(self.pidfd.as_ref()?)
    }
}

/// Waits until a killed process has ended.
fn is_gone(pidfd: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(poll(&mut watched, Some(&GONE)), Ok(1..))
}

impl Drop for SandboxHandle {
    fn drop(&mut self) {
        // After destroy there is no group, and this does nothing.
        if self.group.is_some() {
            self.kill();
        }
    }
}
