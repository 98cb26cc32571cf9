//! A front with a database and blobs behind it, and an api that a test plays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use faena_blob::BlobStore;
use faena_db::{SqliteStore, StoreSettings};
use faena_db_client::{DbClient, NodeDirectory};
use faena_domain::units::ByteSize;
use faena_domain::{
    BlobKey, CallNum, DigestKind, Epoch, Fingerprint, Labels, Limits, Namespace, Network, Owner, Payload, Serving,
    Timestamp, Version,
};
use faena_front::{Front, FrontConfig};
use faena_protocol::Envelope;
use faena_protocol::db::NodeTokenMake;
use faena_protocol::front::{ALPN, Channel, FRONT_NAME, JoinToken, Open, PROTOCOL};
use faena_protocol::node::{Lease, NodeInfo, TYPE, ToApi, ToWorker};
use faena_protocol::records::{CallJob, Code, NodeTokenRecord};
use faena_telemetry::Metrics;
use faena_transport::front::{DialError, FrontDialer, JoinKey, NodeIdentity};
use faena_transport::{Endpoint, Peer, Server, ServerEvent};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme, version};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A client's certificate and its key.
pub(crate) type OwnCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A front, and what is behind it.
pub(crate) struct Platform {
    pub(crate) address: String,
    pub(crate) db: DbClient,
    pub(crate) blobs: BlobStore,
    authority: Fingerprint,
    api: Server,
    folder: tempfile::TempDir,
    _stop: DropGuard,
}

/// Waits at most so many seconds.
pub(crate) async fn within<T>(seconds: u64, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), work).await.expect("it takes too long")
}

/// A machine joins.
pub(crate) async fn join(platform: &Platform, token: &JoinToken, name: &str) -> Result<NodeIdentity, DialError> {
    let key = JoinKey::new().unwrap();
    faena_transport::front::join(&platform.address, token, name.parse().unwrap(), &key).await
}

/// What a worker says when it is connected.
pub(crate) fn hello(worker: &str, direct: &[&str]) -> Bytes {
    hello_of(worker, "1", direct)
}

/// The same, of one run.
pub(crate) fn hello_of(worker: &str, incarnation: &str, direct: &[&str]) -> Bytes {
    hello_as(worker, incarnation, 4, direct)
}

/// The same, with so many slots.
pub(crate) fn hello_with_slots(worker: &str, slots: u32) -> Bytes {
    hello_as(worker, "1", slots, &[])
}

fn hello_as(worker: &str, incarnation: &str, slots: u32, direct: &[&str]) -> Bytes {
    let node = NodeInfo {
        owner: Owner { worker: worker.to_owned(), incarnation: incarnation.to_owned() },
        engines: Vec::new(),
        slots,
        build_slots: 2,
        memory_bytes: 0,
        version: String::new(),
        direct: direct.iter().map(|lane| (*lane).to_owned()).collect(),
    };
    let hello = ToApi::Hello { node, calls: Vec::new(), ended: Vec::new(), builds: Vec::new() };
    Envelope::new("", TYPE, &hello).unwrap().encode().unwrap().into()
}

/// A call whose code is this blob.
pub(crate) fn call_of(archive: BlobKey) -> ToWorker {
    let code = Code {
        namespace: Namespace::default(),
        function: "f".parse().unwrap(),
        version: Version(1),
        engine: None,
        image: String::new(),
        image_id: None,
        image_content: None,
        path: "/ws".to_owned(),
        run: "true".to_owned(),
        archive,
        root: String::new(),
        env: std::collections::BTreeMap::new(),
        config: None,
        limits: Limits::MAXIMUM,
        network: Network::default(),
        networks: Vec::new(),
        calls: Vec::new(),
        scopes: Vec::new(),
        concurrency: None,
        serving: Serving::default(),
        nodes: Vec::new(),
        share: faena_domain::NamespaceShare::default(),
        since: 0,
    };
    let job = CallJob {
        num: CallNum(1),
        epoch: Epoch(1),
        attempt: 1,
        code,
        params: Payload::empty(),
        body: None,
        request: None,
        direct: false,
        timeout_ms: 1000,
        expires: false,
        deadline_unix_ms: 0,
        queue_ms: 0,
        traceparent: String::new(),
        has_row: true,
        placement: None,
    };
    ToWorker::Call { job: Box::new(job), lease: Lease { boot: String::new(), until_ms: 0 } }
}

