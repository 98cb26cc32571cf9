//! Telling a node no.

use faena_protocol::front::{Opened, Refusal};
use faena_transport::front::FrameStream;

/// Why a channel is refused: what the node does about it, and a sentence.
pub(crate) struct Refused(pub(crate) Refusal, pub(crate) String);

impl Refused {
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self(Refusal::Busy, message.into())
    }

    pub(crate) fn not_permitted(message: impl Into<String>) -> Self {
        Self(Refusal::NotPermitted, message.into())
    }
}

/// Tells a client no.
pub(crate) async fn refuse(frames: &mut FrameStream, Refused(reason, message): Refused) {
    // Who has gone does not hear it.
    let _ = frames.send_json(&Opened::Refused { reason, message }).await;
}
