//! A machine becomes a node, and a node gets its next certificate.

use faena_domain::Fingerprint;
use faena_protocol::DbError;
use faena_protocol::db::{NodeJoin, NodeRenew};
use faena_protocol::front::{Channel, Opened, Refusal};
use faena_transport::front::{FrameStream, IssuedCertificate};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use crate::Shared;
use crate::nodes::Node;
use crate::refusal::{Refused, refuse};

/// What db says, to a node.
fn refused(error: DbError) -> Refused {
    match error {
        DbError::NotAdmitted { message } => Refused(Refusal::NotAdmitted, message),
        error => Refused::busy(error.to_string()),
    }
}

fn certificate(IssuedCertificate { chain, issued_at, ends_at, .. }: IssuedCertificate) -> Opened {
    Opened::Certificate { chain, issued_at, ends_at }
}

/// Takes in who has a token and no certificate.
pub(crate) async fn join(shared: &Shared, frames: &mut FrameStream, channel: Channel) {
    match joined(shared, channel).await {
        // A node that does not hear it has spent its token: its operator makes another.
        Ok(issued) => drop(frames.send_json(&certificate(issued)).await),
        Err(denied) => {
            warn!(message = denied.1, "a machine may not join");
            refuse(frames, denied).await;
        }
    }
}

async fn joined(shared: &Shared, channel: Channel) -> Result<IssuedCertificate, Refused> {
    let Channel::Join { id, secret, name, public_key } = channel else {
        let message = "a node shows its certificate; one that has none joins with a token (faena worker --join TOKEN)";
        return Err(Refused(Refusal::NotAdmitted, message.to_owned()));
    };
    let issued = shared.authority.issue_node(&name, &public_key);
    let issued = issued.map_err(|error| Refused(Refusal::NotAdmitted, error.to_string()))?;
    let request = NodeJoin {
        token: id,
        secret_sha256: hex::encode(Sha256::digest(secret)),
        name,
        key: Fingerprint(Sha256::digest(public_key).into()),
        fingerprint: issued.fingerprint,
        ends_at: issued.ends_at,
    };
    let record = shared.db.ask(&request).await.map_err(refused)?;
    info!(node = %record.name, labels = %record.labels, "a node has joined the platform");
    shared.directory.look();
    Ok(issued)
}

/// Issues the next certificate of a node.
pub(crate) async fn renew(
    shared: &Shared,
    node: &Node,
    from: Fingerprint,
    frames: &mut FrameStream,
    public_key: &str,
) -> Result<(), Refused> {
    let issued = shared.authority.issue_node(&node.name, public_key);
    let issued = issued.map_err(|error| Refused::not_permitted(error.to_string()))?;
    let (to, ends_at) = (issued.fingerprint, issued.ends_at);
    shared.db.ask(&NodeRenew { name: node.name.clone(), from, to, ends_at }).await.map_err(refused)?;
    shared.directory.look();
    info!(node = %node.name, "the certificate of a node is renewed");
    // A node that does not hear it asks again with the certificate that it has.
    let _ = frames.send_json(&certificate(issued)).await;
    Ok(())
}
