//! Connections of functions that call other functions, on a node whose api is on another machine.

use std::io;
use std::path::Path;
use std::time::Duration;

use faena_protocol::front::Channel;
use faena_transport::front::FrontDialer;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

/// The pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens where an api of this machine would, and passes connections on through the front, until it is aborted.
///
/// # Errors
/// A socket that cannot be bound.
pub fn forward_internal(path: &Path, dialer: FrontDialer) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    Ok(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(forward(stream, dialer.clone()))),
                Err(error) => {
                    warn!(%error, "a connection of a function could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

async fn forward(mut stream: UnixStream, dialer: FrontDialer) {
    let passed = async {
        let (frames, _) = dialer.open(Channel::Internal).await.map_err(io::Error::other)?;
        let mut api = frames.into_bytes().map_err(io::Error::other)?;
        copy_bidirectional(&mut stream, &mut api).await
    };
    if let Err(error) = passed.await {
        debug!(%error, "a connection of a function ended");
    }
}
