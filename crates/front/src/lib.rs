//! The front: the one port that nodes of other machines connect to.
//!
//! A node speaks TLS 1.3 with a certificate of the platform's authority, and frames ([`faena_protocol::front`]). No byte of a
//! node reaches a ZeroMQ socket before it was read as a message, and judged: each message type declares whether a worker may
//! send it, and what it says of its sender must be what the certificate says. A node may read the blobs, and speak for the
//! functions, that it was sent work for (`grants.rs`).
//!
//! ```text
//! node ══ TLS ══▶ front ── ZeroMQ ──▶ api, db
//!                   └──── blobs, connections of functions
//! ```

mod api_channel;
mod blobs;
mod connection;
mod db_channel;
mod grants;
mod internal;
mod joining;
mod lane;
mod nodes;
mod places;
mod refusal;
mod relay;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use faena_blob::BlobStore;
use faena_db_client::{DbClient, NodeDirectory};
use faena_domain::units::ByteSize;
use faena_domain::{Fingerprint, Labels};
use faena_transport::Endpoint;
use faena_transport::front::{Authority, AuthorityError, FrontAcceptor};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use nodes::{Node, Nodes};
use places::Places;

/// The pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// How a front is set up.
#[derive(Clone, Debug)]
pub struct FrontConfig {
    /// Where it listens for nodes.
    pub listen: SocketAddr,
    /// The address that nodes reach it by, `host:port`.
    pub public: String,
    /// The key of the platform's authority.
    pub authority_key: PathBuf,
    /// The certificate of the platform's authority.
    pub authority_certificate: PathBuf,
    /// The folder of the sockets between roles.
    pub sockets: PathBuf,
    /// The api's socket for workers.
    pub api: Endpoint,
    /// The socket of db.
    pub db: Endpoint,
    /// The api's socket for connections of functions.
    pub internal: PathBuf,
    /// What stays free on the disk of the blobs when nodes store theirs.
    pub disk_reserve: ByteSize,
}

/// Why a front could not begin.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// The address cannot be listened on.
    #[error("cannot listen for nodes on {address}: {source}; is something else there? choose another with --nodes")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The platform's authority cannot be used.
    #[error("the authority for certificates of nodes cannot be used: {0}")]
    Authority(#[from] AuthorityError),
}

/// What tokens for nodes need to know of a front.
#[derive(Clone, Debug)]
pub struct FrontInfo {
    /// What its authority is known by.
    pub authority: Fingerprint,
    /// The address that nodes reach it by.
    pub public: String,
}

/// What every connection needs.
struct Shared {
    config: FrontConfig,
    authority: Arc<Authority>,
    acceptor: FrontAcceptor,
    db: DbClient,
    directory: NodeDirectory,
    blobs: BlobStore,
    nodes: Nodes,
    places: Places,
}

impl Shared {
    /// The labels that a node has now.
    fn labels(&self, node: &Node) -> Labels {
        self.directory.known().get(&node.name).map(|record| record.labels.clone()).unwrap_or_default()
    }
}

/// A front that is bound and not yet served.
pub struct Front {
    listener: TcpListener,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Front({})", self.shared.config.listen)
    }
}

impl Front {
    /// Binds.
    ///
    /// # Errors
    /// [`FrontError`].
    pub async fn bind(
        config: FrontConfig,
        db: DbClient,
        directory: NodeDirectory,
        blobs: BlobStore,
    ) -> Result<Self, FrontError> {
        let authority = Arc::new(Authority::open(&config.authority_key, &config.authority_certificate)?);
        let acceptor = FrontAcceptor::new(Arc::clone(&authority))?;
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.map_err(|source| FrontError::Listen { address: config.listen, source })?;
        let (nodes, places) = (Nodes::default(), Places::default());
        let shared = Arc::new(Shared { config, authority, acceptor, db, directory, blobs, nodes, places });
        Ok(Self { listener, shared })
    }

    /// What tokens need to know of it.
    pub fn info(&self) -> FrontInfo {
        FrontInfo { authority: self.shared.authority.fingerprint(), public: self.shared.config.public.clone() }
    }

    /// Serves until told to stop.
    pub async fn serve(self, stop: CancellationToken) {
        info!(address = %self.shared.config.listen, "listening for nodes");
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                // Where there is no place, the connection is closed without a word.
                Ok((socket, address)) => {
                    if let Some(place) = self.shared.places.stranger(address.ip()) {
                        let serve = connection::serve(Arc::clone(&self.shared), socket, address, place);
                        connections.spawn(stop.clone().run_until_cancelled_owned(serve));
                    }
                }
                Err(error) => {
                    warn!(%error, "a connection of a node could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        connections.close();
        connections.wait().await;
    }
}
