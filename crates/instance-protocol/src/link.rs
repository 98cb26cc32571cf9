//! The network device of an instance with egress: what the launcher sets up, the gateway serves and `/etc/resolv.conf` names.
//!
//! Every instance has the same addresses: a device has one instance at its end, and no packet leaves it as it is. They lie
//! in the block for benchmarks (RFC 2544), which no public route leads to, so they cover nothing that a function may reach.

use std::net::Ipv4Addr;

/// The name of the device.
pub const DEVICE: &str = "tun0";
/// The instance's own address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Where names are looked up.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The port of a resolver (RFC 1035, 4.2).
pub const DNS_PORT: u16 = 53;
/// The first and the last of the addresses that stand for names, each within one instance.
pub const NAMES: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(198, 18, 1, 0), Ipv4Addr::new(198, 19, 255, 254));
/// The largest packet. With 65,520 bytes a receiver of 64 KiB would have room for one segment at a time.
pub const MTU: u16 = 32_000;
/// Packets that wait in the device for the gateway, at most; more are dropped, as by any network.
pub const QUEUE: u32 = 256;
