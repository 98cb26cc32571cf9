//! When streams end that have no end of their own.

use tokio_util::sync::CancellationToken;

/// Whether the worker or the api of a stream drains.
pub(super) struct Drain {
    pub(super) api: CancellationToken,
    pub(super) worker: CancellationToken,
}

impl Drain {
    /// Returns when one of them begins to drain.
    pub(super) async fn begun(self) {
        tokio::select! {
            () = self.api.cancelled() => {}
            () = self.worker.cancelled() => {}
        }
    }
}
