//! The node's side of a connection.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use faena_domain::NodeName;
use faena_protocol::front::{Channel, FRONT_NAME, JoinToken, MAX_FRAME, Open, Opened, PROTOCOL, Refusal};
use parking_lot::RwLock;
use rcgen::KeyPair;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{AlertDescription, CertificateError, ClientConfig, Error as TlsError};

use super::frames::{FrameError, FrameStream};
use super::identity::{IdentityError, NodeIdentity, joining_config};

/// How long a connection may take until its channel is open.
const OPENING: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nothing answers there.
    #[error("cannot reach the platform at {address}: {source}")]
    Unreachable {
        /// Where.
        address: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It does not answer in time.
    #[error("the platform at {0} does not answer within {OPENING:?}")]
    Silent(String),
    /// The server belongs to another platform, or is no platform.
    #[error(
        "who answers at {0} is not the platform that this node belongs to: its certificate is of another authority; check --api and the token"
    )]
    Stranger(String),
    /// The certificate of this node has ended, or is not taken.
    #[error(
        "the platform at {0} does not take this node's certificate: {1}; remove the node, and join again with a new token"
    )]
    Certificate(String, &'static str),
    /// It speaks something else.
    #[error("what answers at {address} does not speak as a platform does: {message}")]
    Protocol {
        /// Where.
        address: String,
        /// What was wrong.
        message: String,
    },
    /// It says no.
    #[error("{message}")]
    Refused {
        /// What to do about it.
        reason: Refusal,
        /// Its sentence.
        message: String,
    },
    /// What the node was given cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl DialError {
    /// Whether trying again changes nothing.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => reason.is_final(),
            Self::Certificate(..) | Self::Identity(_) => true,
            Self::Unreachable { .. } | Self::Silent(_) | Self::Stranger(_) | Self::Protocol { .. } => false,
        }
    }
}

/// Opens channels to a platform, as a node.
#[derive(Clone)]
pub struct FrontDialer {
    address: Arc<str>,
    config: Arc<RwLock<Arc<ClientConfig>>>,
    ended: Arc<watch::Sender<Option<String>>>,
}

impl std::fmt::Debug for FrontDialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrontDialer({})", self.address)
    }
}

impl FrontDialer {
    /// A dialer of the front at an address, `host:port`.
    ///
    /// # Errors
    /// An identity that cannot be used.
    pub fn new(address: &str, identity: &NodeIdentity) -> Result<Self, IdentityError> {
        let config = Arc::new(RwLock::new(Arc::new(identity.client_config()?)));
        Ok(Self { address: address.into(), config, ended: Arc::new(watch::Sender::new(None)) })
    }

    /// Connections from now on show another certificate.
    ///
    /// # Errors
    /// An identity that cannot be used.
    pub fn renew(&self, identity: &NodeIdentity) -> Result<(), IdentityError> {
        *self.config.write() = Arc::new(identity.client_config()?);
        Ok(())
    }

