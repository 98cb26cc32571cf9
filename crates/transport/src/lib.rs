//! Messages between processes of one machine, over ZeroMQ on `ipc://` sockets, and between machines, over TLS ([`front`]).
//!
//! The `zeromq` crate moves bytes well and tells little when a peer is gone: a DEALER whose ROUTER went away
//! waits for ever, a send that is cancelled takes its peer out of the rotation, an identity that comes back
//! too early throws out its successor. So nothing outside of this crate touches a socket:
//!
//! - [`Server`] owns a ROUTER: one task receives, one task sends, silent peers are reported as lost;
//! - [`Link`] owns a DEALER: it beats, notices silence, and connects again under a new identity;
//! - [`RpcClient`] asks over a link: each request has a deadline, and is sent again after a reconnect.
//!
//! An empty message is a heartbeat; it never reaches a user of this crate.

mod boot;
mod event_sink;
pub mod front;
mod link;
mod rpc;
mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use boot::{boot_id, boot_ms};
pub use link::{Link, LinkEvent, LinkHandle, OpenLink, Target, UnopenedLink};
pub use rpc::{RpcClient, RpcError};
pub use server::{OpenServer, Peer, Server, ServerEvent, ServerHandle, UnopenedServer};

/// How often a side that has nothing to say sends a heartbeat.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a silent side counts as alive: three heartbeats and what a busy machine may add.
pub const SILENCE: Duration = Duration::from_secs(4);
/// The most messages that wait for a socket.
pub(crate) const QUEUE: usize = 4096;
/// The longest path of an endpoint: what `sun_path` holds (unix(7)), less the ending it has while it is bound.
pub const MAX_SOCKET_PATH: usize = 107 - 9;

/// A socket file in a folder that only we can enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(PathBuf);

/// A path that is too long for a socket.
#[derive(Debug, thiserror::Error)]
#[error("the socket path {0:?} has more than {MAX_SOCKET_PATH} bytes; choose a shorter run folder")]
pub struct PathTooLong(PathBuf);

impl Endpoint {
    /// The endpoint at this path.
    ///
    /// # Errors
    /// A path that the kernel has no room for.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, PathTooLong> {
        let path = path.into();
        if path.as_os_str().len() > MAX_SOCKET_PATH { Err(PathTooLong(path)) } else { Ok(Self(path)) }
    }

    /// Where the socket lies.
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn uri(&self) -> String {
        format!("ipc://{}", self.0.display())
    }
}
