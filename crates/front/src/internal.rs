//! Connections of functions of a node that call other functions.

use std::sync::Arc;
use std::time::Duration;

use faena_protocol::front::Opened;
use faena_protocol::internal::{InternalCall, MAX_PREFACE};
use faena_transport::front::FrameStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::UnixStream;
use tracing::{debug, warn};

use crate::Shared;
use crate::nodes::Node;

/// How long a node may take to say whose a connection is.
const PREFACE: Duration = Duration::from_secs(5);

pub(crate) async fn serve(shared: &Arc<Shared>, node: &Arc<Node>, mut frames: FrameStream) {
    if frames.send_json(&Opened::Ready).await.is_err() {
        return;
    }
    let Ok(mut stream) = frames.into_bytes() else { return };
    let opening = async {
        let length = stream.read_u16().await?;
        let mut preface = vec![0; usize::from(length.min(MAX_PREFACE))];
        stream.read_exact(&mut preface).await?;
        Ok::<_, std::io::Error>((length, preface))
    };
    let Ok(Ok((length, preface))) = tokio::time::timeout(PREFACE, opening).await else { return };
    let call = serde_json::from_slice::<InternalCall>(&preface);
    if !call.as_ref().is_ok_and(|call| length <= MAX_PREFACE && node.grants.may_call(call, &shared.labels(node))) {
        return warn!(node = %node.name, call = ?call.ok(), "a node speaks for a function that it has no work of");
    }
    let passing = async {
        let mut api = UnixStream::connect(&shared.config.internal).await?;
        api.write_u16(length).await?;
        api.write_all(&preface).await?;
        copy_bidirectional(&mut stream, &mut api).await
    };
    if let Err(error) = passing.await {
        debug!(node = %node.name, %error, "a connection of a function ended");
    }
}
