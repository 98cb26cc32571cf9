//! Becoming a node, and staying one.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use faena_domain::NodeName;
use faena_protocol::front::{JoinToken, Refusal};
use faena_transport::front::{DialError, FrontDialer, JoinKey, NodeIdentity, join};
use tracing::{info, warn};

/// The file of the identity in the data folder.
const FILE: &str = "node-identity.json";
/// The pause before a platform that did not answer is asked again.
const PAUSE: Duration = Duration::from_secs(2);
/// How often the time to renew is looked at, and how long a renewal that failed waits: the clock may be set.
const LOOK: Duration = Duration::from_secs(60);

/// Why a machine is no node.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// It has the certificate of a node of another name.
    #[error(
        "this data folder belongs to the node {0}, and --name says {1}; start it without --name, or choose another data folder with --data"
    )]
    OtherName(NodeName, NodeName),
    /// The file of the identity.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The platform.
    #[error(transparent)]
    Dial(#[from] DialError),
}

fn at(data: &Path) -> PathBuf {
    data.join(FILE)
}

fn read(data: &Path) -> Result<Option<NodeIdentity>, MembershipError> {
    let path = at(data);
    let of = |source| MembershipError::File { path: path.clone(), source };
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| of(io::Error::other(error))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(of(error)),
    }
}

fn write(data: &Path, identity: &NodeIdentity) -> Result<(), MembershipError> {
    let (path, passing) = (at(data), at(data).with_extension("new"));
    let written = || -> io::Result<()> {
        let mut file = fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&passing)?;
        file.write_all(&serde_json::to_vec(identity).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&passing, &path)
    };
    written().map_err(|source| MembershipError::File { path: path.clone(), source })
}

/// Who this machine is, where it is a node already. `name` is the one that it was told to have.
///
/// # Errors
/// A node of another name, or a file that cannot be read.
pub fn identity_in(data: &Path, name: Option<&NodeName>) -> Result<Option<NodeIdentity>, MembershipError> {
    let identity = read(data)?;
    match (&identity, name) {
        (Some(identity), Some(wanted)) if identity.name != *wanted => {
            Err(MembershipError::OtherName(identity.name.clone(), wanted.clone()))
        }
        _ => Ok(identity),
    }
}

/// Makes this machine a node. A platform that does not answer is waited for.
///
/// # Errors
/// [`MembershipError`]; a platform that refuses says why.
pub async fn become_node(
    data: &Path,
    address: &str,
    token: &JoinToken,
    name: &NodeName,
) -> Result<NodeIdentity, MembershipError> {
    let key = JoinKey::new().map_err(DialError::from)?;
    loop {
        match join(address, token, name.clone(), &key).await {
            Ok(identity) => {
                write(data, &identity)?;
                info!(node = %identity.name, "this machine has joined the platform");
                return Ok(identity);
            }
            Err(
                error @ (DialError::Unreachable { .. }
                | DialError::Silent(_)
                | DialError::Refused { reason: Refusal::Busy, .. }),
            ) => warn!(%error, "joining again soon"),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Renews the certificate at two thirds of its time, again and again, until it is aborted.
pub async fn renew(data: PathBuf, dialer: FrontDialer, mut identity: NodeIdentity) {
    loop {
        tokio::time::sleep(LOOK).await;
        if now_ms() < identity.renewed_at().0 {
            continue;
        }
        let renewed = match dialer.renewed(&identity.name).await {
            Ok(renewed) => renewed,
            Err(error) => {
                warn!(%error, ends_at = %identity.ends_at, "the node's certificate could not be renewed; trying again soon");
                continue;
            }
        };
        // The one before is taken too, until this one is renewed.
        if let Err(error) = write(&data, &renewed) {
            warn!(%error, "the node's new certificate could not be kept");
            continue;
        }
        match dialer.renew(&renewed) {
            Ok(()) => info!(ends_at = %renewed.ends_at, "the node's certificate is renewed"),
            Err(error) => warn!(%error, "the node's new certificate cannot be used"),
        }
        identity = renewed;
    }
}
