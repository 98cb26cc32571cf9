//! Reports the end of a call to the URL that the call named: a webhook, signed according to Standard Webhooks 1.0.
//!
//! The row of a callback is written with the end of its call. It is taken for a few minutes, tried, and what went wrong is
//! written with the time of the next try; after eight it stays undelivered, on record with its call.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::uri::{Authority, Scheme};
use axum::http::{HeaderMap, Method, Request, Uri, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use faena_domain::Timestamp;
use faena_egress::{EgressPolicy, Reach, Reason, Tunnel};
use faena_protocol::db::{CallbackFinish, CallbackPostpone, CallbacksDue, CallbacksTake};
use faena_protocol::records::{Callback, CallbackJob};
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde::Serialize;
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::app::App;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::shares::Shares;
use crate::view::CallView;
use faena_scheduler::unix_ms;

/// The header that counts callbacks which led to one another.
const DEPTH: &str = "faena-depth";
/// More than these are a circle.
const MAX_DEPTH: u32 = 8;
/// The longest URL.
const MAX_URL: usize = 2048;
/// How long one try may take, from the look-up to the end of the reply.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is read of a reply, and dropped.
const MAX_REPLY: usize = 64 * 1024;
/// Tries at once to one host.
const PER_HOST: usize = 4;
/// Tries at once to all of them.
const AT_ONCE: usize = 32;
/// How often db is asked although no end was heard of: for tries that are due again.
const TICK: Duration = Duration::from_secs(2);
/// How long ends are gathered before db is asked.
const GATHER: Duration = Duration::from_millis(20);
/// Before a secret, as Standard Webhooks has it.
const SECRET: &str = "whsec_";

/// A secret that nobody has.
pub(crate) fn new_secret() -> String {
    let bytes = [uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()].concat();
    format!("{SECRET}{}", STANDARD.encode(bytes))
}

fn invalid(why: &str) -> Problem {
    Problem::new(ErrorCode::InvalidCallback, format!("the callback {why}"))
}

/// Where a URL leads.
struct Target {
    uri: Uri,
    host: String,
    port: u16,
    is_tls: bool,
}

impl Target {
    fn parse(url: &str) -> Result<Self, &'static str> {
        let uri: Uri = url.parse().map_err(|_| "is no URL")?;
        let is_tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err("is no http or https URL"),
        };
        let authority = uri.authority().map(Authority::as_str).unwrap_or_default();
        let default = if is_tls { 443 } else { 80 };
        let (host, port) = faena_egress::authority(authority, Some(default)).ok_or("names a user, or no host")?;
        Ok(Self { uri, host, port, is_tls })
    }
}

/// The callback that an invocation asks for. Which address a name has is judged when it is told.
pub(crate) fn accept(policy: &EgressPolicy, headers: &HeaderMap, url: Option<&str>) -> Reply<Option<Callback>> {
    let depth = headers.get(DEPTH).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
    if depth > MAX_DEPTH {
        let detail = format!("{depth} callbacks led to this call, one after the other; {MAX_DEPTH} may");
        return Err(Problem::new(ErrorCode::CallbackLoop, detail));
    }
    let Some(url) = url else { return Ok(None) };
    if url.len() > MAX_URL {
        return Err(invalid(&format!("is longer than {MAX_URL} bytes")));
    }
    let target = Target::parse(url).map_err(invalid)?;
    policy.judge_port(target.port).map_err(|denial| invalid(&format!("cannot be reached: {denial}")))?;
    if let Ok(address) = target.host.parse::<IpAddr>() {
        let judged = policy.judge(&Reach::public(), None, address, target.port);
        judged.map_err(|denial| invalid(&format!("leads to {address}, which cannot be reached: {denial}")))?;
    }
    Ok(Some(Callback { url: url.to_owned(), depth }))
}

/// `v1,` and the signature of id, time and body (Standard Webhooks 1.0, "Signature scheme").
fn sign(secret: &str, id: &str, timestamp: i64, body: &[u8]) -> String {
    let key = STANDARD.decode(secret.strip_prefix(SECRET).unwrap_or(secret)).unwrap_or_default();
    // A key of any length will do (RFC 2104, 2).
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&key) else { return String::new() };
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

