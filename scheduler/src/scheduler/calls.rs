//! Calls without a row, from their submission to their end or their row.

use std::sync::Arc;
use std::time::Duration;

use faena_domain::plan::CallPath;
use faena_domain::{CallNum, Epoch, FunctionId, Owner};
use faena_protocol::DbError;
use faena_protocol::db::{CallFinish, CallPersist};
use faena_protocol::node::ToWorker;
use faena_protocol::records::{CallRecord, CallSpec, EndedCall, Outcome};

use super::{Ask, Scheduler};
use crate::completions::BacklogPermit;
use crate::handle::Command;
use crate::statistics::CallSample;
use crate::sync_call::{SyncAnswer, SyncCall};

impl Scheduler {
    pub(super) fn submit(&mut self, mut call: SyncCall) {
        if !call.code.engine.is_some_and(|engine| self.fleet.offers(engine, &call.code.nodes)) {
            return self.finish_unrun(call);
        }
        let (num, function, weight) = (call.spec.num, call.code.function_id(), call.code.share.weight);
        self.shared.in_flight.sync(&call.spec.namespace, call.record());
        call.queued();
        self.waited.insert(num, call);
        self.queue.push_back(function, weight, num);
    }

    fn finish_unrun(&self, call: SyncCall) {
        let record = call.unavailable();
        self.end_waited(call, record);
    }

    /// Answers a waited call and writes it behind the answer.
    pub(super) fn end_waited(&self, mut call: SyncCall, record: CallRecord) {
        let num = call.spec.num;
        let function = call.code.function_id();
        let mut sample = CallSample::new(CallPath::Sync, record.status, record.attempts.last());
        if record.attempts.is_empty() {
            sample.duration = Duration::from_millis(call.elapsed_ms());
        }
        self.shared.statistics.record(&function, &sample);
        match call.permit.take() {
            Some(permit) => {
                let CallSpec { namespace, direct, timeout_ms, .. } = call.spec.clone();
                self.shared
                    .completions
                    .write(EndedCall { namespace, call: record.clone(), direct, timeout_ms }, permit);
            }
            None => self.shared.in_flight.remove(num),
        }
        call.answer(SyncAnswer::Ended(Box::new(record)));
        // Nobody may follow it.
        let _ = self.shared.ends.send(num);
    }

    /// Ends a call without a row on somebody's word.
    pub(super) async fn cancel(&mut self, num: CallNum) -> Option<CallRecord> {
        // One that is given its row is cancelled there.
        let call = self.waited.get(&num).filter(|call| !call.is_persisted())?;
        let (record, running) = (call.cancelled(), call.owner.clone().map(|owner| (owner, call.epoch)));
        let call = self.waited.remove(&num)?;
        self.queue.remove(&call.code.function_id(), num);
        self.end_waited(call, record.clone());
        if let Some((owner, epoch)) = running {
            self.stop(&owner, num, epoch).await;
        }
        Some(record)
    }

    pub(super) async fn stop(&mut self, owner: &Owner, num: CallNum, epoch: Epoch) {
        if let Some(peer) = self.fleet.peer(owner) {
            self.say(&peer, &ToWorker::Cancel { num, epoch }).await;
        }
        self.asks(Ask::Work);
    }

    pub(super) fn started(&mut self, num: CallNum, epoch: Epoch, owner: &Owner) {
        let is_current = |call: &&mut SyncCall| call.epoch == epoch && call.owner.as_ref() == Some(owner);
        if let Some(call) = self.waited.get_mut(&num).filter(is_current) {
            call.started();
            // A call that has its row is read from there.
            if !call.is_persisted() {
                self.shared.in_flight.sync(&call.spec.namespace, call.record());
            }
        }
    }

    /// The end of a call: of one with a row, which db has already, or of a waited one, whose end is judged here.
    pub(super) fn ended(&mut self, num: CallNum, epoch: Epoch, owner: &Owner, outcome: Option<Outcome>) {
        self.asks(Ask::Work);
        // One that waits for a slot has been given back already.
        let is_current = |call: &SyncCall| call.epoch == epoch && call.owner.as_ref() == Some(owner);
        let current = self.waited.get(&num).is_some_and(is_current);
        if !current {
            match outcome {
                // An api before us gave the call its row, or it is too late and db says so.
                Some(_) => {
                    let finish = CallFinish { num, epoch, owner: owner.clone(), outcome };
                    self.finish(finish, self.shared.completions.permit(), None);
                }
                None => drop(self.shared.ends.send(num)),
            }
            return;
        }
        let Some(mut call) = self.waited.remove(&num) else { return };
        if call.is_persisted() {
            call.owner = Some(owner.clone());
            return self.end_persisted(call, outcome);
        }
        match outcome {
            Some(outcome) => {
                let record = call.ended(&outcome);
                self.end_waited(call, record);
            }
            // A worker that stops gives back what it had not finished.
            None => self.again(call),
        }
    }

