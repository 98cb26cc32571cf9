//! Who is told what a socket hears.

use std::future::Future;

use tokio::sync::mpsc;

/// What takes events.
pub(crate) trait EventSink<E>: Send {
    /// Tells it; false where nobody listens any more.
    fn hear(&mut self, event: E) -> impl Future<Output = bool> + Send;
}

impl<E: Send> EventSink<E> for mpsc::Sender<E> {
    async fn hear(&mut self, event: E) -> bool {
        self.send(event).await.is_ok()
    }
}

/// Somebody who is done at once, and always listens.
pub(crate) struct Told<F>(pub(crate) F);

impl<E: Send, F: FnMut(E) + Send> EventSink<E> for Told<F> {
    async fn hear(&mut self, event: E) -> bool {
        (self.0)(event);
        true
    }
}
