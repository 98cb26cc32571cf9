//! Calls of functions by functions: connections from instances, which a worker opens and says whose they are.
//!
//! No route of the API is reachable here. A connection has one request; what it calls is what the worker named.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, StatusCode, header};
use faena_auth::Scopes;
use faena_domain::FunctionScope;
use faena_header_case::HeadStream;
use faena_protocol::internal::{InternalCall, MAX_PREFACE};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::app::App;
use crate::calling::CallingFunction;
use crate::http_call::{self, Client};
use crate::server::{PAUSE, connections_of_http};
use crate::shares::Shares;
use crate::stall::WriteTimeout;

/// Connections at once.
const CONNECTIONS: usize = 1024;
/// How long a worker may take to say whose a connection is.
const PREFACE: Duration = Duration::from_secs(5);

/// The socket for workers of this machine.
#[derive(Debug)]
pub(crate) struct InternalListener(UnixListener);

impl InternalListener {
    /// Binds it; what an earlier api left at its place is removed.
    pub(crate) fn bind(path: &PathBuf) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        UnixListener::bind(path).map(Self)
    }

    /// Serves until told to stop.
    pub(crate) async fn serve(self, app: App, stop: CancellationToken) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        let shares = Shares::new(CONNECTIONS as u64);
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = self.0.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (app, stop, shares) = (app.clone(), stop.clone(), shares.clone());
                    tokio::spawn(async move {
                        if let Err(error) = answer(app, stream, &shares, stop).await {
                            debug!(%error, "a connection of a function ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!(%error, "a connection of a function could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Answers the one request of a connection.
async fn answer(app: App, mut stream: UnixStream, shares: &Shares, stop: CancellationToken) -> io::Result<()> {
    let calling = tokio::time::timeout(PREFACE, calling(&mut stream)).await??;
    let share = shares.take(Some((&calling.namespace, &calling.name)), 1);
    let _share = share.ok_or_else(|| io::Error::other("the function has as many connections open as one may have"))?;
    let stream = HeadStream::new(WriteTimeout::new(stream));
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let client =
        Client { names: stream.names(), address, is_secure: false, peer: None, calling: Some(Arc::new(calling)) };
    let service = service_fn(move |request| {
        let (app, client) = (app.clone(), client.clone());
        async move {
            let mut response = http_call::answer(&app, request, &client).await;
            // The preface describes one moment, so a connection has one request.
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = connections_of_http().serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection.with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(io::Error::other)
}

async fn calling(stream: &mut UnixStream) -> io::Result<CallingFunction> {
    let length = stream.read_u16().await?;
    if length > MAX_PREFACE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut preface = vec![0; usize::from(length)];
    stream.read_exact(&mut preface).await?;
    let InternalCall { namespace, caller, scopes, target, depth, remaining_ms } = serde_json::from_slice(&preface)?;
    let deadline = Instant::now() + Duration::from_millis(remaining_ms);
    let names: Vec<&str> = scopes.iter().map(FunctionScope::as_str).collect();
    let scopes = Scopes::parse(&names).map_err(io::Error::other)?;
    Ok(CallingFunction { namespace, name: caller, scopes, target, depth, deadline })
}
