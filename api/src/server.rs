//! The accept loop. axum's own has no bound for headers and none for connections.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::ApiConfig;
use crate::app::App;
use crate::stall::Impatient;

/// How long a client may take to send the head of a request.
const HEADER_READ: Duration = Duration::from_secs(10);
/// The most headers, and the most bytes that are read before they are parsed.
const MAX_HEADERS: usize = 100;
const BUFFER: usize = 32 * 1024;
/// The pause after an accept that failed: descriptors may come free meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until told to stop, then waits for running requests, at most as long as the grace and a little.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    config: &ApiConfig,
    stop: &CancellationToken,
    app: &App,
) {
    let connections = Arc::new(Semaphore::new(config.connections));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            () = stop.cancelled() => break,
        };
        let Some((stream, permit)) = accepted else { continue };
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_READ)
            .max_headers(MAX_HEADERS)
            .max_buf_size(BUFFER)
            .half_close(false)
            .serve_connection(TokioIo::new(Impatient::new(stream)), service);
        let connection = graceful.watch(connection);
        let open = app.metrics().connections.clone();
        open.inc();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection ended");
            }
            open.dec();
            drop(permit);
        });
    }
    drop(listener);
    // Whoever only waits is answered now.
    app.draining().cancel();
    info!("no longer listening; finishing what runs");
    if tokio::time::timeout(config.grace + Duration::from_secs(2), graceful.shutdown()).await.is_err() {
        warn!("some requests did not finish in time");
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Answers are written whole; waiting for more would only delay them.
            let _ = stream.set_nodelay(true);
            Some((stream, permit))
        }
        Err(error) => {
            warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}
