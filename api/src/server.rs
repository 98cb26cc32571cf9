//! The accept loop. axum's own has no bound for headers and none for connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tower::ServiceExt;
use tracing::{debug, info, warn};

use faena_domain::limits::MAX_HEADER_BYTES;
use faena_header_case::HeadStream;

use crate::ApiConfig;
use crate::access::{Origin, Peer, client_address};
use crate::app::App;
use crate::http_call::{self, Client};
use crate::problem::Problem;
use crate::routes::{self, invoke};
use crate::stall::WriteTimeout;
use crate::tls::Tls;

/// How long a client may take to send the head of a request.
const HEADER_READ: Duration = Duration::from_secs(10);
/// The most bytes that are read before they are parsed: the headers that are permitted, and the first line.
const BUFFER: usize = MAX_HEADER_BYTES + 8 * 1024;
/// The pause after an accept that failed: descriptors may come free meanwhile.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// Serves until told to stop, then waits for running requests, at most as long as the grace and a little.
pub(crate) async fn serve(
    (listener, tls): (TcpListener, Option<Tls>),
    router: Router,
    config: &ApiConfig,
    stop: &CancellationToken,
    app: &App,
) -> std::io::Result<()> {
    let here = app.shared().clone();
    let shards = if config.shards.is_empty() { vec![here.clone()] } else { config.shards.clone() };
    let listener = listener.into_std()?;
    let connections = Arc::new(Semaphore::new(config.connections));
    let most = config.grace + Duration::from_secs(2);
    let mut serving = Vec::new();
    for shard in shards {
        let (listener, stop, app, router) = (listener.try_clone()?, stop.clone(), app.clone(), router.clone());
        let (shared, connections, tls) = (here.clone(), Arc::clone(&connections), tls.clone());
        serving.push(shard.spawn(async move {
            let app = app.on_this_thread();
            let accepting = routes::accepting(app.clone());
            let edge = Edge { accepting, app, router, shared, connections, tls, most };
            edge.serve(TcpListener::from_std(listener)?, &stop).await
        }));
    }
    drop(listener);
    stop.cancelled().await;
    // Clients that only wait get a reply now.
    app.draining().cancel();
    info!("no longer listening; finishing what runs");
    for shard in serving {
        shard.await.map_err(std::io::Error::other)??;
    }
    Ok(())
}

/// What every thread that serves connections needs.
#[derive(Clone)]
struct Edge {
    app: App,
    /// What is answered once it is stored.
    accepting: Router,
    router: Router,
    /// Where everything else runs.
    shared: Handle,
    connections: Arc<Semaphore>,
    tls: Option<Tls>,
    /// How long running requests may take at a stop.
    most: Duration,
}

impl Edge {
    async fn serve(self, listener: TcpListener, stop: &CancellationToken) -> std::io::Result<()> {
        let open = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &self.connections) => accepted,
                () = stop.cancelled() => break,
            };
            let Some((stream, peer, permit)) = accepted else { continue };
            let Ok(ours) = stream.local_addr() else { continue };
            let (edge, peer) = (self.clone(), Arc::new(Peer::new(ours, peer)));
            let (count, stop) = (self.app.metrics().connections.clone(), stop.clone());
            count.inc();
            open.spawn(async move {
                let ended = match edge.tls.clone() {
                    Some(tls) => match stop.run_until_cancelled(tls.accept(stream)).await {
                        Some(Ok(stream)) => edge.connection(stream, peer, true, &stop).await,
                        Some(Err(error)) => Err(error.into()),
                        None => Ok(()),
                    },
                    None => edge.connection(stream, peer, false, &stop).await,
                };
                if let Err(error) = ended {
                    debug!(%error, "a connection ended");
                }
                count.dec();
                drop(permit);
            });
        }
        drop(listener);
        let tunnels = self.app.tunnels();
        open.close();
        let finished = async {
            open.wait().await;
            // Connections may have become WebSockets until now.
            tunnels.close();
            tunnels.wait().await;
        };
        if tokio::time::timeout(self.most, finished).await.is_err() {
            warn!("some requests did not finish in time");
        }
        Ok(())
    }

    /// Serves one connection until it ends, or until its request is answered when told to stop.
    async fn connection(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Arc<Peer>,
        is_secure: bool,
        stop: &CancellationToken,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let stream = HeadStream::new(WriteTimeout::new(stream));
        let client =
            Client { names: stream.names(), address: peer.address(), is_secure, peer: Some(peer), calling: None };
        let service = service_fn(move |request| self.clone().answer(request, client.clone()));
        let connection = connections_of_http().serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection.with_upgrades());
        tokio::select! {
            ended = connection.as_mut() => ended?,
            () = stop.cancelled() => {
                // The request under way is answered, and none after it is read.
                connection.as_mut().graceful_shutdown();
                connection.await?;
            }
        }
        Ok(())
    }

    /// Answers on this thread what an instance can be asked at once and what is only stored; everything else runs where it
    /// may take its time.
    async fn answer(self, mut request: Request<Incoming>, mut client: Client) -> Result<Response<Body>, Infallible> {
        let trusted = self.app.trusted_proxies();
        if !trusted.is_empty() {
            client.address = client_address(client.address, request.headers(), trusted);
            let is_proxied = client.peer.as_ref().is_some_and(|peer| peer.address() != client.address);
            let says_https = || request.headers().get("x-forwarded-proto").is_some_and(|scheme| scheme == "https");
            client.is_secure |= is_proxied && says_https();
        }
        if self.app.hosts().is_call(&request) {
            return Ok(http_call::answer(&self.app, request, &client).await);
        }
        request.extensions_mut().insert(Origin {
            address: client.address,
            peer: client.peer.clone(),
            is_secure: client.is_secure,
        });
        if invoke::is_only_stored(&request) {
            return self.accepting.oneshot(request).await;
        }
        // A request whose client goes away is not gone on with.
        let asked = AbortOnDropHandle::new(self.shared.spawn(self.router.oneshot(request)));
        match asked.await {
            Ok(response) => response,
            // A panic that the router's own layer did not catch.
            Err(error) => Ok(Problem::internal("answering", &error).into_response()),
        }
    }
}

/// How connections are served, whoever opens them. More than MAX_HEADERS headers are refused: that is hyper's own bound, which
/// costs more where it is named.
pub(crate) fn connections_of_http() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ)
        .title_case_headers(true)
        .max_buf_size(BUFFER)
        .half_close(false);
    builder
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            // Answers are written whole; waiting for more would only delay them.
            let _ = stream.set_nodelay(true);
            Some((stream, peer, permit))
        }
        Err(error) => {
            warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}
