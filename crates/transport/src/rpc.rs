//! Questions and answers over a link.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use faena_protocol::{Envelope, EnvelopeError};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{Link, LinkEvent, LinkHandle, Target};

/// The most requests that wait for their replies.
const MAX_PENDING: usize = 8192;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// Not within the deadline. Whether the server did it is not known.
    #[error("no reply within {0:?}")]
    Deadline(Duration),
    /// Too many requests wait already.
    #[error("{MAX_PENDING} requests wait for their replies already")]
    Full,
    /// The request cannot be sent.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
}

struct Pending {
    request: Bytes,
    reply: oneshot::Sender<Envelope>,
}

type Waiting = Arc<Mutex<HashMap<String, Pending>>>;

/// Asks a [`crate::Server`] questions, many at once. A request may reach the server more than once.
#[derive(Clone, Debug)]
pub struct RpcClient {
    link: LinkHandle,
    waiting: Arc<Guard>,
}

/// Ends the task when the last client is dropped.
#[derive(Debug)]
struct Guard {
    waiting: WaitingDebug,
    stop: CancellationToken,
}

struct WaitingDebug(Waiting);

impl std::fmt::Debug for WaitingDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiting")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn locked(waiting: &Waiting) -> parking_lot::MutexGuard<'_, HashMap<String, Pending>> {
    waiting.lock()
}

/// Forgets a request whose caller has gone or waited long enough.
struct Forget<'a>(&'a Waiting, &'a str);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        locked(self.0).remove(self.1);
    }
}

impl RpcClient {
    /// Starts connecting, and never stops trying.
    pub fn connect(target: impl Into<Target>) -> Self {
        let link = Link::connect(target);
        let handle = link.handle();
        let waiting = Waiting::default();
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(listen(link, Arc::clone(&waiting))));
        Self { link: handle, waiting: Arc::new(Guard { waiting: WaitingDebug(waiting), stop }) }
    }

    /// Sends a request and waits for its reply; dropping the future forgets the request.
    ///
    /// # Errors
    /// [`RpcError`]; after `Deadline` it is not known whether the request was carried out.
    pub async fn call(&self, request: &Envelope, deadline: Duration) -> Result<Envelope, RpcError> {
        let bytes = Bytes::from(request.encode()?);
        let waiting = &self.waiting.waiting.0;
        let (reply, answer) = oneshot::channel();
        {
            let mut waiting = locked(waiting);
            if waiting.len() >= MAX_PENDING {
                return Err(RpcError::Full);
            }
            waiting.insert(request.id.clone(), Pending { request: bytes.clone(), reply });
        }
        let _forget = Forget(waiting, &request.id);
        let asked = async {
            self.link.send(bytes).await;
            answer.await
        };
        match tokio::time::timeout(deadline, asked).await {
            Ok(Ok(reply)) => Ok(reply),
            _ => Err(RpcError::Deadline(deadline)),
        }
    }
}

async fn listen(mut link: Link, waiting: Waiting) {
    let handle = link.handle();
    let mut was_up = false;
    while let Some(event) = link.next().await {
        match event {
            LinkEvent::Up if !was_up => was_up = true,
            LinkEvent::Up => {
                let again: Vec<Bytes> = locked(&waiting).values().map(|pending| pending.request.clone()).collect();
                for request in again {
                    handle.send(request).await;
                }
            }
            LinkEvent::Down => {}
            LinkEvent::Message(bytes) => match Envelope::decode(&bytes) {
                Ok(reply) => {
                    let pending = locked(&waiting).remove(&reply.id);
                    // Who waited for it may have gone, or had it already.
                    pending.map(|pending| pending.reply.send(reply));
                }
                Err(error) => warn!(%error, "a reply was dropped"),
            },
        }
    }
}
