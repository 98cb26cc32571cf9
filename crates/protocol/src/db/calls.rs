//! Calls that have a row, or get one.

use std::sync::Arc;

use faena_auth::AccountId;
use faena_domain::{CallNum, CallStatus, EngineKind, Epoch, FunctionName, Namespace, Owner, Version};
use serde::{Deserialize, Serialize};

use super::DbError;
use super::requests;
use super::slots::{SlotsView, SparePlaces};
use crate::records::{Accepted, CallJob, CallRecord, CallSpec, CompletedBatch, EndedCall, NewCall, Outcome};

requests! {
    /// Reserves numbers for calls, durably.
    Write CallNumReserve = "call.reserve" by [Api] -> CallNum {
        /// How many; the reply is the first of them.
        count: u32,
    }
    /// Accepts calls, each for itself. The reply has one for each, in their order.
    Write CallsAccept = "calls.accept" by [Api] -> Vec<Result<Accepted, DbError>> {
        /// The calls.
        calls: Vec<NewCall>,
    }
    /// Writes waited calls whole, after their ends.
    Write CallsRecord = "calls.record" by [Api] -> () {
        /// Calls that get a row each.
        calls: Vec<Arc<EndedCall>>,
        /// Calls that are kept many in one row.
        batches: Vec<CompletedBatch>,
    }
    /// Gives a waited call, which an owner runs already or which waits for one, its row.
    Write CallPersist = "call.persist" by [Api] -> CallRecord {
        /// What it was accepted with.
        spec: CallSpec,
        /// Its version.
        version: Version,
        /// When it was accepted, in Unix milliseconds.
        created_at: i64,
        /// How long ago that was, in milliseconds.
        elapsed_ms: u64,
        /// The last claim that its api gave out; the next one is higher.
        epoch: Epoch,
        /// Who runs it under that claim.
        running: Option<Owner>,
    }
    /// Notes that the client of a call was told 202: the call is acknowledged.
    Write CallAcknowledge = "call.acknowledge" by [Api] -> () {
        /// The call.
        num: CallNum,
    }
    /// Cancels a call.
    Write CallCancel = "call.cancel" by [Api] -> Cancelled {
        /// The namespace of its function.
        namespace: Namespace,
        /// The call.
        num: CallNum,
    }
    /// Makes a new call of an old one: same function, same params.
    Write CallReplay = "call.replay" by [Api] -> CallRecord {
        /// The new call's number; the same number gives the same call.
        num: CallNum,
        /// The namespace of its function.
        namespace: Namespace,
        /// The old call.
        of: CallNum,
        /// The version, where the replay names one; without one it is resolved again.
        version: Option<Version>,
        /// The W3C trace context of the new call.
        traceparent: String,
        /// The account that makes it, where one does.
        account: Option<AccountId>,
    }
    /// Forgets that a call is a dead letter; the call stays on record.
    Write DeadLetterForget = "dead_letter.forget" by [Api] -> () {
        /// The namespace of its function.
        namespace: Namespace,
        /// The call.
        num: CallNum,
    }
    /// Claims calls that can run for a worker.
    Write CallsClaim = "call.claim" by [Api] -> Vec<CallJob> {
        /// Names this claim; the same claim gives the same calls.
        request: String,
        /// Who will run them.
        owner: Owner,
        /// What it makes instances with.
        engines: Vec<EngineKind>,
        /// How many at most.
        limit: u32,
        /// The worker's slots.
        slots: SlotsView,
        /// Places in instances that work already, which take no slot.
        spare: Vec<SparePlaces>,
    }
    /// Ends an attempt, fenced. The reply is the call's status afterwards: PENDING where it is tried again.
    Write CallFinish = "call.finish" by [Api, Worker] -> CallStatus {
        /// The call.
        num: CallNum,
        /// The claim.
        epoch: Epoch,
        /// Who ran it.
        owner: Owner,
        /// How it ended; none gives it back unspent.
        outcome: Option<Outcome>,
    }
    /// Tells of calls whose processes run; write, fenced, and no harm where it is lost.
    Write CallsStarted = "call.started" by [Worker] -> () {
        /// Who runs them.
        owner: Owner,
        /// The calls and their claims.
        calls: Vec<(CallNum, Epoch)>,
    }
    /// One call.
    Read CallGet = "call.get" by [Api] -> CallRecord {
        /// The namespace of its function.
        namespace: Namespace,
        /// Its number.
        num: CallNum,
    }
    /// Calls, newest first.
    Read CallList = "call.list" by [Api] -> Vec<CallRecord> {
        /// The namespace of their functions.
        namespace: Namespace,
        /// Only calls of this function.
        function: Option<FunctionName>,
        /// Only calls of this status.
        status: Option<CallStatus>,
        /// Only dead letters.
        dead: bool,
        /// Of those, only what was not replayed.
        unreplayed: bool,
        /// Only calls with a smaller number.
        before: Option<CallNum>,
        /// How many at most.
        limit: u32,
    }
}

/// A call that was cancelled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cancelled {
    /// The call as it is now.
    pub record: CallRecord,
    /// Who ran it, and under which claim.
    pub running: Option<(Owner, Epoch)>,
}
