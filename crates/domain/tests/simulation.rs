//! The queue core through histories that no test could wait for: crashes, duplicates, lost replies, stopped workers,
//! restarts of the database, all from one seed.
//!
//! A run has a database that keeps entries durably and answers only what it has committed, workers that claim, start,
//! renew, finish and die, and a network that loses, repeats and delays. The checker knows what anybody was told and what
//! ran where, and holds both against the rows. `make simulate SEEDS=100000` runs more; `FAENA_SEED=7` runs one.
//!
//! That it can fail is proven too: six broken cores, each found by some seed (`every_broken_core_is_found`).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::BTreeMap;
use std::fmt::Write;

use faena_domain::lease::{LEASE_MS, Lease};
use faena_domain::queue::{At, Effect, End, Entry, Event, MAX_REDELIVERIES, Refused, Stepped, step};
use faena_domain::{CallStatus, Epoch, ErrorKind, Owner};

const CALLS: usize = 4;
const WORKERS: usize = 3;
/// A worker stops what it runs this much before its lease ends, as it knows it.
const MARGIN_MS: i64 = 1000;
const RETRIES: u32 = 2;
const AGE_MS: i64 = 600_000;

/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(most).unwrap()).unwrap()
    }

    fn millis(&mut self, most: i64) -> i64 {
        i64::try_from(self.next() >> 1).unwrap() % most
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn uniform(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).unwrap()) / f64::from(u32::MAX)
    }
}

/// What is wrong with a core, or with who keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// A write is accepted from any sender.
    Fence,
    /// An answer goes out before its commit, which a crash then takes back.
    EarlyAck,
    /// A lease that was given up is renewed as if it held.
    DeadLease,
    /// A dead letter for a write that came twice.
    DoubleLetter,
    /// A lease is judged before its end.
    EarlyReap,
    /// Who sends a write again hears that its claim is over.
    StaleRepeat,
}

/// An attempt as its worker knows it.
#[derive(Clone, Debug)]
struct Attempt {
    call: usize,
    epoch: Epoch,
    /// The worker stops it then, unless it could renew.
    until: i64,
    running: bool,
    /// What it says until it is answered: how it ended, or that it is given back.
    last: Option<Last>,
}

#[derive(Clone, Copy, Debug)]
enum Last {
    End(End),
    GiveBack,
}

struct Worker {
    owner: Owner,
    attempts: Vec<Attempt>,
    /// Nothing of it moves before this.
    stopped_until: i64,
}

/// A request on its way to the database, perhaps not for the first time.
#[derive(Clone)]
struct Message {
    worker: usize,
    call: usize,
    event: Event,
    sent_at: i64,
}

struct World {
    random: Random,
    broken: Option<Broken>,
    now: i64,
    /// What is durable.
    rows: Vec<Entry>,
    /// What a crash takes back: only a broken database answers before it commits.
    uncommitted: Vec<(usize, Entry)>,
    workers: Vec<Worker>,
    network: Vec<Message>,
    incarnations: u32,
    letters: BTreeMap<usize, u32>,
    /// The terminal status that anybody was ever told.
    told: BTreeMap<usize, CallStatus>,
    /// The end that was on record first.
    ended: BTreeMap<usize, Entry>,
    history: String,
}

type Violation = String;

impl World {
    fn new(seed: u64, broken: Option<Broken>) -> Self {
        let mut world = Self {
            random: Random(seed),
            broken,
            now: 0,
            rows: (0..CALLS).map(|_| Entry::accepted(RETRIES, 0, AGE_MS, true, false)).collect(),
            uncommitted: Vec::new(),
            workers: Vec::new(),
            network: Vec::new(),
            incarnations: 0,
            letters: BTreeMap::new(),
            told: BTreeMap::new(),
            ended: BTreeMap::new(),
            history: String::new(),
        };
        for name in 0..WORKERS {
            let owner = world.new_owner(name);
            world.workers.push(Worker { owner, attempts: Vec::new(), stopped_until: 0 });
        }
        world
    }

    fn new_owner(&mut self, name: usize) -> Owner {
        self.incarnations += 1;
        Owner { worker: format!("w{name}"), incarnation: self.incarnations.to_string() }
    }

    fn note(&mut self, text: impl std::fmt::Display) {
        writeln!(self.history, "{:>8} {text}", self.now).unwrap();
    }

