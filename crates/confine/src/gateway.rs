//! What confines the gateway, which reads the packets of all instances: no privilege, bounds, and a list of system calls that
//! opens nothing.

use std::collections::BTreeMap;
use std::io;

use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Uid, getrlimit, set_dumpable_behavior, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

use crate::privileges::{drop_bounding_set, drop_capabilities};
use crate::seccomp::ARCH;
use crate::seccomp::tree::{self, Verdict};

/// The user `nobody`, who owns no file on any system (Linux Standard Base, "User & Group Names": nobody).
const NOBODY: u32 = 65_534;

macro_rules! system_calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// What moves bytes between descriptors that are there, waits, and manages memory. There is no call that makes a socket,
/// connects one, or opens a file, and none that starts a process.
#[rustfmt::skip]
const ALLOWED: &[i64] = system_calls! {
    SYS_brk SYS_clock_gettime SYS_close SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_exit SYS_exit_group SYS_futex
    SYS_getpid SYS_getrandom SYS_gettid SYS_madvise SYS_mmap SYS_mprotect SYS_mremap SYS_munmap SYS_ppoll SYS_pread64
    SYS_pwrite64 SYS_read SYS_recvfrom SYS_recvmsg SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigprocmask
    SYS_rt_sigreturn SYS_sched_yield SYS_sendmsg SYS_sendto SYS_set_robust_list SYS_setsockopt SYS_shutdown SYS_sigaltstack SYS_tgkill
    SYS_write SYS_writev
};
/// Calls that only the older architecture has.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = system_calls! { SYS_epoll_wait SYS_poll };
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// Gives up every privilege, becomes a user that owns nothing where we are root, and bounds open files and mapped memory, in
/// bytes. Called while the process has one thread.
///
/// # Errors
/// What the kernel says.
pub fn drop_privileges(files: u64, memory: u64) -> io::Result<()> {
    for (resource, most) in [(Resource::Nofile, files), (Resource::As, memory), (Resource::Core, 1)] {
        // What is less already stays so.
        let most = getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    if rustix::process::geteuid().is_root() {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        drop_bounding_set()?;
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(group, group, group)?;
        rustix::thread::set_thread_res_uid(user, user, user)?;
    }
    drop_capabilities()?;
    // Others of that user look into nothing here.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

fn list() -> BpfProgram {
    let allowed = ALLOWED.iter().chain(OLDER).filter_map(|number| Some((u32::try_from(*number).ok()?, Verdict::Allow)));
    let refuse = Verdict::Errno(u16::try_from(libc::EPERM).unwrap_or(u16::MAX));
    tree::program(&BTreeMap::from_iter(allowed), refuse)
}

/// What is refused of calls that are permitted: to connect by sending (tcp(7), `MSG_FASTOPEN`), to send to an address, and
/// memory that can be executed.
fn arguments() -> Result<BpfProgram, seccompiler::BackendError> {
    const FAST_OPEN: u64 = 0x2000_0000;
    const EXECUTABLE: u64 = 4;
    let when =
        |argument, length, op, value| SeccompRule::new(vec![SeccompCondition::new(argument, length, op, value)?]);
    let has = |argument, flag| when(argument, Len::Dword, Op::MaskedEq(flag), flag);
    let rules = BTreeMap::from([
        (libc::SYS_sendto, vec![has(3, FAST_OPEN)?, when(4, Len::Qword, Op::Ne, 0)?]),
        (libc::SYS_sendmsg, vec![has(2, FAST_OPEN)?]),
        (libc::SYS_mmap, vec![has(2, EXECUTABLE)?]),
        (libc::SYS_mprotect, vec![has(2, EXECUTABLE)?]),
    ]);
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, ARCH)?.try_into()
}

/// Installs the list of system calls on every thread.
///
/// # Errors
/// A kernel without filters.
pub fn install_list() -> io::Result<()> {
    let arguments = arguments().map_err(io::Error::other)?;
    // The list knows no call that installs another.
    [arguments, list()].iter().try_for_each(|filter| apply_filter_all_threads(filter)).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};
    use rustix::net::{AddressFamily, SendFlags, SocketType};

    use super::*;

    #[test]
    fn nothing_can_be_opened_connected_or_made() {
        // The list is that thread's alone.
        let confined = std::thread::spawn(|| {
            let (pipe, _end) = rustix::pipe::pipe().unwrap();
            rustix::thread::set_no_new_privs(true).unwrap();
            let socket = std::os::unix::net::UnixStream::pair().unwrap();
            for filter in [arguments().unwrap(), list()] {
                seccompiler::apply_filter(&filter).unwrap();
            }
            let there = std::net::SocketAddrV4::new([127, 0, 0, 1].into(), 1);
            let answers = [
                ("socket", rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).map(drop)),
                ("connect", rustix::net::connect(&pipe, &there)),
                ("open", rustix::fs::open("/", OFlags::RDONLY, Mode::empty()).map(drop)),
                ("ioctl", rustix::io::ioctl_fionread(&pipe).map(drop)),
                ("pipe", rustix::pipe::pipe().map(drop)),
                ("sendto", rustix::net::sendto(&socket.0, b"x", SendFlags::empty(), &there).map(drop)),
                ("fast open", rustix::net::send(&socket.0, b"x", SendFlags::from_bits_retain(0x2000_0000)).map(drop)),
                ("kill", rustix::process::test_kill_process(rustix::process::getpid())),
            ];
            // What it is for still works.
            assert_eq!(rustix::net::send(&socket.0, b"x", SendFlags::NOSIGNAL | SendFlags::DONTWAIT), Ok(1));
            let refused = Err(rustix::io::Errno::PERM);
            answers.into_iter().filter(|(_, answer)| *answer != refused).collect::<Vec<_>>()
        });
        assert_eq!(confined.join().unwrap(), []);
    }
}