#[derive(Serialize)]
struct Told<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: Timestamp,
    data: &'a CallView,
}

/// What every try needs.
#[derive(Clone)]
struct Sender {
    app: App,
    ca_bundle: Option<PathBuf>,
    /// Made when the first callback to https is.
    tls: Arc<OnceLock<Option<TlsConnector>>>,
    hosts: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
    room: Arc<Semaphore>,
    /// The same bound, of which no function may hold more than its part.
    shares: Shares,
    asker: faena_egress::Asker,
}

/// Delivers until told to stop. The next api repeats the deliveries that this interrupts.
pub(crate) async fn run(app: App, ca_bundle: Option<PathBuf>, stop: CancellationToken) {
    let sender = Sender {
        app: app.clone(),
        ca_bundle,
        tls: Arc::default(),
        hosts: Arc::default(),
        room: Arc::new(Semaphore::new(AT_ONCE)),
        shares: Shares::new(AT_ONCE as u64),
        asker: faena_egress::Asker::new(None),
    };
    let mut ends = app.scheduler().ends();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
            _ = ends.recv() => {
                // Many ends are one question.
                tokio::time::sleep(GATHER).await;
                ends = ends.resubscribe();
            }
        }
        while let Ok(true) = app.db().ask(&CallbacksDue {}).await {
            // What is taken begins at once, so no try is spent on waiting for others.
            let Some(Ok(first)) = stop.run_until_cancelled(Arc::clone(&sender.room).acquire_owned()).await else {
                return;
            };
            let limit = u32::try_from(sender.room.available_permits()).unwrap_or(0).saturating_add(1);
            let Ok(jobs) = app.db().ask(&CallbacksTake { limit }).await else { break };
            let mut places =
                std::iter::once(first).chain(std::iter::from_fn(|| Arc::clone(&sender.room).try_acquire_owned().ok()));
            for (job, place) in jobs.into_iter().zip(&mut places) {
                let (sender, stop) = (sender.clone(), stop.clone());
                tokio::spawn(async move {
                    stop.run_until_cancelled(Box::pin(sender.deliver(job))).await;
                    drop(place);
                });
            }
        }
    }
}

fn connector(bundle: &Path) -> Option<TlsConnector> {
    let mut roots = RootCertStore::empty();
    match CertificateDer::pem_file_iter(bundle) {
        Ok(certificates) => roots.add_parsable_certificates(certificates.flatten()),
        Err(error) => {
            warn!(%error, bundle = %bundle.display(), "callbacks to https cannot be made");
            return None;
        }
    };
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Some(TlsConnector::from(Arc::new(config)))
}

