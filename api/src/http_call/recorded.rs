//! What a record keeps of a request's body.

use std::sync::Arc;

use bytes::Bytes;
use faena_invoker::{BodyStream, Direction, Kept, Meter, Observed, RequestBody, Seen};
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
    /// Whether it is a stream that has not ended.
    pub(super) fn is_cut(&self) -> bool {
        matches!(self, Self::Beginning(kept) if !kept.0.lock().has_ended)
    }

    /// Whether it is a stream.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Beginning(_))
    }

    pub(super) fn bytes(&self) -> Option<Bytes> {
        match self {
            Self::None => None,
            Self::Whole(bytes) => Some(bytes.clone()),
            Self::Beginning(kept) => Some(kept.bytes()).filter(|bytes| !bytes.is_empty()),
        }
    }
}

/// The part of a stream that the record keeps; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct KeptBody(Arc<Mutex<Coming>>);

#[derive(Debug, Default)]
struct Coming {
    kept: Kept,
    has_ended: bool,
}

impl KeptBody {
    fn bytes(&self) -> Bytes {
        self.0.lock().kept.bytes()
    }

    fn see(&self, seen: &Seen<'_>) {
        let mut coming = self.0.lock();
        match seen {
            Seen::Data(data) => coming.kept.add(data),
            Seen::End => coming.has_ended = true,
            Seen::Broken => {}
        }
    }
}

/// Wraps a body so that the record keeps its beginning and its bytes are counted.
pub(super) fn observe(body: RequestBody, meter: &Meter) -> (RequestBody, RecordedBody) {
    let observed = |body: BodyStream, kept: KeptBody| {
        let meter = meter.clone();
        let observe = move |seen: Seen<'_>| {
            if let Seen::Data(data) = &seen {
                meter.add(Direction::Request, data.len());
            }
            kept.see(&seen);
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
            let count = move |seen: Seen<'_>| {
                if let Seen::Data(data) = seen {
                    meter.add(Direction::Request, data.len());
                }
            };
            (RequestBody::Upgrade(Observed::new(body, count).boxed_unsync()), RecordedBody::None)
        }
    }
}
