//! A filter that knows numbers alone, as a tree of comparisons.
//!
//! When a filter is installed the kernel runs it for every system call there is, to learn which are always let through
//! (`seccomp_cache_prepare`): a list of three hundred comparisons one after the other takes it 0.8 ms, a tree none that shows.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// Classic BPF (linux/bpf_common.h): what is loaded, compared, jumped and returned.
const LOAD_WORD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_NOT_BELOW: u16 = 0x35;
const RETURN: u16 = 0x06;
/// Where the number and the architecture of a system call lie (linux/seccomp.h, `struct seccomp_data`).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// What a filter answers (linux/seccomp.h).
const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const ALLOW: u32 = 0x7fff_0000;
/// Ours (linux/audit.h); every other one ends the process.
#[cfg(target_arch = "x86_64")]
const OURS: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OURS: u32 = 0xc000_00b7;

/// What is done about a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is let through.
    Allow,
    /// It is not made, and this error is its answer; 0 for none.
    Errno(u16),
}

impl Verdict {
    fn action(self) -> u32 {
        match self {
            Self::Allow => ALLOW,
            Self::Errno(number) => ERRNO | u32::from(number),
        }
    }
}

fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// The filter that answers these numbers so, and every other one `otherwise`.
pub(crate) fn program(answers: &BTreeMap<u32, Verdict>, otherwise: Verdict) -> BpfProgram {
    // Where each stretch of numbers begins that have one answer.
    let mut stretches: Vec<(u32, Verdict)> = vec![(0, otherwise)];
    let mut begin = |number: u32, answer: Verdict| match stretches.last_mut() {
        Some((_, last)) if *last == answer => {}
        Some((start, last)) if *start == number => *last = answer,
        _ => stretches.push((number, answer)),
    };
    for (number, answer) in answers {
        begin(*number, *answer);
        begin(number + 1, if answers.contains_key(&(number + 1)) { *answer } else { otherwise });
    }
    let known = sock_filter { jt: 1, ..step(JUMP_IF_EQUAL, OURS) };
    let mut program = vec![step(LOAD_WORD, ARCHITECTURE), known, step(RETURN, KILL_PROCESS), step(LOAD_WORD, NUMBER)];
    program.extend(search(&stretches));
    program
}

/// Finds the stretch that a number lies in.
fn search(stretches: &[(u32, Verdict)]) -> BpfProgram {
    if let [(_, answer)] = stretches {
        return vec![step(RETURN, answer.action())];
    }
    let (low, high) = stretches.split_at(stretches.len() / 2);
    let (left, right) = (search(low), search(high));
    let compare = step(JUMP_IF_NOT_BELOW, high[0].0);
    // A comparison jumps 255 steps at most.
    let mut program = match u8::try_from(left.len()) {
        Ok(length) => vec![sock_filter { jt: length, ..compare }],
        Err(_) => {
            let length = u32::try_from(left.len()).unwrap_or(u32::MAX);
            vec![sock_filter { jf: 1, ..compare }, step(JUMP, length)]
        }
    };
    program.extend(left.into_iter().chain(right));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel does; what it answers, and in how many steps.
    fn run(program: &BpfProgram, number: u32, architecture: u32) -> (u32, usize) {
        let (mut word, mut at, mut steps) = (0, 0, 0);
        loop {
            let now = &program[at];
            (at, steps) = (at + 1, steps + 1);
            let taken = |is_true: bool| usize::from(if is_true { now.jt } else { now.jf });
            match now.code {
                LOAD_WORD => word = if now.k == NUMBER { number } else { architecture },
                JUMP => at += now.k as usize,
                JUMP_IF_EQUAL => at += taken(word == now.k),
                JUMP_IF_NOT_BELOW => at += taken(word >= now.k),
                _ => return (now.k, steps),
            }
        }
    }

    fn holds(answers: &BTreeMap<u32, Verdict>) {
        let otherwise = Verdict::Errno(38);
        let program = program(answers, otherwise);
        for number in (0..2000).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
            let wanted = answers.get(&number).copied().unwrap_or(otherwise).action();
            let (got, steps) = run(&program, number, OURS);
            assert_eq!(got, wanted, "{number}");
            assert!(steps < 20, "{number} takes {steps} steps");
        }
        assert_eq!(run(&program, 1, OURS ^ 1).0, KILL_PROCESS);
    }

    #[test]
    fn every_number_has_its_answer() {
        holds(&BTreeMap::new());
        holds(&[(0, Verdict::Allow), (1, Verdict::Errno(1)), (3, Verdict::Allow)].into());
        // More of them than one comparison can jump over.
        holds(
            &(0..900)
                .map(|number| (number * 2, if number % 3 == 0 { Verdict::Allow } else { Verdict::Errno(1) }))
                .collect(),
        );
    }

    #[test]
    fn neighbours_with_one_answer_are_one_stretch() {
        let allowed = (0..500).map(|number| (number, Verdict::Allow)).collect();
        assert!(program(&allowed, Verdict::Errno(38)).len() < 10);
    }
}
