//! The platform's certificate authority.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use faena_domain::{Fingerprint, NodeName, Timestamp};
use faena_protocol::front::FRONT_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber, SignatureAlgorithm,
};
use sha2::{Digest, Sha256};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// How long a certificate lasts; it is renewed at two thirds.
const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the authority's own lasts.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// How much earlier than now a certificate begins: clocks of machines differ.
const SKEW: Duration = Duration::from_secs(3600);
/// The bytes of an uncompressed point of P-256 (SEC 1, 2.3.3).
const POINT: usize = 65;

/// Why an authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// One of its files.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// One of its files is there, and the other is not.
    #[error("{0} is not there and the other file of the authority is; restore it from a backup, or remove both")]
    Half(PathBuf),
    /// A key or a certificate.
    #[error("the key or the certificate of the authority cannot be used: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The certificate's file.
    #[error("{0} holds no certificate as PEM")]
    NoCertificate(PathBuf),
    /// The key that a node sent.
    #[error("the public key of the node is no point of P-256 in base64")]
    PublicKey,
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct IssuedCertificate {
    /// It, and the authority's, as PEM.
    pub chain: String,
    /// What it is known by.
    pub fingerprint: Fingerprint,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When it ends.
    pub ends_at: Timestamp,
}

/// Issues certificates. Its key is the one thing that must not leave the machine.
pub struct Authority {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// What a certificate is for.
enum Role<'a> {
    Node(&'a NodeName),
    Front,
}

/// The key of a node.
struct NodeKey([u8; POINT]);

impl PublicKeyData for NodeKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// What a certificate is known by.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    Fingerprint(Sha256::digest(certificate).into())
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn named(name: &str, lasts: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(uuid::Uuid::new_v4().as_bytes()));
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - SKEW).into(), (now + lasts).into());
    params
}

fn authority_params() -> CertificateParams {
    let mut params = named("Faena platform", AUTHORITY_LIFETIME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::File::options().create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

impl Authority {
    /// The authority whose key and certificate are in these files, which are made where neither is there.
    ///
    /// # Errors
    /// Files that cannot be read or written, or hold no authority.
    pub fn open(key: &Path, certificate: &Path) -> Result<Self, AuthorityError> {
        let file = |path: &Path, source| AuthorityError::File { path: path.to_owned(), source };
        match (key.exists(), certificate.exists()) {
            (false, false) => {
                let made = KeyPair::generate()?;
                let own = authority_params().self_signed(&made)?;
                write_private(key, &made.serialize_pem()).map_err(|error| file(key, error))?;
                write_private(certificate, &own.pem()).map_err(|error| file(certificate, error))?;
            }
            (true, true) => {}
            (true, false) => return Err(AuthorityError::Half(certificate.to_owned())),
            (false, true) => return Err(AuthorityError::Half(key.to_owned())),
        }
        let closed = std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600));
        closed.map_err(|error| file(key, error))?;
        let key_pem = std::fs::read_to_string(key).map_err(|error| file(key, error))?;
        let pem = std::fs::read_to_string(certificate).map_err(|error| file(certificate, error))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| AuthorityError::NoCertificate(certificate.to_owned()))?;
        Ok(Self { key: KeyPair::from_pem(&key_pem)?, certificate: der, pem })
    }

    /// What tokens name it by.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.certificate)
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate for a node's key, given as in [`faena_protocol::front::Channel::Join`].
    ///
    /// # Errors
    /// A key that is none.
    pub fn issue_node(&self, name: &NodeName, public_key: &str) -> Result<IssuedCertificate, AuthorityError> {
        let bytes = STANDARD.decode(public_key).map_err(|_| AuthorityError::PublicKey)?;
        let point = <[u8; POINT]>::try_from(bytes).ok().filter(|point| point[0] == 4);
        let certificate = self.issue(Role::Node(name), &NodeKey(point.ok_or(AuthorityError::PublicKey)?))?;
        let chain = format!("{}{}", certificate.pem(), self.pem);
        let now = SystemTime::now();
        let (issued_at, ends_at) = (timestamp(now), timestamp(now + LIFETIME));
        Ok(IssuedCertificate { chain, fingerprint: fingerprint(certificate.der()), issued_at, ends_at })
    }

    /// A certificate for a front, with a key made for it; and when it is to be renewed.
    pub(super) fn issue_front(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, SystemTime), AuthorityError> {
        let key = KeyPair::generate()?;
        let certificate = self.issue(Role::Front, &key)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        Ok((chain, PrivateKeyDer::Pkcs8(key.serialize_der().into()), SystemTime::now() + LIFETIME * 2 / 3))
    }

    /// Nodes are clients and the front is the server: neither certificate works for the other.
    fn issue(&self, role: Role<'_>, key: &impl PublicKeyData) -> Result<rcgen::Certificate, AuthorityError> {
        let (name, host, usage) = match role {
            Role::Node(name) => (name.as_str(), "node.faena.internal".to_owned(), ExtendedKeyUsagePurpose::ClientAuth),
            Role::Front => ("front", FRONT_NAME.to_owned(), ExtendedKeyUsagePurpose::ServerAuth),
        };
        let mut params = named(name, LIFETIME);
        params.distinguished_name.push(DnType::OrganizationalUnitName, if name == "front" { "front" } else { "node" });
        params.subject_alt_names = CertificateParams::new(vec![host])?.subject_alt_names;
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &Issuer::from_params(&authority_params(), &self.key))?)
    }
}