    /// Returns when the platform has said that this node is no part of it, with its sentence.
    pub async fn ended(&self) -> String {
        let mut receiver = self.ended.subscribe();
        match receiver.wait_for(Option::is_some).await {
            Ok(message) => message.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Opens a channel; what the platform replies, where that is more than that it is open.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn open(&self, channel: Channel) -> Result<(FrameStream, Opened), DialError> {
        let config = Arc::clone(&self.config.read());
        let opened = open(&self.address, config, channel).await;
        if let Err(error) = &opened
            && error.is_final()
        {
            self.ended.send_if_modified(|ended| {
                let is_first = ended.is_none();
                ended.get_or_insert_with(|| error.to_string());
                is_first
            });
        }
        opened
    }

    /// Asks for a certificate for a new key, before the current one ends.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn renewed(&self, name: &NodeName) -> Result<NodeIdentity, DialError> {
        let key = new_key()?;
        let (_, opened) = self.open(Channel::Renew { public_key: STANDARD.encode(key.public_key_raw()) }).await?;
        identity_of(&self.address, name.clone(), &key, opened)
    }
}

/// The key of a machine that is to become a node.
pub struct JoinKey(KeyPair);

impl JoinKey {
    /// A new key.
    ///
    /// # Errors
    /// A machine without random numbers.
    pub fn new() -> Result<Self, IdentityError> {
        new_key().map(Self)
    }
}

/// Makes this machine a node of the platform that a token names. A platform whose reply was lost is asked again with the same
/// key, for which the token is still good.
///
/// # Errors
/// [`DialError`]; a token that was used, or has expired, is refused with a sentence.
pub async fn join(
    address: &str,
    token: &JoinToken,
    name: NodeName,
    JoinKey(key): &JoinKey,
) -> Result<NodeIdentity, DialError> {
    let config = joining_config(token.authority).map_err(|error| IdentityError(error.to_string()))?;
    let channel = Channel::Join {
        id: token.id.clone(),
        secret: token.secret.clone(),
        name: name.clone(),
        public_key: STANDARD.encode(key.public_key_raw()),
    };
    let (_, opened) = open(address, Arc::new(config), channel).await?;
    identity_of(address, name, key, opened)
}

fn new_key() -> Result<KeyPair, IdentityError> {
    KeyPair::generate().map_err(|error| IdentityError(error.to_string()))
}

fn identity_of(address: &str, name: NodeName, key: &KeyPair, opened: Opened) -> Result<NodeIdentity, DialError> {
    let Opened::Certificate { chain, issued_at, ends_at } = opened else {
        let message = "it issues no certificate".to_owned();
        return Err(DialError::Protocol { address: address.to_owned(), message });
    };
    let identity = NodeIdentity { name, key: key.serialize_pem(), chain, issued_at, ends_at };
    identity.client_config()?;
    Ok(identity)
}

async fn open(address: &str, config: Arc<ClientConfig>, channel: Channel) -> Result<(FrameStream, Opened), DialError> {
    let opened = tokio::time::timeout(OPENING, open_unbounded(address, config, channel)).await;
    opened.unwrap_or_else(|_| Err(DialError::Silent(address.to_owned())))
}

async fn open_unbounded(
    address: &str,
    config: Arc<ClientConfig>,
    channel: Channel,
) -> Result<(FrameStream, Opened), DialError> {
    let unreachable = |source| DialError::Unreachable { address: address.to_owned(), source };
    let socket = TcpStream::connect(address).await.map_err(unreachable)?;
    super::prepare(&socket).map_err(unreachable)?;
    let server = ServerName::try_from(FRONT_NAME).map_err(|error| IdentityError(error.to_string()))?;
    let stream = TlsConnector::from(config).connect(server, socket).await;
    // Before the handshake is done an alert may be anybody's: it ends nothing.
    let stream = stream.map_err(|error| match failed(address, error) {
        DialError::Certificate(address, why) => {
            DialError::Protocol { address, message: format!("it refuses to speak: {why}") }
        }
        error => error,
    })?;
    let mut frames = FrameStream::new(stream.into(), MAX_FRAME);
    let asked = async {
        frames.send_json(&Open { protocol: PROTOCOL, channel }).await?;
        frames.receive_json::<Opened>().await
    };
    match asked.await {
        Ok(Opened::Refused { reason, message }) => Err(DialError::Refused { reason, message }),
        Ok(opened) => Ok((frames, opened)),
        // With TLS 1.3 a client hears only now that its certificate is not taken (RFC 8446, 4.4.2.4).
        Err(FrameError::Connection(error)) => Err(failed(address, error)),
        Err(error) => Err(DialError::Protocol { address: address.to_owned(), message: error.to_string() }),
    }
}

/// What a failure of TLS means for a node.
fn failed(address: &str, error: io::Error) -> DialError {
    let address = address.to_owned();
    let tls = error.get_ref().and_then(|source| (source as &dyn Error).downcast_ref::<TlsError>());
    match tls {
        Some(TlsError::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. } | CertificateError::NotValidYet,
        )) => DialError::Protocol {
            address,
            message: "its certificate has ended or has not begun; check the clocks of both machines".to_owned(),
        },
        Some(TlsError::InvalidCertificate(_)) => DialError::Stranger(address),
        Some(TlsError::AlertReceived(AlertDescription::CertificateExpired)) => {
            DialError::Certificate(address, "it has ended, or the clocks of both machines differ")
        }
        Some(TlsError::AlertReceived(
            AlertDescription::UnknownCA | AlertDescription::BadCertificate | AlertDescription::DecryptError,
        )) => DialError::Certificate(address, "another authority has issued it"),
        Some(error) => DialError::Protocol { address, message: error.to_string() },
        None => DialError::Unreachable { address, source: error },
    }
}