impl Sender {
    fn place(&self, host: &str) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock();
        hosts.retain(|_, places| Arc::strong_count(places) > 1);
        Arc::clone(hosts.entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(PER_HOST))))
    }

    async fn deliver(self, job: CallbackJob) {
        let (num, tries) = (job.call.num, job.tries);
        let host = Target::parse(&job.callback.url).map(|target| target.host).unwrap_or_default();
        let places = self.place(&host);
        let share = self.shares.take(Some((&job.namespace, &job.call.function)), 1);
        // A host that is silent, or a function whose hosts are, holds its own places alone: what else is for it goes back,
        // and another one is tried.
        let (Ok(_place), Some(_share)) = (places.try_acquire(), share) else {
            if let Err(error) = self.app.db().ask(&CallbackPostpone { num, tries }).await {
                debug!(%error, call = %num, "a callback that was taken is tried again later");
            }
            return;
        };
        let error = match tokio::time::timeout(PATIENCE, self.tell(job)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(format!("no reply within {PATIENCE:?}")),
        };
        match &error {
            None => debug!(call = %num, tries, "a callback was delivered"),
            Some(error) => info!(call = %num, tries, error, "a callback could not be delivered"),
        }
        if let Err(error) = self.app.db().ask_until_known(&CallbackFinish { num, tries, error }).await {
            warn!(%error, call = %num, "how a callback went could not be written");
        }
    }

    async fn tell(&self, job: CallbackJob) -> Result<(), String> {
        let target = Target::parse(&job.callback.url)?;
        let request = self.request(&target, job).await?;
        let (reach, host) = (Reach::public(), (target.host.as_str(), target.port));
        let connected = faena_egress::connect(self.app.egress(), (&reach, &self.asker), host, Tunnel::Yes).await;
        let (stream, _) = connected.map_err(|refusal| match &refusal.reason {
            Reason::Denied(denial) => format!("{} may not be reached: {denial}", refusal.target),
            _ => refusal.to_string(),
        })?;
        if !target.is_tls {
            return exchange(stream, request).await;
        }
        let tls = self.tls.get_or_init(|| self.ca_bundle.as_deref().and_then(connector));
        let tls = tls.as_ref().ok_or("no certificate authorities are known here (setting ca_bundle)")?;
        let name = ServerName::try_from(target.host.clone()).map_err(|error| error.to_string())?;
        exchange(tls.connect(name, stream).await.map_err(|error| error.to_string())?, request).await
    }

    async fn request(&self, target: &Target, job: CallbackJob) -> Result<Request<Full<Bytes>>, String> {
        // The same for every try, so that a receiver can recognise a repetition.
        let id = format!("call_{}_{}", job.call.num, job.call.created_at);
        let now = unix_ms();
        let depth = job.callback.depth + 1;
        let view =
            CallView::whole(job.call, &self.app.blobs_of(&job.namespace)).await.map_err(|error| error.to_string())?;
        let told = Told { kind: "call.ended", timestamp: Timestamp(now), data: &view };
        let body = serde_json::to_vec(&told).map_err(|error| error.to_string())?;
        let seconds = now / 1000;
        let path = target.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = target.uri.authority().map(Authority::as_str).unwrap_or_default();
        Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::HOST, authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("Faena/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &id)
            .header("webhook-timestamp", seconds.to_string())
            .header("webhook-signature", sign(&job.secret, &id, seconds, &body))
            .header(DEPTH, depth.to_string())
            .body(Full::new(body.into()))
            .map_err(|error| error.to_string())
    }
}

/// One request and its reply; only 2xx is delivered, and no redirect is followed.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(), String> {
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let driving = tokio::spawn(connection);
    let reply = sender.send_request(request).await.map_err(text);
    let outcome = match reply {
        Ok(reply) => {
            let status = reply.status();
            // Whatever it says is not ours to keep; that it says too much is its own affair.
            let _ = Limited::new(reply.into_body(), MAX_REPLY).collect().await;
            if status.is_success() { Ok(()) } else { Err(format!("it answers {status}")) }
        }
        Err(error) => Err(error),
    };
    driving.abort();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_specifications() {
        let (secret, id) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek");
        let signature = sign(secret, id, 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn only_what_may_be_reached_is_taken() {
        let policy = EgressPolicy::public(faena_egress::Resolvers::of_host());
        let code = |url: &str, depth: &'static str| {
            let headers = HeaderMap::from_iter([(
                header::HeaderName::from_static(DEPTH),
                header::HeaderValue::from_static(depth),
            )]);
            let refused =
                accept(&policy, &headers, Some(url)).map_err(|problem| serde_json::to_value(problem).unwrap());
            refused.map(|_| ()).map_err(|problem| problem["code"].as_str().unwrap().to_owned())
        };
        assert_eq!(code("https://hooks.example/x?y=1", "8"), Ok(()));
        assert_eq!(code("https://hooks.example/", "9"), Err("callback_loop".to_owned()));
        for url in [
            "ftp://hooks.example/",
            "https://me:secret@hooks.example/",
            "http://hooks.example:25/",
            "http://127.0.0.1/",
            "http://[::1]/",
            "http://169.254.169.254/latest",
            "nonsense",
        ] {
            assert_eq!(code(url, "0"), Err("invalid_callback".to_owned()), "{url}");
        }
    }
}
