//! The network device of an instance: a TUN device with an address and a default route, made in the instance's network
//! namespace before anything runs there. Its descriptor goes to the worker, and the instance has no way to it.

use std::fs::OpenOptions;
use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use faena_instance_protocol::link::{ADDRESS, DEVICE, MTU, QUEUE};

/// A route as SIOCADDRT takes it (linux/route.h, `struct rtentry`); libc has it for other C libraries alone.
#[repr(C)]
struct Route {
    pad1: libc::c_ulong,
    destination: libc::sockaddr,
    gateway: libc::sockaddr,
    mask: libc::sockaddr,
    flags: libc::c_ushort,
    pad2: libc::c_short,
    pad3: libc::c_ulong,
    pad4: *mut libc::c_void,
    metric: libc::c_short,
    device: *mut libc::c_char,
    mtu: libc::c_ulong,
    window: libc::c_ulong,
    irtt: libc::c_ushort,
}

/// What makes devices (the kernel's tuntap.rst).
const TUN: &str = "/dev/net/tun";
/// The route is up (linux/route.h, `RTF_UP`).
const ROUTE_UP: libc::c_ushort = 1;

/// Makes the device in the network namespace that we are in.
pub(crate) fn make() -> io::Result<OwnedFd> {
    // What is made from here on has no IPv6: its sources could be forged. The loopback keeps `::1`.
    match std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN);
    let tun = opened.map_err(|error| io::Error::new(error.kind(), format!("{TUN}: {error}")))?;
    let mut request = named();
    request.ifr_ifru.ifru_flags = short(libc::IFF_TUN | libc::IFF_NO_PI);
    control(&tun, libc::TUNSETIFF, &raw mut request)?;
    // SAFETY: TUNSETOFFLOAD takes a number, and no pointer.
    done(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, 0) })?;
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    let set = |request: libc::Ioctl, fill: &dyn Fn(&mut libc::ifreq)| {
        let mut value = named();
        fill(&mut value);
        control(&socket, request, &raw mut value)
    };
    set(libc::SIOCSIFADDR, &|value| value.ifr_ifru.ifru_addr = address(ADDRESS))?;
    set(libc::SIOCSIFNETMASK, &|value| value.ifr_ifru.ifru_netmask = address(Ipv4Addr::BROADCAST))?;
    set(libc::SIOCSIFMTU, &|value| value.ifr_ifru.ifru_mtu = MTU.into())?;
    // Who is root within a user namespace alone may not set this; the kernel's own length, 500 packets, serves too.
    let _ = set(libc::SIOCSIFTXQLEN, &|value| value.ifr_ifru.ifru_metric = i32::try_from(QUEUE).unwrap_or(i32::MAX));
    set(libc::SIOCSIFFLAGS, &|value| value.ifr_ifru.ifru_flags = short(libc::IFF_UP | libc::IFF_RUNNING))?;
    add_default_route(&socket)?;
    Ok(tun.into())
}

/// Every address is reached through the device.
fn add_default_route(socket: &OwnedFd) -> io::Result<()> {
    let mut name = std::ffi::CString::new(DEVICE).unwrap_or_default().into_bytes_with_nul();
    let anywhere = address(Ipv4Addr::UNSPECIFIED);
    let mut route = Route {
        pad1: 0,
        destination: anywhere,
        gateway: anywhere,
        mask: anywhere,
        flags: ROUTE_UP,
        pad2: 0,
        pad3: 0,
        pad4: std::ptr::null_mut(),
        metric: 0,
        device: name.as_mut_ptr().cast(),
        mtu: 0,
        window: 0,
        irtt: 0,
    };
    control(socket, libc::SIOCADDRT, &raw mut route)
}

/// A request about the device.
fn named() -> libc::ifreq {
    // SAFETY: zeroed is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *place = byte.cast_signed();
    }
    request
}

fn short(flags: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(flags).unwrap_or(0)
}

/// An address as the kernel's older requests take it.
fn address(address: Ipv4Addr) -> libc::sockaddr {
    let inet = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0),
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    const { assert!(size_of::<libc::sockaddr_in>() == size_of::<libc::sockaddr>()) };
    // SAFETY: both are plain bytes of the same size, and every pattern of them is valid.
    unsafe { std::mem::transmute(inet) }
}

/// One request of ioctl(2) with a structure that lives through the call.
fn control<T>(fd: &impl AsRawFd, request: libc::Ioctl, argument: *mut T) -> io::Result<()> {
    // SAFETY: each caller passes the structure that its request takes (netdevice(7), the kernel's tuntap.rst).
    done(unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) })
}

fn done(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
