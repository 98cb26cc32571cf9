//! Which instance should go first: keep-alive policies over one synthetic day, at equal memory.
//!
//! The trace is made up, and says so: functions and calls by trigger, durations (log-normal) and memory (Burr) follow what was published of
//! Azure Functions (Shahrad and others, Serverless in the Wild, ATC 2020, arXiv 2003.03423); rates span eight orders of
//! magnitude; timers are regular, everything else arrives at random. The seed is printed, and the same seed is the same day.
//!
//! `keep_alive [SEED] [FUNCTIONS] [GIGABYTES…]` prints, for each memory: cold starts, what they cost, and that cost over
//! the one of a fixed ten minutes. The best of all policies is hard to find even if the day is known in advance, so
//! [`offline`] brackets it: a plan that could be followed, and a bound that no policy passes.

#[path = "keep_alive/offline.rs"]
mod offline;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use faena_domain::keep_alive::GreedyDual;

const DAY_S: f64 = 86_400.0;
const MB: f64 = 1024.0 * 1024.0;
/// The most calls of one function in a day: the busiest are thinned to it. They are warm under every policy.
const MOST_CALLS: f64 = 10_000.0;

/// A generator of random numbers (SplitMix64, Steele and others, OOPSLA 2014), so that a day depends on its seed alone.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Drawn from (0, 1).
    #[expect(clippy::cast_precision_loss, reason = "53 bits are all that a number has")]
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.uniform().ln()
    }
}

struct Function {
    bytes: u64,
    start_ms: f64,
    run_s: f64,
    calls: Vec<f64>,
}

/// Burr XII with c, k and λ of the published memory of applications, in megabytes.
fn memory(random: &mut Random) -> f64 {
    let (c, k, scale) = (11.652, 0.221, 107.083);
    (scale * ((1.0 - random.uniform()).powf(-1.0 / k) - 1.0).powf(1.0 / c)).clamp(16.0, 2048.0)
}

fn function(random: &mut Random) -> Function {
    let is_timer = random.uniform() < 0.16;
    // From one call in a day to a thousand a second, before the busiest are thinned.
    let a_day = 10f64.powf(8.0 * random.uniform()).min(MOST_CALLS);
    let run_s = (-0.38 + 2.36 * random.normal()).exp().clamp(0.001, 60.0);
    let megabytes = memory(random);
    let start_ms = (5.5 + 0.8 * random.normal()).exp() + megabytes;
    let gap = (DAY_S / a_day).max(if is_timer { 60.0 } else { 0.0 });
    let (mut calls, mut at) = (Vec::new(), gap * random.uniform());
    while at < DAY_S {
        calls.push(at);
        at += if is_timer { gap } else { random.exponential(gap) };
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "megabytes of one instance")]
    Function { bytes: (megabytes * MB) as u64, start_ms, run_s, calls }
}

/// Calls in the order of their times.
fn trace(functions: &[Function]) -> Vec<(f64, usize)> {
    let of =
        |(index, function): (usize, &Function)| function.calls.iter().map(move |at| (*at, index)).collect::<Vec<_>>();
    let mut calls: Vec<(f64, usize)> = functions.iter().enumerate().flat_map(of).collect();
    calls.sort_by(|a, b| a.0.total_cmp(&b.0));
    calls
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Policy {
    /// Idle instances go after a while; when room is short, whatever waits longest.
    Fixed(f64),
    /// What was used longest ago goes when room is short, and nothing before.
    Lru,
    /// What this platform does.
    GreedyDual,
}

struct Idle {
    function: usize,
    since: f64,
    /// Calls that it has answered.
    calls: u64,
    worth: f64,
}

/// An instance that works. The first to end is the greatest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Busy {
    end: Reverse<u64>,
    function: usize,
    calls: u64,
}

struct Node<'a> {
    functions: &'a [Function],
    policy: Policy,
    memory: u64,
    held: u64,
    idle: BTreeMap<u64, Idle>,
    of: Vec<Vec<u64>>,
    busy: BinaryHeap<Busy>,
    dual: GreedyDual,
    next_id: u64,
    cold: u64,
    cost_ms: f64,
    refused: u64,
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "milliseconds of a day")]
fn ms(at: f64) -> u64 {
    (at * 1000.0) as u64
}

impl<'a> Node<'a> {
    fn new(functions: &'a [Function], policy: Policy, memory: u64) -> Self {
        Self {
            functions,
            policy,
            memory,
            held: 0,
            idle: BTreeMap::new(),
            of: vec![Vec::new(); functions.len()],
            busy: BinaryHeap::new(),
            dual: GreedyDual::default(),
            next_id: 0,
            cold: 0,
            cost_ms: 0.0,
            refused: 0,
        }
    }

