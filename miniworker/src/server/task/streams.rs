//! Streams whose process has ended.

use faena_domain::ErrorKind;

use super::{EndReason, LAST_WORDS, Task};
use crate::server::{Order, http};

impl Task {
    /// Ends the calls whose answers had begun when their process ended. Their connections have broken, and the exchanges report
    /// the bytes that had passed.
    pub(super) async fn end_streams(&mut self, over: &EndReason) {
        let until = tokio::time::Instant::now() + LAST_WORDS;
        while self.server.traffic().in_flight.iter().any(|flight| flight.is_streaming) {
            match tokio::time::timeout_at(until, self.orders.recv()).await {
                Ok(Some(Order::Answered(id, answer))) => {
                    let Some(flight) = self.take(id) else { continue };
                    let mut end = http::end(&flight.call, flight.began, answer);
                    if end.error.as_ref().is_some_and(|error| error.kind == ErrorKind::Exception) {
                        end.error = Some(self.why(over, " while it answered"));
                    }
                    self.end(flight, end);
                }
                Ok(Some(Order::Begin(call))) => self.server.owner.returned(call),
                // It ends all the same.
                Ok(Some(Order::Cancel(_) | Order::StreamStopped(..))) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}