    /// The database takes a step, as well as it can.
    fn take(&mut self, call: usize, event: &Event) -> Result<Stepped, Refused> {
        let at = At { now: self.now, uniform: self.random.uniform() };
        let (mut row, mut event) = (self.rows[call].clone(), event.clone());
        match (self.broken, &event) {
            (Some(Broken::Fence), _) => event = unfenced(event, &row),
            (Some(Broken::DeadLease), Event::Renew { epoch, owner })
                if row.status == CallStatus::Pending && row.lease.epoch == *epoch =>
            {
                let lease = Lease { end: at.now + LEASE_MS, owner: Some(owner.clone()), ..row.lease };
                self.rows[call] = Entry { status: CallStatus::Running, lease, ..row };
                return Ok(Stepped { entry: self.rows[call].clone(), effects: Vec::new() });
            }
            (Some(Broken::EarlyReap), Event::Tick) => row.lease.end -= LEASE_MS / 2,
            _ => {}
        }
        let stepped = step(&row, &event, &at);
        match (self.broken, &stepped) {
            (Some(Broken::StaleRepeat), Err(Refused::Already(_))) => return Err(Refused::Stale),
            (Some(Broken::DoubleLetter), Err(Refused::Already(CallStatus::Failed))) => {
                *self.letters.entry(call).or_default() += 1;
            }
            _ => {}
        }
        let stepped = stepped?;
        if self.broken == Some(Broken::EarlyAck) {
            self.uncommitted.push((call, row));
        }
        self.rows[call] = stepped.entry.clone();
        let letters = stepped.effects.iter().filter(|effect| **effect == Effect::DeadLetter).count();
        *self.letters.entry(call).or_default() += u32::try_from(letters).unwrap();
        Ok(stepped)
    }

    fn claim(&mut self) {
        let (worker, call) = (self.random.below(WORKERS), self.random.below(CALLS));
        if self.is_stopped(worker) || self.workers[worker].attempts.len() >= 2 {
            return;
        }
        let (owner, asked_at) = (self.workers[worker].owner.clone(), self.now);
        if let Ok(stepped) = self.take(call, &Event::Claim { owner }) {
            let epoch = stepped.entry.lease.epoch;
            self.note(format!("w{worker} claims call {call} under epoch {epoch}"));
            // The message with the job may be lost; then nobody runs it until its lease ends.
            if self.random.chance(90) {
                let until = asked_at + LEASE_MS - MARGIN_MS;
                self.workers[worker].attempts.push(Attempt { call, epoch, until, running: false, last: None });
            }
        }
    }

    fn is_stopped(&self, worker: usize) -> bool {
        self.workers[worker].stopped_until > self.now
    }

    fn send(&mut self, worker: usize, call: usize, event: Event) {
        let copies = match self.random.below(10) {
            0 => 0,
            1 => 2,
            _ => 1,
        };
        let message = Message { worker, call, event, sent_at: self.now };
        self.network.extend(std::iter::repeat_n(message, copies));
    }

    /// Each worker does one thing with each of its attempts.
    fn work(&mut self) {
        let now = self.now;
        for worker in 0..WORKERS {
            // The agent needs nobody to end what its lease does not cover.
            for attempt in self.workers[worker].attempts.iter_mut().filter(|attempt| attempt.until <= now) {
                attempt.running = false;
            }
            if self.is_stopped(worker) {
                continue;
            }
            for index in 0..self.workers[worker].attempts.len() {
                let event = self.next_of(worker, index);
                if let Some(event) = event {
                    let call = self.workers[worker].attempts[index].call;
                    self.send(worker, call, event);
                }
            }
        }
    }

    fn next_of(&mut self, worker: usize, index: usize) -> Option<Event> {
        let choice = self.random.below(8);
        let attempt = self.workers[worker].attempts[index].clone();
        let (epoch, owner) = (attempt.epoch, self.workers[worker].owner.clone());
        match (attempt.last, choice) {
            (Some(Last::End(end)), _) => Some(Event::Finish { epoch, owner, end }),
            (Some(Last::GiveBack), _) => Some(Event::GiveBack { epoch, owner }),
            (None, 0) => {
                self.over(worker, index, Last::GiveBack);
                Some(Event::GiveBack { epoch, owner })
            }
            (None, 1 | 2) => Some(Event::Renew { epoch, owner }),
            (None, 3 | 4) if attempt.until > self.now => {
                self.workers[worker].attempts[index].running = true;
                Some(Event::Start { epoch, owner })
            }
            (None, 5 | 6) => {
                let end = self.outcome(attempt.running);
                self.over(worker, index, Last::End(end));
                Some(Event::Finish { epoch, owner, end })
            }
            _ => None,
        }
    }

    /// Nothing of it runs before anything is said of its end.
    fn over(&mut self, worker: usize, index: usize, last: Last) {
        let attempt = &mut self.workers[worker].attempts[index];
        (attempt.last, attempt.running) = (Some(last), false);
    }

    fn outcome(&mut self, started: bool) -> End {
        let (status, kind) = match self.random.below(6) {
            0 | 1 => (CallStatus::Done, None),
            2 => (CallStatus::Failed, Some(ErrorKind::Exit)),
            3 => (CallStatus::Timeout, Some(ErrorKind::Timeout)),
            4 => (CallStatus::Failed, Some(ErrorKind::Output)),
            _ => (CallStatus::Failed, Some(ErrorKind::Infrastructure)),
        };
        End { status, kind, started }
    }