    /// What an instance that is idle from now on is worth; the least goes first.
    fn worth(&self, function: usize, at: f64, calls: u64) -> f64 {
        let known = &self.functions[function];
        match self.policy {
            Policy::Fixed(_) | Policy::Lru => at,
            Policy::GreedyDual => self.dual.worth(calls, known.start_ms, known.bytes),
        }
    }

    fn release(&mut self, at: f64) {
        while let Some(&Busy { end: Reverse(end), function, calls }) = self.busy.peek()
            && end <= ms(at)
        {
            self.busy.pop();
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of a day")]
            let since = end as f64 / 1000.0;
            let worth = self.worth(function, since, calls);
            self.next_id += 1;
            self.idle.insert(self.next_id, Idle { function, since, calls, worth });
            self.of[function].push(self.next_id);
        }
        if let Policy::Fixed(most) = self.policy {
            // In the order in which they became idle, which is nearly that of their numbers.
            let old: Vec<u64> =
                self.idle.iter().take_while(|(_, idle)| at - idle.since > most).map(|(id, _)| *id).collect();
            old.into_iter().for_each(|id| self.drop_idle(id));
        }
    }

    fn drop_idle(&mut self, id: u64) {
        if let Some(idle) = self.idle.remove(&id) {
            self.of[idle.function].retain(|found| *found != id);
            self.held -= self.functions[idle.function].bytes;
        }
    }

    /// Makes room; false where everything works.
    fn make_room(&mut self, bytes: u64) -> bool {
        while self.held + bytes > self.memory {
            let least = self.idle.iter().min_by(|(_, a), (_, b)| a.worth.total_cmp(&b.worth));
            let Some((id, worth)) = least.map(|(id, idle)| (*id, idle.worth)) else { return false };
            self.dual.evicted(if self.policy == Policy::GreedyDual { worth } else { 0.0 });
            self.drop_idle(id);
        }
        true
    }

    fn call(&mut self, at: f64, function: usize) {
        self.release(at);
        let known = &self.functions[function];
        let end = |start_ms: f64| Reverse(ms(at + known.run_s + start_ms / 1000.0));
        // The one that was used last.
        if let Some(idle) = self.of[function].pop().and_then(|id| self.idle.remove(&id)) {
            return self.busy.push(Busy { end: end(0.0), function, calls: idle.calls + 1 });
        }
        if !self.make_room(known.bytes) {
            self.refused += 1;
            return;
        }
        self.cold += 1;
        self.cost_ms += known.start_ms;
        self.held += known.bytes;
        self.busy.push(Busy { end: end(known.start_ms), function, calls: 1 });
    }
}

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let (seed, count) = (numbers.first().copied().unwrap_or(1), numbers.get(1).copied().unwrap_or(300));
    let sizes: Vec<u64> = if numbers.len() > 2 { numbers[2..].to_vec() } else { vec![32, 48, 64, 96, 128] };
    let mut random = Random(seed);
    let functions: Vec<Function> = (0..count).map(|_| function(&mut random)).collect();
    let calls = trace(&functions);
    let day = offline::Day::new(&functions);
    println!("synthetic day, seed {seed}: {count} functions, {} calls", calls.len());
    println!("| memory | policy | cold starts | % of calls | their cost, s | ÷ fixed 10 min | found no room |");
    println!("|---|---|---|---|---|---|---|");
    for gigabytes in sizes {
        let memory = gigabytes << 30;
        let mut base = f64::NAN;
        let mut row = |name: &str, cold: Option<u64>, cost_ms: f64, refused: &str| {
            if base.is_nan() {
                base = cost_ms;
            }
            #[expect(clippy::cast_precision_loss, reason = "counts of a day")]
            let share = |cold: u64| format!("{:.2}", 100.0 * cold as f64 / calls.len() as f64);
            println!(
                "| {gigabytes} GB | {name} | {} | {} | {:.0} | {:.2} | {refused} |",
                cold.map_or_else(|| "–".to_owned(), |cold| cold.to_string()),
                cold.map_or_else(|| "–".to_owned(), share),
                cost_ms / 1000.0,
                cost_ms / base,
            );
        };
        for (name, policy) in [
            ("fixed 10 min", Policy::Fixed(600.0)),
            ("fixed 20 min", Policy::Fixed(1200.0)),
            ("least recently used", Policy::Lru),
            ("greedy-dual (ours)", Policy::GreedyDual),
        ] {
            let mut node = Node::new(&functions, policy, memory);
            calls.iter().for_each(|(at, function)| node.call(*at, *function));
            row(name, Some(node.cold), node.cost_ms, &node.refused.to_string());
        }
        let (cold, cost_ms) = day.plan(memory);
        row("offline, a plan", Some(cold), cost_ms, "–");
        row("offline, no policy is below", None, day.bound(memory), "–");
    }
}
