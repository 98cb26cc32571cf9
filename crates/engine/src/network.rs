//! What the kernel counts of an instance's network.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

/// Packets of a process's network namespace that found no route, since it was made (proc_pid_net(5), `snmp`: a line of names,
/// then a line of numbers).
pub(crate) fn unroutable(pid: i32) -> Option<u64> {
    parse(&fs::read_to_string(format!("/proc/{pid}/net/snmp")).ok()?)
}

fn parse(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let at = names.split(' ').position(|name| name == "OutNoRoutes")?;
    numbers.split(' ').nth(at)?.parse().ok()
}

/// The number of a process that is named by a descriptor, while it lives (proc_pid_fdinfo(5)).
pub(crate) fn pid_of(pidfd: &OwnedFd) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok()).filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_stands_below_its_name() {
        let text = "Ip: Forwarding InReceives OutNoRoutes\nIp: 1 25 7\nIcmp: OutNoRoutes\nIcmp: 9\n";
        assert_eq!(parse(text), Some(7));
        assert_eq!(parse("Ip: Forwarding\nIp: 1\n"), None);
        assert!(unroutable(i32::try_from(std::process::id()).unwrap()).is_some());
    }
}