    /// Some message arrives; its answer may be lost.
    fn deliver(&mut self) -> Result<(), Violation> {
        if self.network.is_empty() {
            return Ok(());
        }
        let index = self.random.below(self.network.len());
        let message = self.network.swap_remove(index);
        let before = self.rows[message.call].clone();
        let result = self.take(message.call, &message.event);
        let heard = result.as_ref().map(|stepped| stepped.entry.status);
        self.note(format!("db hears {:?} of call {}: {heard:?}", message.event, message.call));
        check_fence(&message, &before, &result)?;
        if self.random.chance(15) || self.is_stopped(message.worker) {
            return Ok(());
        }
        self.answered(&message, &result)
    }

    /// What a worker does with an answer.
    fn answered(&mut self, message: &Message, result: &Result<Stepped, Refused>) -> Result<(), Violation> {
        let (epoch, ends) = match &message.event {
            Event::Finish { epoch, .. } | Event::GiveBack { epoch, .. } => (*epoch, true),
            Event::Start { epoch, .. } | Event::Renew { epoch, .. } => (*epoch, false),
            _ => return Ok(()),
        };
        let status = match result {
            Ok(stepped) => Some(stepped.entry.status),
            Err(Refused::Already(status)) => Some(*status),
            Err(_) => None,
        };
        let call = message.call;
        if let Some(status) = status.filter(|status| status.is_terminal()) {
            self.told(call, status)?;
        }
        let attempts = &mut self.workers[message.worker].attempts;
        if ends || status.is_none() {
            attempts.retain(|attempt| (attempt.call, attempt.epoch) != (call, epoch));
        } else if matches!(message.event, Event::Renew { .. }) {
            let until = message.sent_at + LEASE_MS - MARGIN_MS;
            let held = attempts.iter_mut().filter(|attempt| (attempt.call, attempt.epoch) == (call, epoch));
            held.for_each(|attempt| attempt.until = attempt.until.max(until));
        }
        Ok(())
    }

    /// Somebody hears how a call ended: nobody may ever hear otherwise.
    fn told(&mut self, call: usize, status: CallStatus) -> Result<(), Violation> {
        match self.told.insert(call, status) {
            Some(before) if before != status => Err(format!("call {call} was told {before:?} and then {status:?}")),
            _ => Ok(()),
        }
    }

    /// Something breaks, or somebody asks.
    fn break_something(&mut self) -> Result<(), Violation> {
        let (worker, call) = (self.random.below(WORKERS), self.random.below(CALLS));
        match self.random.below(5) {
            0 => self.kill_worker(worker),
            1 => {
                let span = self.random.millis(90_000);
                self.note(format!("w{worker} is stopped for {span} ms"));
                self.workers[worker].stopped_until = self.now + span;
            }
            2 => self.kill_database(),
            3 if self.random.chance(5) => {
                if let Ok(stepped) = self.take(call, &Event::Cancel) {
                    self.note(format!("call {call} is cancelled"));
                    self.told(call, stepped.entry.status)?;
                }
            }
            _ => {
                let status = self.rows[call].status;
                if status.is_terminal() {
                    self.told(call, status)?;
                }
            }
        }
        Ok(())
    }

    /// The next run of the same worker proves it dead, once everything of it has been removed.
    fn kill_worker(&mut self, worker: usize) {
        self.note(format!("w{worker} is killed and starts again"));
        let successor = self.new_owner(worker);
        self.workers[worker] = Worker { owner: successor.clone(), attempts: Vec::new(), stopped_until: 0 };
        for call in 0..CALLS {
            // Most of them are not its own.
            let _ = self.take(call, &Event::OwnerDied { successor: successor.clone() });
        }
    }

    fn kill_database(&mut self) {
        self.note("the database is killed and starts again");
        for (call, row) in std::mem::take(&mut self.uncommitted).into_iter().rev() {
            self.rows[call] = row;
        }
        self.network.clear();
        for call in 0..CALLS {
            // Only what runs has a lease.
            let _ = self.take(call, &Event::Restarted);
        }
    }

    fn tick(&mut self) {
        for call in 0..CALLS {
            if self.take(call, &Event::Tick).is_ok() {
                let status = self.rows[call].status;
                self.note(format!("call {call} is judged: {status:?}"));
            }
        }
        // What nobody waits for is committed at some time too.
        if self.random.chance(50) {
            self.uncommitted.clear();
        }
    }

