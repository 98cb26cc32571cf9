//! The nodes as db has them, in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use faena_domain::{Fingerprint, NodeName};
use faena_protocol::DbError;
use faena_protocol::db::NodeList;
use faena_protocol::records::NodeRecord;
use tokio::sync::{Notify, watch};

use crate::DbClient;

/// The time between two looks. A removed node is cut off after this and the time that db takes to answer.
const AGE: Duration = Duration::from_millis(500);

/// All nodes at one time.
#[derive(Debug, Default)]
pub struct KnownNodes {
    changes: u64,
    nodes: BTreeMap<NodeName, NodeRecord>,
    by_certificate: HashMap<Fingerprint, NodeName>,
}

impl KnownNodes {
    /// Nodes, as db has told them.
    pub fn new(changes: u64, nodes: Vec<NodeRecord>) -> Self {
        let certificates = nodes.iter().flat_map(|node| {
            let own = node.certificate.iter();
            own.flat_map(|own| [Some(own.fingerprint), own.previous])
                .flatten()
                .map(|fingerprint| (fingerprint, node.name.clone()))
        });
        let by_certificate = certificates.collect();
        Self { changes, nodes: nodes.into_iter().map(|node| (node.name.clone(), node)).collect(), by_certificate }
    }

    /// Whether db has told them at all.
    pub fn is_known(&self) -> bool {
        self.changes > 0
    }

    /// The node of a name.
    pub fn get(&self, name: &NodeName) -> Option<&NodeRecord> {
        self.nodes.get(name)
    }

    /// The node whose certificate this is.
    pub fn of_certificate(&self, fingerprint: &Fingerprint) -> Option<&NodeRecord> {
        self.nodes.get(self.by_certificate.get(fingerprint)?)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values()
    }
}

/// Knows the nodes, at most half a second after db does; clones share it.
#[derive(Clone, Debug)]
pub struct NodeDirectory {
    db: DbClient,
    known: Arc<watch::Sender<Arc<KnownNodes>>>,
    look: Arc<Notify>,
}

impl NodeDirectory {
    /// A directory that knows nothing until [`Self::follow`] runs.
    pub fn new(db: DbClient) -> Self {
        Self { db, known: Arc::new(watch::Sender::new(Arc::default())), look: Arc::default() }
    }

    /// What is known now.
    pub fn known(&self) -> Arc<KnownNodes> {
        Arc::clone(&self.known.borrow())
    }

    /// Tells of each change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<KnownNodes>> {
        self.known.subscribe()
    }

    /// Looks soon, without waiting for it.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// Looks now.
    ///
    /// # Errors
    /// What db says.
    pub async fn refresh(&self) -> Result<Arc<KnownNodes>, DbError> {
        let seen = self.db.ask(&NodeList { since: self.known().changes }).await?;
        if let Some(nodes) = seen.nodes {
            let now = Arc::new(KnownNodes::new(seen.changes, nodes));
            // Another reply may have come meanwhile that is newer.
            self.known.send_if_modified(|known| {
                let is_newer = known.changes < now.changes;
                if is_newer {
                    *known = now;
                }
                is_newer
            });
        }
        Ok(self.known())
    }

    /// Refreshes the directory until the task is aborted. While db is away, the last list stays in use.
    pub async fn follow(self) {
        loop {
            if let Err(error) = self.refresh().await {
                tracing::debug!(%error, "which nodes there are is not known anew");
            }
            let _ = tokio::time::timeout(AGE, self.look.notified()).await;
        }
    }
}
