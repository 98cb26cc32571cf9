//! What could be reached if the day were known in advance (Berger, Beckmann and Harchol-Balter, Practical Bounds on Optimal
//! Caching with Variable Object Sizes, SIGMETRICS 2018, arXiv 1711.03709).
//!
//! An instance that waits from the end of one call to the beginning of another saves a cold start, and holds memory for as
//! long. Those that hold least for what they save are taken first: into what is free all along (a plan, which could be
//! followed), or until as much is held as is free in the whole day together (a bound, since memory that is free in one hour
//! is no use in another). Cold starts are taken to need no time of their own, and nothing is started before it is called.

use super::Function;

/// An instance that might wait between two calls.
struct Wait {
    function: usize,
    from: usize,
    to: usize,
    /// Bytes times seconds for each millisecond that it saves.
    price: f64,
}

/// A day's waits and the memory that its calls need.
pub(crate) struct Day<'a> {
    functions: &'a [Function],
    /// Beginnings and ends of calls, in their order.
    times: Vec<f64>,
    /// What works from each of these times to the next.
    busy: Vec<i64>,
    /// The cheapest first.
    waits: Vec<Wait>,
    /// Calls, and what it would cost to start an instance for each.
    all: (u64, f64),
}

#[expect(clippy::cast_possible_wrap, reason = "bytes of one instance")]
fn signed(bytes: u64) -> i64 {
    bytes as i64
}

impl<'a> Day<'a> {
    pub(crate) fn new(functions: &'a [Function]) -> Self {
        // An end goes before a beginning at the same time: what ends is there for what begins.
        let mut events: Vec<(f64, bool, usize)> = Vec::new();
        for (index, function) in functions.iter().enumerate() {
            events.extend(function.calls.iter().map(|at| (*at, true, index)));
            events.extend(function.calls.iter().map(|at| (*at + function.run_s, false, index)));
        }
        events.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let (mut waits, mut busy, mut working) = (Vec::new(), Vec::with_capacity(events.len()), 0);
        // Of several that wait for one function the last is used first, so that few wait long.
        let mut ended: Vec<Vec<usize>> = vec![Vec::new(); functions.len()];
        let mut all = (0, 0.0);
        for (now, (at, begins, function)) in events.iter().enumerate() {
            let known = &functions[*function];
            if *begins {
                working += signed(known.bytes);
                all.0 += 1;
                all.1 += known.start_ms;
                if let Some(from) = ended[*function].pop() {
                    #[expect(clippy::cast_precision_loss, reason = "bytes of one instance")]
                    let price = (at - events[from].0) * known.bytes as f64 / known.start_ms;
                    waits.push(Wait { function: *function, from, to: now, price });
                }
            } else {
                working -= signed(known.bytes);
                ended[*function].push(now);
            }
            busy.push(working);
        }
        waits.sort_by(|a, b| a.price.total_cmp(&b.price));
        Self { functions, times: events.iter().map(|event| event.0).collect(), busy, waits, all }
    }

    /// Cold starts and their cost where these waits save theirs.
    fn without<'w>(&self, saved: impl Iterator<Item = &'w Wait>) -> (u64, f64) {
        saved.fold(self.all, |(cold, cost_ms), wait| (cold - 1, cost_ms - self.functions[wait.function].start_ms))
    }

    /// What a plan reaches that takes each wait for which there is room from its beginning to its end.
    pub(crate) fn plan(&self, memory: u64) -> (u64, f64) {
        let mut free = Free::new(self.busy.iter().map(|busy| signed(memory) - busy).collect());
        self.without(
            self.waits.iter().filter(|wait| free.take(wait.from..wait.to, signed(self.functions[wait.function].bytes))),
        )
    }

    /// The cost that no policy is below.
    #[expect(clippy::cast_precision_loss, reason = "bytes of one machine")]
    pub(crate) fn bound(&self, memory: u64) -> f64 {
        let spans = self.times.windows(2).map(|pair| pair[1] - pair[0]);
        let free = spans.zip(&self.busy).map(|(span, busy)| span * (signed(memory) - busy).max(0) as f64);
        let mut left: f64 = free.sum();
        let mut cost_ms = self.all.1;
        for wait in &self.waits {
            let start_ms = self.functions[wait.function].start_ms;
            // Of the last one as much as there is room for.
            let part = if wait.price > 0.0 { (left / (wait.price * start_ms)).clamp(0.0, 1.0) } else { 1.0 };
            left -= part * wait.price * start_ms;
            cost_ms -= part * start_ms;
        }
        cost_ms
    }
}

