//! Which nodes are connected, as db remembers it for when they no longer are.

use std::time::Duration;

use faena_domain::{NodeName, NodeState};
use faena_protocol::db::NodesConnected;
use tracing::debug;

use crate::app::App;

/// How often db is told.
const EVERY: Duration = Duration::from_secs(10);

/// Tells db which nodes are connected, until it is aborted.
pub(crate) async fn keep(app: App) {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        let connected = app.scheduler().workers().await.into_iter().filter(|worker| worker.state != NodeState::Lost);
        let names: Vec<NodeName> = connected.filter_map(|worker| worker.info.owner.worker.parse().ok()).collect();
        if names.is_empty() {
            continue;
        }
        if let Err(error) = app.db().ask(&NodesConnected { names }).await {
            debug!(%error, "db did not hear which nodes are connected");
        }
    }
}
