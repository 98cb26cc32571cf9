//! Which instance should go first: keep-alive policies over one synthetic day, at equal memory.
//!
//! The trace is made up, and says so: functions and calls by trigger, durations (log-normal) and memory (Burr) follow what was published of
//! Azure Functions (Shahrad and others, Serverless in the Wild, ATC 2020, arXiv 2003.03423); rates span eight orders of
//! magnitude; timers are regular, everything else arrives at random. The seed is printed, and the same seed is the same day.
//!
//! `keep_alive [SEED] [FUNCTIONS] [GIGABYTES…]` prints, for each memory: cold starts, what they cost, and that cost over
//! the one of a fixed ten minutes. Offline is a policy that knows when each function is called next: no real one can do
//! what it does, and it bounds what is left to gain.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use faena_domain::keep_alive::{GreedyDual, Window};

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
    /// Knows when each function is called next.
    Offline,
}

struct Idle {
    function: usize,
    since: f64,
    worth: f64,
}

struct Node<'a> {
    functions: &'a [Function],
    policy: Policy,
    memory: u64,
    held: u64,
    idle: BTreeMap<u64, Idle>,
    of: Vec<Vec<u64>>,
    /// Instances that work, by when they end.
    busy: BinaryHeap<(Reverse<u64>, usize)>,
    windows: Vec<Window>,
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
            windows: (0..functions.len()).map(|_| Window::default()).collect(),
            dual: GreedyDual::default(),
            next_id: 0,
            cold: 0,
            cost_ms: 0.0,
            refused: 0,
        }
    }

    /// What an instance that is idle from now on is worth; the least goes first.
    #[expect(clippy::cast_precision_loss, reason = "bytes of one instance")]
    fn worth(&mut self, function: usize, at: f64) -> f64 {
        let known = &self.functions[function];
        // Of several that wait for the same function the last one is used only when so many are called at once.
        let others = self.of[function].len();
        match self.policy {
            Policy::Fixed(_) | Policy::Lru => at,
            Policy::GreedyDual => {
                let calls = self.windows[function].calls(ms(at)).max(1);
                self.dual.worth(calls, others, known.start_ms, known.bytes)
            }
            Policy::Offline => {
                let next = known.calls.partition_point(|call| *call <= at);
                let wait = known.calls.get(next + others).map_or(f64::INFINITY, |call| call - at);
                known.start_ms / (known.bytes as f64 * wait.max(1e-6))
            }
        }
    }

    fn release(&mut self, at: f64) {
        while let Some((Reverse(end), function)) = self.busy.peek().copied()
            && end <= ms(at)
        {
            self.busy.pop();
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of a day")]
            let since = end as f64 / 1000.0;
            let worth = self.worth(function, since);
            self.next_id += 1;
            self.idle.insert(self.next_id, Idle { function, since, worth });
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
        self.windows[function].began(ms(at), 1);
        let known = &self.functions[function];
        let end = |start_ms: f64| Reverse(ms(at + known.run_s + start_ms / 1000.0));
        if let Some(id) = self.of[function].pop() {
            self.idle.remove(&id);
            return self.busy.push((end(0.0), function));
        }
        if !self.make_room(known.bytes) {
            self.refused += 1;
            return;
        }
        self.cold += 1;
        self.cost_ms += known.start_ms;
        self.held += known.bytes;
        self.busy.push((end(known.start_ms), function));
    }
}

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let (seed, count) = (numbers.first().copied().unwrap_or(1), numbers.get(1).copied().unwrap_or(300));
    let sizes: Vec<u64> = if numbers.len() > 2 { numbers[2..].to_vec() } else { vec![24, 32, 48, 64] };
    let mut random = Random(seed);
    let functions: Vec<Function> = (0..count).map(|_| function(&mut random)).collect();
    let calls = trace(&functions);
    println!("synthetic day, seed {seed}: {count} functions, {} calls", calls.len());
    println!("| memory | policy | cold starts | % of calls | their cost, s | ÷ fixed 10 min | found no room |");
    println!("|---|---|---|---|---|---|---|");
    for gigabytes in sizes {
        let mut base = f64::NAN;
        let policies = [
            ("fixed 10 min", Policy::Fixed(600.0)),
            ("fixed 20 min", Policy::Fixed(1200.0)),
            ("least recently used", Policy::Lru),
            ("greedy-dual (ours)", Policy::GreedyDual),
            ("offline, knows the future", Policy::Offline),
        ];
        for (name, policy) in policies {
            let mut node = Node::new(&functions, policy, gigabytes << 30);
            calls.iter().for_each(|(at, function)| node.call(*at, *function));
            if policy == Policy::Fixed(600.0) {
                base = node.cost_ms;
            }
            #[expect(clippy::cast_precision_loss, reason = "counts of a day")]
            let share = 100.0 * node.cold as f64 / calls.len() as f64;
            println!(
                "| {gigabytes} GB | {name} | {} | {share:.2} | {:.0} | {:.2} | {} |",
                node.cold,
                node.cost_ms / 1000.0,
                node.cost_ms / base,
                node.refused
            );
        }
    }
}