/// What is free at every time: a tree over the times, in which each node knows the least below it.
struct Free {
    leaves: usize,
    /// The least that is free below a node, without what was taken from the nodes above it.
    least: Vec<i64>,
    taken: Vec<i64>,
}

impl Free {
    fn new(free: Vec<i64>) -> Self {
        let leaves = free.len().next_power_of_two();
        let mut least = vec![i64::MAX; 2 * leaves];
        least[leaves..leaves + free.len()].copy_from_slice(&free);
        for node in (1..leaves).rev() {
            least[node] = least[2 * node].min(least[2 * node + 1]);
        }
        Self { leaves, least, taken: vec![0; 2 * leaves] }
    }

    /// Takes so much all along a range, or nothing where some of it has less.
    fn take(&mut self, range: std::ops::Range<usize>, bytes: i64) -> bool {
        let fits = self.within(1, 0..self.leaves, &range) >= bytes;
        if fits {
            self.lower(1, 0..self.leaves, &range, bytes);
        }
        fits
    }

    fn within(&self, node: usize, span: std::ops::Range<usize>, range: &std::ops::Range<usize>) -> i64 {
        if range.end <= span.start || span.end <= range.start {
            return i64::MAX;
        }
        if range.start <= span.start && span.end <= range.end {
            return self.least[node];
        }
        let middle = usize::midpoint(span.start, span.end);
        let below =
            self.within(2 * node, span.start..middle, range).min(self.within(2 * node + 1, middle..span.end, range));
        below.saturating_sub(self.taken[node])
    }

    fn lower(&mut self, node: usize, span: std::ops::Range<usize>, range: &std::ops::Range<usize>, bytes: i64) {
        if range.end <= span.start || span.end <= range.start {
            return;
        }
        if range.start <= span.start && span.end <= range.end {
            self.least[node] = self.least[node].saturating_sub(bytes);
            self.taken[node] += bytes;
            return;
        }
        let middle = usize::midpoint(span.start, span.end);
        self.lower(2 * node, span.start..middle, range, bytes);
        self.lower(2 * node + 1, middle..span.end, range, bytes);
        self.least[node] = self.least[2 * node].min(self.least[2 * node + 1]).saturating_sub(self.taken[node]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(bytes: u64, start_ms: f64, calls: &[f64]) -> Function {
        Function { bytes, start_ms, run_s: 1.0, calls: calls.to_vec() }
    }

    #[test]
    fn with_room_for_all_only_first_calls_are_cold() {
        let functions = [function(10, 5.0, &[0.0, 10.0, 20.0]), function(10, 7.0, &[5.0, 15.0])];
        let day = Day::new(&functions);
        assert_eq!(day.plan(20), (2, 12.0));
        assert!((day.bound(20) - 12.0).abs() < 1e-9);
    }

    #[test]
    fn without_room_what_saves_most_waits() {
        // Each would wait while another works, and beside that there is room for one.
        let functions =
            [function(10, 5.0, &[0.0, 30.0]), function(10, 7.0, &[2.0, 32.0]), function(10, 6.0, &[4.0, 34.0])];
        let day = Day::new(&functions);
        assert_eq!(day.plan(20), (5, 29.0));
        assert!(day.bound(20) <= 29.0);
    }

    #[test]
    fn the_bound_takes_part_of_what_does_not_fit() {
        let functions = [function(30, 10_000.0, &[0.0, 100.0]), function(10, 5.0, &[10.0, 20.0])];
        let day = Day::new(&functions);
        let (cold, cost_ms) = day.plan(30);
        assert!(cold == 3 && day.bound(30) <= cost_ms);
    }

    #[test]
    fn two_calls_at_once_need_two_instances() {
        let functions = [function(10, 5.0, &[0.0, 0.5, 10.0, 10.5])];
        assert_eq!(Day::new(&functions).plan(100), (2, 10.0));
        assert_eq!(Day::new(&functions).plan(10), (3, 15.0), "one of them waits");
    }

    #[test]
    fn what_is_taken_is_free_no_more() {
        let mut free = Free::new(vec![5, 3, 5, 5, 5]);
        assert!(free.take(2..5, 4));
        assert!(!free.take(0..2, 4));
        assert!(free.take(0..2, 3));
        assert!(!free.take(4..5, 2));
        assert!(free.take(4..5, 1));
        assert!(!free.take(0..5, 1));
    }
}
