//! Work that lies in db: claimed for a worker that can take it, then sent to it.

use std::time::Instant;

use faena_db_client::DbClient;
use faena_domain::Owner;
use faena_domain::lease::LEASE_MS;
use faena_protocol::Envelope;
use faena_protocol::db::{BuildFinish, BuildsClaim, CallFinish, CallsClaim};
use faena_protocol::node::{Lease, TYPE, ToWorker};
use faena_protocol::records::{BuildJob, CallJob};
use faena_transport::{boot_id, boot_ms};
use tracing::{debug, warn};

use super::{Ask, Scheduler};
use crate::fleet::Capacity;
use crate::handle::{ClaimReply, Command};

/// The most calls of one claim: their params travel in one message.
const CLAIM: u32 = 16;

impl Scheduler {
    /// Claims for every worker that has room; with `reserve`, also where only another function's call would have room.
    pub(super) fn claim(&mut self, reserve: bool) {
        for capacity in self.fleet.capacities(reserve) {
            self.claim_for(capacity);
        }
    }

    fn claim_for(&self, capacity: Capacity) {
        let (db, sender) = (self.db.clone(), self.shared.sender.clone());
        tokio::spawn(async move {
            let claimed = claim_for(&db, capacity).await;
            let _ = sender.send(Command::ClaimReply(Box::new(claimed))).await;
        });
    }

    pub(super) fn claimed(&mut self, claimed: ClaimReply) {
        let ClaimReply { owner, mut calls, builds, lease } = claimed;
        let outdated = self.fleet.outdated(&owner);
        if !calls.is_empty() || !builds.is_empty() || self.fleet.has_left_out() {
            // There may be more.
            self.asks(Ask::Work);
        }
        let Some(peer) = self.fleet.claimed(&owner, &mut calls, &builds, Instant::now()) else {
            return self.give_back(&owner, calls, builds);
        };
        if let Some(capacity) = outdated.and_then(|reserve| self.fleet.capacity_of(&owner, reserve)) {
            self.claim_for(capacity);
        }
        let server = self.server.clone();
        let calls = calls.into_iter().map(|job| ToWorker::Call { job: Box::new(job), lease: lease.clone() });
        let builds = builds.into_iter().map(|job| ToWorker::Build { job: Box::new(job), lease: lease.clone() });
        let messages: Vec<ToWorker> = calls.chain(builds).collect();
        tokio::spawn(async move {
            for message in messages {
                match Envelope::new("", TYPE, &message).and_then(|envelope| envelope.encode()) {
                    Ok(bytes) => drop(server.send(&peer, bytes).await),
                    Err(error) => warn!(%error, "a job cannot be sent"),
                }
            }
        });
    }

    /// The worker went while db claimed for it: nothing has begun.
    fn give_back(&self, owner: &Owner, calls: Vec<CallJob>, builds: Vec<BuildJob>) {
        let (db, owner) = (self.db.clone(), owner.clone());
        tokio::spawn(async move {
            for job in calls {
                db.deliver(&CallFinish { num: job.num, epoch: job.epoch, owner: owner.clone(), outcome: None }).await;
            }
            for job in builds {
                let (namespace, function) = (job.code.namespace, job.code.function);
                let (version, epoch, owner) = (job.code.version, job.epoch, owner.clone());
                db.deliver(&BuildFinish { namespace, function, version, epoch, owner, outcome: None }).await;
            }
        });
    }
}

/// Claims what a worker can take. The same claim is asked until it is answered: what db took for us must not be left lying.
async fn claim_for(db: &DbClient, capacity: Capacity) -> ClaimReply {
    let Capacity { owner, engines, calls, builds, limit } = capacity;
    let request = uuid::Uuid::new_v4().simple().to_string();
    // Db grants the lease no earlier than now.
    let lease = lease(boot_ms());
    let calls = match calls {
        Some((slots, spare)) => {
            let (request, owner, engines) = (request.clone(), owner.clone(), engines.clone());
            let limit = limit.min(CLAIM);
            db.ask_until_known(&CallsClaim { request, owner, engines, limit, slots, spare }).await
        }
        None => Ok(Vec::new()),
    };
    let builds = match builds {
        Some(slots) => db.ask_until_known(&BuildsClaim { request, owner: owner.clone(), engines, slots }).await,
        None => Ok(Vec::new()),
    };
    for error in [calls.as_ref().err(), builds.as_ref().err()].into_iter().flatten() {
        debug!(%error, "nothing could be claimed");
    }
    ClaimReply { owner, calls: calls.unwrap_or_default(), builds: builds.unwrap_or_default(), lease }
}

/// A lease that was granted at this instant or later, for workers that share our clock.
pub(super) fn lease(granted_ms: u64) -> Lease {
    Lease { boot: boot_id().to_owned(), until_ms: granted_ms + LEASE_MS.unsigned_abs() }
}