    pub(super) fn again(&mut self, mut call: SyncCall) {
        if !call.code.engine.is_some_and(|engine| self.fleet.offers(engine, &call.code.nodes)) {
            return self.finish_unrun(call);
        }
        let (num, function, weight) = (call.spec.num, call.code.function_id(), call.code.share.weight);
        call.queued();
        self.waited.insert(num, call);
        self.queue.push_front(function, weight, num);
    }

    /// A call that was given its row ends there.
    fn end_persisted(&mut self, mut call: SyncCall, outcome: Option<Outcome>) {
        if call.is_being_persisted() {
            call.outcome = Some(outcome);
            self.waited.insert(call.spec.num, call);
            return;
        }
        let Some(owner) = call.owner.clone() else { return };
        let finish = CallFinish { num: call.spec.num, epoch: call.epoch, owner, outcome };
        // A stop waits for it, as for every other write behind an answer.
        let permit = call.permit.take().or_else(|| self.shared.completions.permit());
        self.finish(finish, permit, Some(call.code.function_id()));
    }

    /// Ends a row on behalf of a worker; a stop waits until that is done.
    fn finish(&self, finish: CallFinish, permit: Option<BacklogPermit>, function: Option<FunctionId>) {
        let (db, ends, poke) = (self.db.clone(), self.shared.ends.clone(), Arc::clone(&self.shared.poke));
        let statistics = self.shared.statistics.clone();
        tokio::spawn(async move {
            let status = db.deliver(&finish).await.filter(|status| status.is_terminal());
            if let (Some(function), Some(status), Some(outcome)) = (function, status, &finish.outcome) {
                statistics.record(&function, &CallSample::new(CallPath::Sync, status, Some(&outcome.attempt)));
            }
            drop(permit);
            let _ = ends.send(finish.num);
            poke.notify_one();
        });
    }

    /// The wait of a client has run out: the call gets its row, and the client hears 202 when it has.
    pub(super) fn abandon(&mut self, num: CallNum) {
        let Some(call) = self.waited.get_mut(&num) else { return };
        let running = call.owner.clone();
        if running.is_none() {
            self.queue.remove(&call.code.function_id(), num);
        }
        call.persisting();
        let persist = CallPersist {
            spec: call.spec.clone(),
            version: call.code.version,
            created_at: call.created_at,
            elapsed_ms: call.elapsed_ms(),
            epoch: call.epoch,
            running,
        };
        let (db, sender) = (self.db.clone(), self.shared.sender.clone());
        tokio::spawn(async move {
            // Whether it was done must be known: a row that nobody knows of would contradict the answer.
            let result = db.ask_until_known(&persist).await;
            let _ = sender.send(Command::Persisted(num, Box::new(result))).await;
        });
    }

    pub(super) async fn persisted(&mut self, num: CallNum, result: Result<CallRecord, DbError>) {
        if result.is_ok() {
            self.shared.in_flight.remove(num);
        }
        let Some(mut call) = self.waited.remove(&num) else { return };
        match result {
            Ok(record) => {
                call.answer(SyncAnswer::Persisted(Box::new(record)));
                call.persisted();
                if let Some(outcome) = call.outcome.take() {
                    self.end_persisted(call, outcome);
                } else if let Some(owner) = call.owner.clone() {
                    // From now on its lease is db's to judge.
                    let epoch = call.epoch;
                    drop(call.permit.take());
                    self.waited.insert(num, call);
                    if let Some(peer) = self.fleet.peer(&owner) {
                        self.say(&peer, &ToWorker::Persisted { num, epoch }).await;
                    }
                } else {
                    self.asks(Ask::Work);
                }
            }
            Err(error) => {
                // Without a row there is no 202; the call goes on and is recorded when it ends.
                call.answer(SyncAnswer::Refused(error));
                call.not_persisted();
                match (call.outcome.take(), call.owner.is_some()) {
                    (Some(Some(outcome)), _) => {
                        let record = call.ended(&outcome);
                        self.end_waited(call, record);
                    }
                    (None, true) => drop(self.waited.insert(num, call)),
                    (Some(None), _) | (None, false) => self.again(call),
                }
            }
        }
    }
}
