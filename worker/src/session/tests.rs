//! What a node decides about calls and builds, without a clock, a task or a socket.

use faena_domain::{CallNum, Epoch, Limits, Owner, Payload, Serving};
use faena_protocol::db::Renewed;
use faena_protocol::node::{Lease, NodeInfo, ToApi, ToWorker};
use faena_protocol::records::{BuildJob, CallJob, Code};
use std::collections::BTreeMap;

use super::holdings::{Claim, Effect, Event, Holdings, Now, Renewal};

const NOW: Now<'static> = Now { boot: "ours", ms: 100_000 };
const CLAIM: (CallNum, Epoch) = (CallNum(1), Epoch(1));

fn owner() -> Owner {
    Owner { worker: "w".to_owned(), incarnation: "i".to_owned() }
}

fn holdings() -> Holdings {
    Holdings::new(NodeInfo {
        owner: owner(),
        engines: Vec::new(),
        slots: 4,
        build_slots: 2,
        memory_bytes: 0,
        version: String::new(),
        direct: Vec::new(),
    })
}

fn code() -> Code {
    faena_test_support::code("f", Serving::default())
}

fn call(has_row: bool) -> ToWorker {
    let job = CallJob {
        num: CLAIM.0,
        epoch: CLAIM.1,
        attempt: 1,
        code: code(),
        params: Payload::empty(),
        body: None,
        request: None,
        direct: false,
        timeout_ms: 1000,
        expires: false,
        deadline_unix_ms: 0,
        queue_ms: 0,
        traceparent: String::new(),
        has_row,
        placement: None,
    };
    ToWorker::Call { job: Box::new(job), lease: lease("ours") }
}

fn build() -> ToWorker {
    let body = br#"{"image": "fake", "path": "/ws", "dependencies": "", "run": "r"}"#;
    let runtime = faena_domain::RuntimeSpec::parse(body, &Limits::MAXIMUM).unwrap();
    ToWorker::Build {
        job: Box::new(BuildJob { epoch: Epoch(1), runtime, code: code(), env: BTreeMap::new(), config: None }),
        lease: lease("ours"),
    }
}

fn lease(boot: &str) -> Lease {
    Lease { boot: boot.to_owned(), until_ms: 130_000 }
}

fn ended() -> Event {
    Event::Tell(ToApi::Ended { num: CLAIM.0, epoch: CLAIM.1, outcome: None, queued: None })
}

/// When a task that begins has to end, where one begins.
fn begins(effects: &[Effect]) -> Option<u64> {
    effects.iter().find_map(|effect| match effect {
        Effect::BeginCall { until_ms, .. } | Effect::BeginBuild { until_ms, .. } => Some(*until_ms),
        _ => None,
    })
}

fn is_stopped(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| {
        matches!(
            effect,
            Effect::Stop(_) | Effect::BeginCall { is_stopped: true, .. } | Effect::BeginBuild { is_stopped: true, .. }
        )
    })
}

#[test]
fn a_call_begins_once_whatever_is_sent_again() {
    let mut held = holdings();
    assert_eq!(begins(&held.message(call(true), NOW)), Some(129_000), "a little before its lease ends");
    assert!(held.message(call(true), NOW).is_empty());
    held.event(ended());
    assert!(held.message(call(true), NOW).is_empty(), "its end is not acknowledged yet");
    let ToWorker::Call { job, .. } = call(true) else { unreachable!() };
    held.message(ToWorker::EndedAck { num: job.num, epoch: job.epoch }, NOW);
    assert!(begins(&held.message(call(true), NOW)).is_some());
}

#[test]
fn a_lease_of_another_clock_has_to_be_renewed_before_anything_begins() {
    let ToWorker::Call { job, .. } = call(true) else { unreachable!() };
    let sent = ToWorker::Call { job, lease: lease("another") };
    assert_eq!(begins(&holdings().message(sent, NOW)), Some(0));
    let ToWorker::Call { job, .. } = call(false) else { unreachable!() };
    let sent = ToWorker::Call { job, lease: lease("another") };
    assert_eq!(begins(&holdings().message(sent, NOW)), Some(129_000), "a call without a row is its api's to judge");
}

