//! Workers and their leases.

use faena_domain::{CallNum, Epoch, Owner};
use serde::{Deserialize, Serialize};

use super::requests;
use crate::records::BuildRef;

requests! {
    /// A worker has started: what its earlier incarnations held is ended.
    Write WorkerJoin = "worker.join" by [Worker] -> () {
        /// The worker's new incarnation.
        owner: Owner,
        /// Whether it is a node that joined by a token; the front says so, not the worker.
        is_member: bool,
    }
    /// A worker still has these.
    Write LeaseRenew = "lease.renew" by [Worker] -> Renewed {
        /// The worker.
        owner: Owner,
        /// Its calls and their claims.
        calls: Vec<(CallNum, Epoch)>,
        /// Its builds and their claims.
        builds: Vec<(BuildRef, Epoch)>,
    }
}

/// What a renewal did not find.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Renewed {
    /// Calls whose row is held by another claim, or by none: the worker has to stop them.
    pub stale_calls: Vec<(CallNum, Epoch)>,
    /// Builds that are held by another claim, or by none.
    pub stale_builds: Vec<(BuildRef, Epoch)>,
}
