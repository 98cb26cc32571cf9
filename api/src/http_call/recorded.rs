//! What a record keeps of a request's body.

use std::sync::Arc;

use bytes::Bytes;
use faena_invoker::{BodyStream, Direction, Kept, Meter, Observed, RequestBody};
use http_body_util::BodyExt;
use parking_lot::Mutex;

/// What a record keeps of a request's body.
pub(super) enum RecordedBody {
    /// The params are the body, or there is none.
    None,
    /// All of it.
    Whole(Bytes),
    /// The beginning of a stream.
    Beginning(KeptBody),
}

impl RecordedBody {
    pub(super) fn bytes(&self) -> Option<Bytes> {
        match self {
            Self::None => None,
            Self::Whole(bytes) => Some(bytes.clone()),
            Self::Beginning(kept) => Some(kept.bytes()).filter(|bytes| !bytes.is_empty()),
        }
    }
}

/// What a record keeps of a stream that still comes; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct KeptBody(Arc<Mutex<Kept>>);

impl KeptBody {
    pub(super) fn bytes(&self) -> Bytes {
        self.0.lock().bytes()
    }
}

/// Has a record keep what is to be kept of a body, and counts the rest.
pub(super) fn observe(body: RequestBody, meter: &Meter) -> (RequestBody, RecordedBody) {
    let observed = |body: BodyStream, kept: KeptBody| {
        let meter = meter.clone();
        let observe = move |data: &Bytes| {
            meter.add(Direction::Request, data.len());
            kept.0.lock().add(data);
        };
        Observed::new(body, observe).boxed_unsync()
    };
    match body {
        RequestBody::None => (RequestBody::None, RecordedBody::None),
        RequestBody::Whole(bytes) => (RequestBody::Whole(bytes.clone()), RecordedBody::Whole(bytes)),
        RequestBody::Stream(body) => {
            let kept = KeptBody::default();
            (RequestBody::Stream(observed(body, kept.clone())), RecordedBody::Beginning(kept))
        }
        RequestBody::Upgrade(body) => {
            let meter = meter.clone();
            let count = move |data: &Bytes| meter.add(Direction::Request, data.len());
            (RequestBody::Upgrade(Observed::new(body, count).boxed_unsync()), RecordedBody::None)
        }
    }
}