#[test]
fn ends_are_told_again_after_each_reconnect_until_they_are_acknowledged() {
    let mut held = holdings();
    held.message(call(true), NOW);
    held.event(ended());
    let tells_end =
        |effects: Vec<Effect>| effects.iter().any(|effect| matches!(effect, Effect::Tell(ToApi::Ended { .. })));
    assert!(tells_end(held.connected()) && tells_end(held.connected()));
    held.message(ToWorker::EndedAck { num: CLAIM.0, epoch: CLAIM.1 }, NOW);
    assert!(!tells_end(held.connected()));
}

#[test]
fn what_another_claim_has_taken_over_is_stopped_and_the_rest_is_extended() {
    let mut held = holdings();
    held.message(call(true), NOW);
    held.message(build(), NOW);
    let effects = held.renew(&owner(), NOW.ms);
    let request = effects.into_iter().find_map(|effect| match effect {
        Effect::Renew(request) => Some(request),
        _ => None,
    });
    let request = request.expect("leases are renewed");
    assert_eq!((request.calls.len(), request.builds.len()), (1, 1));
    let renewed = Renewed { stale_calls: vec![CLAIM], ..Renewed::default() };
    let effects = held.event(Event::Renewed(Box::new(Renewal { asked_ms: NOW.ms, request, renewed })));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Stop(Claim::Call(CLAIM)))));
    assert!(
        effects.iter().any(|effect| { matches!(effect, Effect::Extend { claim: Claim::Build(_), until_ms: 129_000 }) })
    );
}

#[test]
fn a_call_without_a_row_is_extended_while_the_api_hears_us() {
    let mut held = holdings();
    held.connected();
    held.message(call(false), NOW);
    let extends =
        |held: &Holdings| held.renew(&owner(), NOW.ms).iter().any(|effect| matches!(effect, Effect::Extend { .. }));
    assert!(extends(&held));
    held.disconnected();
    assert!(!extends(&held));
    held.connected();
    held.message(ToWorker::Persisted { num: CLAIM.0, epoch: CLAIM.1 }, NOW);
    assert!(!extends(&held), "db judges it now");
}

#[test]
fn db_hears_of_starts_of_calls_that_still_run_and_have_a_row() {
    let mut held = holdings();
    held.message(call(true), NOW);
    held.event(Event::Started(CLAIM));
    assert!(held.has_started());
    assert!(matches!(held.tell_started()[..], [Effect::TellStarted(ref calls)] if calls[..] == [CLAIM]));
    held.event(Event::Started(CLAIM));
    held.event(ended());
    assert!(held.tell_started().is_empty(), "its end says more");
}

#[test]
fn a_drain_begins_nothing_and_is_over_when_everybody_knows() {
    let mut held = holdings();
    held.message(call(true), NOW);
    held.drain();
    assert!(is_stopped(&held.message(build(), NOW)), "what was on its way is given back");
    assert!(!held.is_drained());
    held.event(ended());
    held.event(Event::CallReleased);
    let ToWorker::Build { job, .. } = build() else { unreachable!() };
    held.event(Event::BuildEnded(job.reference(), false));
    assert!(!held.is_drained(), "the end of the call is not acknowledged");
    held.message(ToWorker::EndedAck { num: CLAIM.0, epoch: CLAIM.1 }, NOW);
    assert!(held.is_drained() && held.running() == (0, 0));
}

#[test]
fn only_a_call_that_runs_here_is_stopped() {
    let mut held = holdings();
    let cancel = || ToWorker::Cancel { num: CLAIM.0, epoch: CLAIM.1 };
    assert!(!is_stopped(&held.message(cancel(), NOW)));
    held.message(call(true), NOW);
    assert!(is_stopped(&held.message(cancel(), NOW)));
}
