//! Who a node is: its key, its certificate, and the authority that it trusts.

use std::sync::Arc;

use faena_domain::{Fingerprint, NodeName, Timestamp};
use faena_protocol::front::ALPN;
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme, client,
    version,
};

use super::authority::fingerprint;
use super::provider;

/// An identity that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the node's certificate or key cannot be used: {0}; join again with a new token")]
pub struct IdentityError(pub(super) String);

/// Who a node is, as its data folder keeps it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeIdentity {
    /// Its name.
    pub name: NodeName,
    /// Its key, as PEM.
    pub(super) key: String,
    /// Its certificate and the authority's, as PEM.
    pub(super) chain: String,
    /// When the certificate was issued.
    pub issued_at: Timestamp,
    /// When it ends.
    pub ends_at: Timestamp,
}

impl std::fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeIdentity").field("name", &self.name).field("ends_at", &self.ends_at).finish_non_exhaustive()
    }
}

impl NodeIdentity {
    /// When it is to be renewed: at two thirds of its time.
    pub fn renewed_at(&self) -> Timestamp {
        Timestamp(self.issued_at.0 + (self.ends_at.0 - self.issued_at.0) / 3 * 2)
    }

    /// How the node connects.
    ///
    /// # Errors
    /// An identity that cannot be used.
    pub(super) fn client_config(&self) -> Result<ClientConfig, IdentityError> {
        let of = |error: &dyn std::fmt::Display| IdentityError(error.to_string());
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.chain.as_bytes()).collect();
        let mut chain = chain.map_err(|error| of(&error))?;
        let authority = chain.pop().filter(|_| !chain.is_empty()).ok_or_else(|| of(&"it is incomplete"))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|error| of(&error))?;
        let verifier = verifier_of(&authority).map_err(|error| of(&error))?;
        configured(verifier, Some((chain, key))).map_err(|error| of(&error))
    }
}

fn verifier_of(authority: &CertificateDer<'static>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    built.map_err(|error| TlsError::General(error.to_string()))
}

fn configured(
    verifier: Arc<dyn ServerCertVerifier>,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = client::Resumption::disabled();
    Ok(config)
}

/// How a machine connects that has a token and no certificate yet.
pub(super) fn joining_config(authority: Fingerprint) -> Result<ClientConfig, TlsError> {
    configured(Arc::new(Joining(authority)), None)
}

/// Trusts the authority of a fingerprint: a front sends its authority's certificate behind its own.
#[derive(Debug)]
struct Joining(Fingerprint);

impl ServerCertVerifier for Joining {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let authority = intermediates.iter().find(|certificate| fingerprint(certificate) == self.0);
        let unknown = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let verifier = verifier_of(&authority.ok_or(unknown)?.clone().into_owned())?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = provider().signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
