//! What must reach db does: asked again until it is acknowledged, or another claim has taken over.

use faena_db_client::DbClient;
use faena_protocol::{DbError, DbRequest};
use tracing::{debug, warn};

/// Writes, and does not give up while the answer is not known; none where db refuses.
pub(crate) async fn deliver<R: DbRequest>(db: &DbClient, request: &R) -> Option<R::Reply> {
    match db.ask_until_known(request).await {
        Ok(reply) => return Some(reply),
        Err(DbError::Stale) => debug!(request = R::TYPE, "another claim has taken over"),
        Err(error) => warn!(%error, request = R::TYPE, "db refuses a result"),
    }
    None
}
