//! Requests from the socket to the store, replies back.

use std::sync::Arc;
use std::time::Duration;

use faena_protocol::db::{Answered, FunctionsSeen, REPLY_ERROR, REPLY_OK, Reap, Reaped};
use faena_protocol::{DbError, DbRequest, Envelope};
use faena_transport::{Endpoint, Peer, Server, ServerEvent};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Store;

/// How often leases and ages are judged.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// The most replies that wait for the socket.
const REPLIES: usize = 4096;

/// Why the service could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be bound.
    #[error("cannot bind the socket {path}")]
    Bind {
        /// Where.
        path: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
}

/// Answers requests until told to stop.
///
/// # Errors
/// A socket that cannot be bound.
pub async fn serve(store: Arc<dyn Store>, endpoint: &Endpoint, stop: CancellationToken) -> Result<(), ServeError> {
    let bind = |source| ServeError::Bind { path: endpoint.path().display().to_string(), source };
    let mut server = Server::bind(endpoint).await.map_err(bind)?;
    let (replies, mut ready) = mpsc::channel::<(Peer, Vec<u8>)>(REPLIES);
    let handle = server.handle();
    tokio::spawn(async move {
        while let Some((peer, reply)) = ready.recv().await {
            handle.send(&peer, reply).await;
        }
    });
    let mut reap = tokio::time::interval(REAP_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = reap.tick() => ask_to_reap(store.as_ref()),
            event = server.next() => match event {
                Some(ServerEvent::Message(peer, bytes)) => answer(&store, peer, &bytes, &replies),
                Some(ServerEvent::Lost(_)) => {}
                None => return Ok(()),
            },
        }
    }
}

fn answer(store: &Arc<dyn Store>, peer: Peer, bytes: &[u8], replies: &mpsc::Sender<(Peer, Vec<u8>)>) {
    let request = match Envelope::decode(bytes) {
        Ok(request) => request,
        // Without an id there is no one to reply to.
        Err(error) => return warn!(%error, "a request was dropped"),
    };
    let (replies, id, source) = (replies.clone(), request.id.clone(), Arc::clone(store));
    let before = store.functions_seen();
    store.submit(
        &request,
        Box::new(move |result| match encode(id, result, seen(before, source.functions_seen())) {
            // A full queue of replies means that the peer does not read; it will ask again.
            Ok(reply) => drop(replies.try_send((peer, reply))),
            Err(error) => warn!(%error, "a reply was dropped"),
        }),
    );
}

/// What a reply says of the functions. If they changed while it was made, nothing of it may be cached.
fn seen(before: FunctionsSeen, after: FunctionsSeen) -> FunctionsSeen {
    if before == after { after } else { FunctionsSeen(after.0 - u64::from(after.is_settled())) }
}

fn encode(
    id: String,
    result: Result<Box<RawValue>, DbError>,
    functions: FunctionsSeen,
) -> Result<Vec<u8>, faena_protocol::EnvelopeError> {
    let whole = match result {
        Ok(answer) => Envelope::new(id.as_str(), REPLY_OK, &Answered { functions, answer })?.encode(),
        Err(error) => Envelope::new(id.as_str(), REPLY_ERROR, &error)?.encode(),
    };
    // The client must be told that there is no answer rather than wait for it.
    whole.or_else(|error| {
        let error = DbError::Internal { message: error.to_string() };
        Envelope::new(id, REPLY_ERROR, &error)?.encode()
    })
}

fn ask_to_reap(store: &dyn Store) {
    let Ok(request) = Envelope::new("reap", Reap::TYPE, &Reap {}) else { return };
    store.submit(
        &request,
        Box::new(|result| match result.map(|reply| serde_json::from_str::<Reaped>(reply.get())) {
            Ok(Ok(reaped)) if reaped != Reaped::default() => {
                info!(lost = reaped.lost, expired = reaped.expired, builds = reaped.builds, "ended what had run out");
            }
            Ok(_) => {}
            Err(error) => warn!(%error, "judging leases and ages failed"),
        }),
    );
}