impl Platform {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let settings = StoreSettings { disk_reserve: ByteSize(0), ..StoreSettings::default() };
        let metrics = Metrics::default().register(faena_db::metrics::Metrics::register);
        let store = Arc::new(SqliteStore::open(&at("faena.db"), &at("secret.key"), settings, &metrics).unwrap());
        let stop = CancellationToken::new();
        let socket = |name: &str| Endpoint::new(at(name)).unwrap();
        let (db_socket, db_stop) = (socket("db.sock"), stop.clone());
        tokio::spawn(async move { faena_db::serve(store, &db_socket, db_stop).await });
        let (db, api) = (DbClient::connect(socket("db.sock")), Server::bind(&socket("api.sock")).await.unwrap());
        let (blobs, directory) = (BlobStore::local(&at("blobs")).unwrap(), NodeDirectory::new(db.clone()));
        tokio::spawn(stop.clone().run_until_cancelled_owned(directory.clone().follow()));
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = FrontConfig {
            listen: port,
            public: port.to_string(),
            authority_key: at("ca.key"),
            authority_certificate: at("ca.pem"),
            sockets: folder.path().to_owned(),
            api: socket("api.sock"),
            db: socket("db.sock"),
            internal: at("internal.sock"),
            disk_reserve: ByteSize(0),
        };
        let front = Front::bind(config, db.clone(), directory, blobs.clone()).await.unwrap();
        let authority = front.info().authority;
        tokio::spawn(front.serve(stop.clone()));
        Self { address: port.to_string(), db, blobs, authority, api, folder, _stop: stop.drop_guard() }
    }

    pub(crate) fn folder(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    pub(crate) fn socket(&self, name: &str) -> Endpoint {
        Endpoint::new(self.folder.path().join(name)).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A token that expires in so many seconds; its node has the label `zone=a`.
    pub(crate) async fn token(&self, seconds: i64) -> JoinToken {
        let (id, secret) = (uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string());
        let now = SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let token = NodeTokenRecord {
            id: id.clone(),
            secret_sha256: hex::encode(Sha256::digest(&secret)),
            labels: serde_json::from_str(r#"{"zone":"a"}"#).unwrap(),
            expires_at: Timestamp(i64::try_from(now).unwrap() + seconds * 1000),
        };
        self.db.ask(&NodeTokenMake { token }).await.unwrap();
        JoinToken { id, secret, authority: self.authority, role: "node".to_owned(), labels: Labels::default() }
    }

    /// A node that has joined.
    pub(crate) async fn node(&self, name: &str) -> NodeIdentity {
        join(self, &self.token(3600).await, name).await.unwrap()
    }

    /// What opens channels as a node that has joined.
    pub(crate) async fn dialer(&self, name: &str) -> FrontDialer {
        FrontDialer::new(&self.address, &self.node(name).await).unwrap()
    }

    /// What the api hears next, and from whom.
    pub(crate) async fn heard(&mut self) -> (ToApi, Peer) {
        loop {
            match within(10, self.api.next()).await {
                Some(ServerEvent::Message(peer, bytes)) => {
                    return (Envelope::decode(&bytes).unwrap().parse().unwrap(), peer);
                }
                Some(ServerEvent::Lost(_)) => {}
                None => panic!("the api is gone"),
            }
        }
    }

    /// Tells a node something as the api does.
    pub(crate) async fn tell(&self, peer: &Peer, message: &ToWorker) {
        self.api.handle().send(peer, Envelope::new("", TYPE, message).unwrap().encode().unwrap()).await;
    }

    /// The key that bytes have in the default namespace.
    pub(crate) async fn key(&self, digest: DigestKind, bytes: &'static [u8]) -> BlobKey {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = BlobStore::local(folder.path()).unwrap().of(&Namespace::default());
        elsewhere.put_bytes(digest, Bytes::from_static(bytes)).await.unwrap()
    }

    /// TLS without a certificate.
    pub(crate) async fn stranger(&self) -> TlsStream<TcpStream> {
        self.connected(None).await.unwrap()
    }

    async fn connected(&self, own: Option<OwnCertificate>) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone));
        let mut config = match own {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        let socket = TcpStream::connect(&self.address).await?;
        let name = ServerName::try_from(FRONT_NAME).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, socket).await
    }

    /// What the front says to a client with this certificate that asks for db.
    pub(crate) async fn dial_with(&self, own: OwnCertificate) -> Result<String, String> {
        let mut stream = self.connected(Some(own)).await.map_err(|error| format!("alert: {error:?}"))?;
        let open = serde_json::to_vec(&Open { protocol: PROTOCOL, channel: Channel::Db }).unwrap();
        let asked = async {
            stream.write_u32(u32::try_from(open.len()).unwrap()).await?;
            stream.write_all(&open).await?;
            let mut reply = vec![0; stream.read_u32().await? as usize];
            stream.read_exact(&mut reply).await?;
            Ok::<_, std::io::Error>(String::from_utf8(reply).unwrap())
        };
        asked.await.map_err(|error| format!("alert: {error:?}"))
    }

    /// The same for the certificate of a node, of whichever platform.
    pub(crate) async fn dial_as(&self, identity: &NodeIdentity) -> Result<String, String> {
        let fields = serde_json::to_value(identity).unwrap();
        let text = |name: &str| fields[name].as_str().unwrap().to_owned();
        let chain = CertificateDer::pem_slice_iter(text("chain").as_bytes()).map(Result::unwrap).collect();
        self.dial_with((chain, PrivateKeyDer::from_pem_slice(text("key").as_bytes()).unwrap())).await
    }

    /// A certificate of the authority's that ends in so many hours, for a client or not.
    pub(crate) fn certificate(&self, hours: i64, is_for_client: bool) -> OwnCertificate {
        let authority = KeyPair::from_pem(&std::fs::read_to_string(self.file("ca.key")).unwrap()).unwrap();
        let mut issuer = CertificateParams::default();
        issuer.distinguished_name = rcgen::DistinguishedName::new();
        issuer.distinguished_name.push(rcgen::DnType::CommonName, "Faena platform");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["node.faena.internal".to_owned()]).unwrap();
        let (hour, now) = (Duration::from_secs(3600), SystemTime::now());
        params.not_before = (now - 3 * hour).into();
        let end = hour * u32::try_from(hours.unsigned_abs()).unwrap();
        params.not_after = if hours < 0 { (now - end).into() } else { (now + end).into() };
        let usage =
            if is_for_client { ExtendedKeyUsagePurpose::ClientAuth } else { ExtendedKeyUsagePurpose::ServerAuth };
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &Issuer::from_params(&issuer, &authority)).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }
}

/// Accepts every server certificate: these tests are about the server's checks of clients.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