    /// What must hold at any moment.
    fn check(&mut self) -> Result<(), Violation> {
        for call in 0..CALLS {
            self.check_one_runner(call)?;
            let row = &self.rows[call];
            if row.failures > row.retries + 1 || row.redeliveries > MAX_REDELIVERIES {
                return Err(format!("call {call} spent more than its budgets: {row:?}"));
            }
            if let Some(ended) = self.ended.get(&call).filter(|ended| *ended != row) {
                return Err(format!("call {call} had ended as {ended:?} and is now {row:?}"));
            }
            if let Some(told) = self.told.get(&call).filter(|told| **told != row.status) {
                return Err(format!("call {call} was told {told:?} and is {:?}", row.status));
            }
            let is_given_up = matches!(row.status, CallStatus::Failed | CallStatus::Timeout | CallStatus::Expired);
            let letters = self.letters.get(&call).copied().unwrap_or(0);
            if letters != u32::from(is_given_up) {
                return Err(format!("call {call} is {:?} and has {letters} dead letters", row.status));
            }
            if row.status.is_terminal() {
                self.ended.insert(call, row.clone());
            }
        }
        Ok(())
    }

    fn check_one_runner(&self, call: usize) -> Result<(), Violation> {
        let runs = |attempt: &&Attempt| attempt.call == call && attempt.running && attempt.until > self.now;
        let runners = self.workers.iter().flat_map(|worker| &worker.attempts).filter(runs).count();
        if runners > 1 { Err(format!("call {call} runs {runners} times at once")) } else { Ok(()) }
    }

    fn run(&mut self) -> Result<(), Violation> {
        for _ in 0..400 {
            self.now += self.random.millis(1500);
            match self.random.below(10) {
                0 | 1 => self.claim(),
                2 | 3 => self.work(),
                4..=7 => self.deliver()?,
                8 => self.tick(),
                _ => self.break_something()?,
            }
            self.check()?;
        }
        self.settle()
    }

    /// With nobody left to break anything every call reaches its end.
    fn settle(&mut self) -> Result<(), Violation> {
        self.workers.iter_mut().for_each(|worker| worker.attempts.clear());
        self.network.clear();
        self.uncommitted.clear();
        self.now = self.now.max(AGE_MS);
        for _ in 0..3 {
            self.now += 2 * LEASE_MS;
            self.tick();
        }
        self.check()?;
        match self.rows.iter().position(|row| !row.status.is_terminal()) {
            Some(call) => Err(format!("call {call} never ended: {:?}", self.rows[call])),
            None => Ok(()),
        }
    }
}

/// Only the claim that holds a row changes it, and who writes the same again hears so.
fn check_fence(message: &Message, before: &Entry, result: &Result<Stepped, Refused>) -> Result<(), Violation> {
    let (Event::Finish { epoch, owner, .. } | Event::GiveBack { epoch, owner } | Event::Renew { epoch, owner }) =
        &message.event
    else {
        return Ok(());
    };
    let is_holder = before.lease.is_held_by(*epoch, owner);
    let call = message.call;
    match result {
        Ok(_) if !is_holder || before.status != CallStatus::Running => {
            Err(format!("call {call} was changed by {owner} under epoch {epoch}, which does not hold it"))
        }
        Err(Refused::Stale) if is_holder => {
            Err(format!("call {call}: {owner} wrote again under its own claim and heard that it is over"))
        }
        _ => Ok(()),
    }
}

fn unfenced(event: Event, row: &Entry) -> Event {
    let holder = |owner: Owner| row.lease.owner.clone().unwrap_or(owner);
    match event {
        Event::Finish { owner, end, .. } => Event::Finish { epoch: row.lease.epoch, owner: holder(owner), end },
        Event::GiveBack { owner, .. } => Event::GiveBack { epoch: row.lease.epoch, owner: holder(owner) },
        other => other,
    }
}

fn simulate(seed: u64, broken: Option<Broken>) -> Result<(), (Violation, String)> {
    let mut world = World::new(seed, broken);
    world.run().map_err(|violation| (violation, std::mem::take(&mut world.history)))
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn no_history_breaks_a_promise() {
    let seeds = setting("FAENA_SEED").map_or(0..setting("SEEDS").unwrap_or(10_000), |seed| seed..seed + 1);
    for seed in seeds {
        if let Err((violation, history)) = simulate(seed, None) {
            panic!("seed {seed}: {violation}\n{history}");
        }
    }
}

#[test]
fn every_broken_core_is_found() {
    let all = [
        Broken::Fence,
        Broken::EarlyAck,
        Broken::DeadLease,
        Broken::DoubleLetter,
        Broken::EarlyReap,
        Broken::StaleRepeat,
    ];
    for broken in all {
        let found = (0..10_000).find_map(|seed| simulate(seed, Some(broken)).err().map(|error| (seed, error.0)));
        let Some((seed, violation)) = found else { panic!("no seed finds {broken:?}") };
        println!("{broken:?} is found by seed {seed}: {violation}");
    }
}
