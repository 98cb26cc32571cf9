//! The platform's side of a connection.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use faena_domain::Fingerprint;
use faena_protocol::front::{ALPN, MAX_OPEN};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, version};
use tracing::warn;

use super::authority::{Authority, AuthorityError, fingerprint};
use super::frames::FrameStream;
use super::provider;

/// The front's own certificate, and when it is renewed.
#[derive(Debug)]
struct OwnCertificate {
    authority: Arc<Authority>,
    current: Mutex<(Arc<CertifiedKey>, SystemTime)>,
}

fn own(authority: &Authority) -> Result<(Arc<CertifiedKey>, SystemTime), AuthorityError> {
    let (chain, key, renewed_at) = authority.issue_front()?;
    let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|_| AuthorityError::PublicKey)?;
    Ok((Arc::new(key), renewed_at))
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock();
        if current.1 <= SystemTime::now() {
            match own(&self.authority) {
                Ok(renewed) => *current = renewed,
                Err(error) => warn!(%error, "the front's certificate cannot be renewed"),
            }
        }
        Some(Arc::clone(&current.0))
    }
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Accepted {
    /// It; its first frame may have [`MAX_OPEN`] bytes.
    pub frames: FrameStream,
    /// The certificate that the client has shown, which the authority has issued and which has not ended. Whose it is, and
    /// whether it was revoked, is not known here.
    pub certificate: Option<Fingerprint>,
}

/// Answers handshakes: TLS 1.3, with a certificate of the authority or none.
#[derive(Clone)]
pub struct FrontAcceptor(TlsAcceptor);

impl std::fmt::Debug for FrontAcceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FrontAcceptor")
    }
}

impl FrontAcceptor {
    /// Serves under a certificate of this authority, which it renews.
    ///
    /// # Errors
    /// An authority that cannot issue.
    pub fn new(authority: Arc<Authority>) -> Result<Self, AuthorityError> {
        let unusable = |_| AuthorityError::PublicKey;
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone()).map_err(unusable)?;
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|_| AuthorityError::PublicKey)?;
        let current = Mutex::new(own(&authority)?);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(OwnCertificate { authority, current }));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would not be verified again.
        config.send_tls13_tickets = 0;
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Does a handshake; the caller bounds its time.
    ///
    /// # Errors
    /// A client that speaks no TLS 1.3, or shows a certificate that is not the authority's.
    pub async fn accept(&self, socket: TcpStream) -> io::Result<Accepted> {
        super::prepare(&socket)?;
        let stream = self.0.accept(socket).await?;
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(|chain| chain.first()).map(fingerprint);
        Ok(Accepted { frames: FrameStream::new(stream.into(), MAX_OPEN), certificate })
    }
}
