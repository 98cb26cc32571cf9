//! What the processes of an instance do, for the message that a server does not listen where it should.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use faena_instance_protocol::EGRESS_PORT;

/// Addresses that are told.
const MOST: usize = 8;
/// The state of a socket that listens (net/tcp_states.h).
const LISTEN: &str = "0A";
/// A tick of the times in /proc, in microseconds (proc_pid_stat(5); USER_HZ is 100 on every architecture of ours).
const TICK_US: u64 = 10_000;

/// Where something listens for TCP but for the egress proxy.
pub(crate) fn listening() -> Vec<String> {
    let tables =
        ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let found = tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(listener);
    found.filter(|address| address.port() != EGRESS_PORT).map(|address| address.to_string()).take(MOST).collect()
}

/// The local address of a line whose socket listens (proc_net_tcp(5): words in the host's byte order).
fn listener(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, state) = (fields.next()?, fields.nth(1)?);
    if state != LISTEN {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let words: Option<Vec<[u8; 4]>> = (0..address.len() / 8)
        .map(|at| Some(u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes()))
        .collect();
    let address = match words?[..] {
        [v4] => IpAddr::V4(Ipv4Addr::from(v4)),
        [a, b, c, d] => {
            let bytes: Vec<u8> = [a, b, c, d].concat();
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

/// CPU time of all processes but this one, in microseconds, that of children which have ended included.
pub(crate) fn cpu_us() -> u64 {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|pid| *pid != 1);
    let ticks = pids.filter_map(|pid| ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?));
    ticks.sum::<u64>() * TICK_US
}

/// The four times of a process, which are the fourteenth field and those behind it; the name before them may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_the_kernels_table() {
        let line = "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1";
        assert_eq!(listener(line).map(|address| address.to_string()).as_deref(), Some("127.0.0.1:8080"));
        let line = "0: 00000000000000000000000001000000:0BB8 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 1";
        assert_eq!(listener(line).map(|address| address.to_string()).as_deref(), Some("[::1]:3000"));
        assert_eq!(listener("0: 0100007F:1F90 0100007F:0001 01 0:0"), None);
    }

    #[test]
    fn times_are_read_behind_any_name() {
        assert_eq!(ticks("7 (a) b 9) S 1 7 7 0 -1 4194304 1 0 0 0 3 4 5 6 20 0 1 0 9"), Some(18));
    }
}
