//! Asks the database service, with types.

mod nodes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use faena_protocol::db::{Answered, FunctionsSeen, REPLY_ERROR, REPLY_OK};
use faena_protocol::{DbError, DbRequest, Envelope};
use faena_transport::{RpcClient, RpcError, Target};
use tokio::sync::Notify;

pub use nodes::{KnownNodes, NodeDirectory};

/// How long a request waits for its reply before it counts as [`DbError::Unavailable`].
pub const DEADLINE: Duration = Duration::from_secs(10);

/// The pause before a request is sent again.
const PAUSE: Duration = Duration::from_millis(250);

/// A connection to the database service that comes back by itself; clones share it.
#[derive(Clone, Debug)]
pub struct DbClient {
    rpc: RpcClient,
    /// The most that any answer has shown of the functions.
    functions: Arc<AtomicU64>,
    /// Notified when that has risen.
    rose: Arc<Notify>,
}

impl DbClient {
    /// Starts connecting; requests made before the service is there wait for it.
    pub fn connect(target: impl Into<Target>) -> Self {
        Self { rpc: RpcClient::connect(target), functions: Arc::default(), rose: Arc::default() }
    }

    /// Asks, and waits at most [`DEADLINE`].
    ///
    /// # Errors
    /// What the service says, or [`DbError::Unavailable`] where it says nothing.
    pub async fn ask<R: DbRequest>(&self, request: &R) -> Result<R::Reply, DbError> {
        self.ask_within(request, DEADLINE).await
    }

    /// What any answer has shown of the functions. While this is what a client has taken in of their changes, what it
    /// remembers is current; so one that has seen a change here never sees an older state.
    pub fn functions_seen(&self) -> FunctionsSeen {
        FunctionsSeen(self.functions.load(Ordering::SeqCst))
    }

    /// Returns when [`Self::functions_seen`] has risen since this was awaited last. For one task of a client.
    pub async fn functions_rose(&self) {
        self.rose.notified().await;
    }

    /// Asks until the answer is known, however long the service is away. For requests that may be sent again.
    ///
    /// # Errors
    /// What the service says of the request itself; never that it is away, full or failing.
    pub async fn ask_until_known<R: DbRequest>(&self, request: &R) -> Result<R::Reply, DbError> {
        loop {
            match self.ask(request).await {
                Err(error @ (DbError::Unavailable | DbError::Full | DbError::Internal { .. })) => {
                    tracing::warn!(%error, request = R::TYPE, "the database does not take this yet");
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    /// Writes what must reach db, however long the service is away; none where it refuses, which is logged: the writer has
    /// nothing else to do about it.
    pub async fn deliver<R: DbRequest>(&self, request: &R) -> Option<R::Reply> {
        match self.ask_until_known(request).await {
            Ok(reply) => return Some(reply),
            Err(DbError::Stale) => tracing::debug!(request = R::TYPE, "another claim has taken over"),
            Err(error) => tracing::warn!(%error, request = R::TYPE, "db refuses a result"),
        }
        None
    }

    /// Asks, and waits at most as long as it is told to.
    ///
    /// # Errors
    /// What the service says, or [`DbError::Unavailable`] where it says nothing.
    pub async fn ask_within<R: DbRequest>(&self, request: &R, deadline: Duration) -> Result<R::Reply, DbError> {
        self.ask_seeing(request, deadline).await.map(|(answer, _)| answer)
    }

    /// Asks, and tells what the answer has shown of the functions.
    ///
    /// # Errors
    /// What the service says, or [`DbError::Unavailable`] where it says nothing.
    pub async fn ask_seeing<R: DbRequest>(
        &self,
        request: &R,
        deadline: Duration,
    ) -> Result<(R::Reply, FunctionsSeen), DbError> {
        let invalid = |message: String| DbError::Invalid { message };
        let id = uuid::Uuid::new_v4().simple().to_string();
        let envelope = Envelope::new(id, R::TYPE, request).map_err(|error| invalid(error.to_string()))?;
        let reply = self.rpc.call(&envelope, deadline).await.map_err(|error| match error {
            RpcError::Deadline(_) => DbError::Unavailable,
            RpcError::Full => DbError::Full,
            RpcError::Envelope(error) => invalid(error.to_string()),
        })?;
        let Answered { functions, answer } = answered(&reply)?;
        if self.functions.fetch_max(functions.0, Ordering::SeqCst) < functions.0 {
            self.rose.notify_one();
        }
        let answer = serde_json::from_str(answer.get()).map_err(|error| invalid(error.to_string()))?;
        Ok((answer, functions))
    }
}

/// What a reply holds. Apart from the types of requests, so that it is compiled once.
fn answered(reply: &Envelope) -> Result<Answered, DbError> {
    let invalid = |message: String| DbError::Invalid { message };
    match reply.msg_type.as_str() {
        REPLY_OK => reply.parse().map_err(|error| invalid(error.to_string())),
        REPLY_ERROR => Err(reply.parse().unwrap_or_else(|error| invalid(error.to_string()))),
        other => Err(invalid(format!("a reply of the unknown type {other:?}"))),
    }
}
