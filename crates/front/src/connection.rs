//! One connection: its handshake, who it is, and which channel it asks for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use faena_db_client::KnownNodes;
use faena_domain::Fingerprint;
use faena_protocol::front::{Channel, MAX_BLOB_PART, MAX_FRAME, Open, PROTOCOL, Refusal};
use faena_transport::front::FrameStream;
use tokio::net::TcpStream;
use tracing::{debug, info, warn};

use crate::nodes::Node;
use crate::places::Place;
use crate::refusal::{Refused, refuse};
use crate::{Shared, api_channel, blobs, db_channel, internal, joining, lane};

/// How long a client may take until it has said what it wants.
const OPENING: Duration = Duration::from_secs(5);

pub(crate) async fn serve(shared: Arc<Shared>, socket: TcpStream, address: SocketAddr, stranger: Place<IpAddr>) {
    let opening = async {
        let mut accepted = shared.acceptor.accept(socket).await.map_err(|error| error.to_string())?;
        let open: Open = accepted.frames.receive_json().await.map_err(|error| error.to_string())?;
        Ok((accepted, open))
    };
    let (mut accepted, open) = match tokio::time::timeout(OPENING, opening).await {
        Ok(Ok(opened)) => opened,
        Ok(Err::<_, String>(error)) => return debug!(%address, error, "a connection to the front came to nothing"),
        Err(_) => return debug!(%address, "a client of the front said nothing in time"),
    };
    if let Err(message) = PROTOCOL.serve(open.protocol) {
        return refuse(&mut accepted.frames, Refused(Refusal::Version, message)).await;
    }
    let Some(certificate) = accepted.certificate else {
        let join = tokio::time::timeout(OPENING, joining::join(&shared, &mut accepted.frames, open.channel));
        return drop(join.await);
    };
    let node = match admitted(&shared, &certificate).await {
        Ok(node) => node,
        Err(refused) => {
            info!(%address, message = refused.1, "a node is not admitted");
            return refuse(&mut accepted.frames, refused).await;
        }
    };
    let Some(_place) = shared.places.node(&node.name.key()) else {
        return refuse(&mut accepted.frames, Refused::busy("the node has too many connections already")).await;
    };
    drop(stranger);
    shared.places.admitted(address.ip());
    accepted.frames.permit_frames_of(MAX_FRAME);
    tokio::select! {
        () = serve_channel(&shared, &node, certificate, accepted.frames, open.channel) => {}
        () = removed(&shared, &node) => {
            shared.nodes.forget(&node);
            info!(node = %node.name, "a connection of a node that was removed is cut off");
        }
    }
}

/// The node whose certificate it is.
async fn admitted(shared: &Shared, certificate: &Fingerprint) -> Result<Arc<Node>, Refused> {
    let find = |known: &KnownNodes| known.of_certificate(certificate).map(|record| shared.nodes.get(record));
    if let Some(node) = find(&shared.directory.known()) {
        return Ok(node);
    }
    // One that has joined a moment ago.
    let known = shared.directory.refresh().await;
    let known = known.map_err(|_| Refused::busy("the platform does not know its nodes yet"))?;
    find(&known).ok_or_else(|| {
        let message = "this node was removed from the platform; to bring it back, join again with a new token";
        Refused(Refusal::NotAdmitted, message.to_owned())
    })
}

/// Returns when a node is part of the platform no longer. A certificate that was renewed since does not end its connections.
async fn removed(shared: &Shared, node: &Node) {
    let mut known = shared.directory.subscribe();
    // The directory lives as long as the front.
    let is_removed = known.wait_for(|known| !node.is_known(known)).await.is_ok();
    if !is_removed {
        std::future::pending::<()>().await;
    }
}

async fn serve_channel(
    shared: &Arc<Shared>,
    node: &Arc<Node>,
    certificate: Fingerprint,
    mut frames: FrameStream,
    channel: Channel,
) {
    if matches!(channel, Channel::BlobGet { .. } | Channel::BlobPut { .. }) {
        frames.permit_frames_of(MAX_BLOB_PART);
    }
    let refused = match channel {
        Channel::Join { .. } => {
            Err(Refused::not_permitted(format!("this connection is the node {}'s; it has joined already", node.name)))
        }
        Channel::Renew { public_key } => joining::renew(shared, node, certificate, &mut frames, &public_key).await,
        Channel::Api => return api_channel::serve(shared, node, frames).await,
        Channel::Db => return db_channel::serve(shared, node, frames).await,
        Channel::Direct { lane } => return lane::serve(shared, node, frames, lane).await,
        Channel::BlobGet { namespace: _, key, offset } => blobs::get(shared, node, &mut frames, &key, offset).await,
        Channel::BlobPut { namespace, key, bytes } => {
            return blobs::put(shared, node, frames, (namespace, key, bytes)).await;
        }
        Channel::Internal => return internal::serve(shared, node, frames).await,
    };
    if let Err(refused) = refused {
        warn!(node = %node.name, message = refused.1, "a node is refused what it asks for");
        refuse(&mut frames, refused).await;
    }
}
