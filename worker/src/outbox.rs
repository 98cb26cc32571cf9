//! What must reach db does: asked again until it is acknowledged, or another claim has taken over.

use faena_db_client::DbClient;
use faena_protocol::{DbError, DbRequest};
use tracing::{debug, warn};

use crate::RETRY;

/// Writes, and does not give up while the answer is not known.
pub(crate) async fn deliver<R: DbRequest>(db: &DbClient, request: &R) {
    loop {
        match db.ask(request).await {
            Ok(_) => return,
            Err(DbError::Stale) => return debug!(request = R::TYPE, "another claim has taken over"),
            Err(error @ (DbError::Unavailable | DbError::Full | DbError::Internal { .. })) => {
                warn!(%error, request = R::TYPE, "db does not take a result yet");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return warn!(%error, request = R::TYPE, "db refuses a result"),
        }
    }
}
