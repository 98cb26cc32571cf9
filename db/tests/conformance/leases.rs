//! Leases, epochs and clocks.

use faena_db::StoreSettings;
use faena_domain::{CallStatus, Epoch, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::*;
use faena_protocol::records::CallSpec;

use super::support::*;

#[tokio::test]
async fn what_is_lost_is_delivered_again_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(DAY);
    let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
    with_built(&service, "dice").await;
    accept(&service, spec(1, "dice")).await;
    let lost = claim(&service, "c").await.pop().unwrap();
    service.ask(CallsStarted { owner: owner("a"), calls: vec![(lost.num, lost.epoch)] }).await.unwrap();
    time.pass(4000);
    assert_eq!(reap(&service).await.lost, 0);
    // In steps shorter than a stall of the service itself.
    for _ in 0..7 {
        time.pass(4000);
        reap(&service).await;
    }
    assert_eq!(status(&service, 1).await, CallStatus::Pending);
    assert_eq!(service.ask(finish(&lost, None)).await, Err(DbError::Stale));
    let again = claim(&service, "d").await.pop().unwrap();
    assert_eq!((again.attempt, again.epoch), (2, lost.epoch.next()));
    service.ask(finish(&again, None)).await.unwrap();
    let call = get(&service, 1).await;
    assert_eq!((call.status, call.attempts.len()), (CallStatus::Done, 2));
    assert_eq!(dead_letters(&service).await, Vec::<i64>::new());
}

#[tokio::test]
async fn a_renewal_names_what_is_anothers() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(DAY);
    let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
    with_built(&service, "dice").await;
    accept(&service, spec(1, "dice")).await;
    let job = claim(&service, "c").await.pop().unwrap();
    let renew = |epoch| LeaseRenew { owner: owner("a"), calls: vec![(job.num, epoch)], builds: Vec::new() };
    for _ in 0..10 {
        time.pass(4000);
        assert_eq!(service.ask(renew(job.epoch)).await.unwrap(), Renewed::default());
        assert_eq!(reap(&service).await.lost, 0);
    }
    let other = Epoch(7);
    assert_eq!(service.ask(renew(other)).await.unwrap().stale_calls, [(job.num, other)]);
    service.ask(CallCancel { namespace: space(), num: job.num }).await.unwrap();
    assert_eq!(service.ask(renew(job.epoch)).await.unwrap().stale_calls, [(job.num, job.epoch)]);
}

#[tokio::test]
async fn a_service_that_was_stopped_grants_every_lease_anew() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(DAY);
    let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
    with_built(&service, "dice").await;
    accept(&service, spec(1, "dice")).await;
    claim(&service, "c").await;
    time.pass(10 * 60_000);
    assert_eq!(reap(&service).await.lost, 0, "nobody could renew meanwhile");
    for _ in 0..8 {
        time.pass(4000);
        reap(&service).await;
    }
    assert_eq!(status(&service, 1).await, CallStatus::Pending);
}

#[tokio::test]
async fn a_wall_clock_that_is_set_moves_no_lease_no_age_and_no_pause() {
    for step in [365 * DAY, -365 * DAY] {
        let folder = tempfile::tempdir().unwrap();
        let time = Time::at(1000 * DAY);
        let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
        with_built(&service, "dice").await;
        accept(&service, CallSpec { retries: Some(1), ..spec(1, "dice") }).await;
        accept(&service, spec(2, "dice")).await;
        let jobs = claim(&service, "c").await;
        service.ask(finish(&jobs[0], exit())).await.unwrap();
        time.set_wall(step);
        assert_eq!(reap(&service).await, Reaped::default());
        assert_eq!(status(&service, 2).await, CallStatus::Running);
        assert_eq!(service.ask(Ping {}).await.unwrap().clock_step_ms, Some(step));
        service.stop().await;
        // Across a restart a clock that was set forward takes a day at most, one that was set back takes nothing.
        let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
        accept(&service, spec(3, "dice")).await;
        let (before, after) = (get(&service, 2).await.created_at, get(&service, 3).await.created_at);
        assert!((before..=before + DAY + 60_000).contains(&after), "{step}: {before} {after}");
    }
}

#[tokio::test]
async fn run_at_is_wall_time_and_age_begins_then() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(1000 * DAY);
    let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
    with_built(&service, "dice").await;
    let run_at = Some(Timestamp(1000 * DAY + DAY));
    accept(&service, CallSpec { run_at, max_age_ms: 60_000, ..spec(1, "dice") }).await;
    time.pass(DAY - 1000);
    reap(&service).await;
    assert_eq!((claim(&service, "c").await.len(), get(&service, 1).await.run_at), (0, run_at));
    time.pass(1000);
    let job = claim(&service, "d").await.pop().unwrap();
    assert!(job.queue_ms < 1000 && job.timeout_ms == 60_000, "{} {}", job.queue_ms, job.timeout_ms);
}

#[tokio::test]
async fn a_call_for_later_expires_although_no_worker_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let time = Time::at(1000 * DAY);
    let service = Service::start_with(folder.path(), StoreSettings::default(), time.clone());
    with_built(&service, "dice").await;
    let run_at = Some(Timestamp(1001 * DAY));
    accept(&service, CallSpec { run_at, max_age_ms: 60_000, ..spec(1, "dice") }).await;
    time.pass(DAY + 61_000);
    reap(&service).await;
    assert_eq!(status(&service, 1).await, CallStatus::Expired);
}
