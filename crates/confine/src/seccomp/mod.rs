//! One list of system calls for every process of every instance, whichever engine made it.
//!
//! Two filters lie on top of each other. The first knows numbers alone (`tree`): it lets through what is on the lists
//! below, answers EPERM to what is refused by name and ENOSYS to the unknown. The second answers EPERM to arguments. Of two
//! answers the kernel takes the stricter (seccomp(2)). Foreign architectures end the process, and x32 numbers are unknown
//! ones.

pub(crate) mod tree;

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use tree::Verdict;

#[cfg(target_arch = "aarch64")]
pub(crate) const ARCH: seccompiler::TargetArch = seccompiler::TargetArch::aarch64;
#[cfg(target_arch = "x86_64")]
pub(crate) const ARCH: seccompiler::TargetArch = seccompiler::TargetArch::x86_64;

/// Flags of clone(2) that are refused: those that make namespaces, and the one that makes a child a sibling, whose end
/// its maker would not hear of.
const REFUSED_FLAGS: [i32; 9] = [
    libc::CLONE_PARENT,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    0x80, // CLONE_NEWTIME
];

/// Terminal requests that push characters into its input (asm-generic/ioctls.h; libc's types differ by target).
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// The list as the kernel takes it.
#[derive(Debug)]
pub struct Filters([BpfProgram; 2]);

impl Filters {
    /// Translates the list.
    ///
    /// # Errors
    /// A list that the library cannot express.
    pub fn new() -> Result<Self, seccompiler::BackendError> {
        Ok(Self([numbers(), arguments()?]))
    }

    /// Installs the list on this process and whatever it starts; it has given up gaining privileges before.
    ///
    /// # Errors
    /// A kernel without filters.
    pub fn install(&self) -> Result<(), seccompiler::Error> {
        self.0.iter().try_for_each(|filter| apply_filter(filter))
    }
}

/// What is answered to whom, whatever it asks for.
fn numbers() -> BpfProgram {
    let errno = |number: i32| Verdict::Errno(u16::try_from(number).unwrap_or(u16::MAX));
    let refuse = errno(libc::EPERM);
    // Writing out every file system of the host is not an instance's to ask for; it is told that it was done.
    const PRETEND: Verdict = Verdict::Errno(0);
    let lists = [(COMMON, Verdict::Allow), (OLDER, Verdict::Allow), (NEWER, Verdict::Allow), (REFUSED, refuse)];
    let listed = lists.into_iter().flat_map(|(list, answer)| list.iter().map(move |number| (*number, answer)));
    let all = listed.chain([libc::SYS_sync, libc::SYS_syncfs].map(|number| (number, PRETEND)));
    // The kernel's numbers are small ones.
    let answers = all.filter_map(|(number, answer)| Some((u32::try_from(number).ok()?, answer))).collect();
    tree::program(&answers, errno(libc::ENOSYS))
}

/// A rule that matches where one argument does.
fn when(argument: u8, op: Op, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, Len::Dword, op, value)?])
}

/// What is refused of calls that are let through.
fn arguments() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let flags = REFUSED_FLAGS
        .iter()
        .map(|flag| u64::from(flag.unsigned_abs()))
        .map(|flag| when(0, Op::MaskedEq(flag), flag))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_clone, flags);
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(call, foreign_sockets()?);
    }
    // New limits for another process: the agent has the same user.
    let others =
        vec![SeccompCondition::new(0, Len::Dword, Op::Ne, 0)?, SeccompCondition::new(2, Len::Qword, Op::Ne, 0)?];
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(others)?]);
    // Pushing characters into a terminal's input.
    rules.insert(libc::SYS_ioctl, vec![when(1, Op::Eq, TIOCSTI)?, when(1, Op::Eq, TIOCLINUX)?]);
    // Execution domains other than Linux, Linux without address randomisation, and asking which it is.
    let domains = [0u64, 0x0004_0000, 0xffff_ffff];
    let others =
        domains.iter().map(|domain| SeccompCondition::new(0, Len::Dword, Op::Ne, *domain)).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_personality, vec![SeccompRule::new(others)?]);
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, ARCH)?.try_into()
}

/// Address families (bits/socket.h).
const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const AF_NETLINK: u64 = 16;
/// The part of a socket's type that is no flag (linux/net.h, `SOCK_TYPE_MASK`).
const TYPE: u64 = 0xf;

/// Sockets that are refused. Of the internet's families the kernel would load modules for other types and protocols than
/// TCP, UDP and ICMP (protocols(5)); of netlink there is what lists interfaces, and nothing else.
fn foreign_sockets() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    const STREAM_DGRAM: [u64; 2] = [1, 2];
    const ANY_TCP_UDP_ICMP: [u64; 5] = [0, 6, 17, 1, 58];
    const NETLINK_ROUTE: u64 = 0;
    let is = |argument, op, value| SeccompCondition::new(argument, Len::Dword, op, value);
    let known = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK].map(|family| is(0, Op::Ne, family));
    let mut refused = vec![SeccompRule::new(known.into_iter().collect::<Result<_, _>>()?)?];
    for family in [AF_INET, AF_INET6] {
        let mut protocols = vec![is(0, Op::Eq, family)?];
        for protocol in ANY_TCP_UDP_ICMP {
            protocols.push(is(2, Op::Ne, protocol)?);
        }
        refused.push(SeccompRule::new(protocols)?);
        for other in (0..=TYPE).filter(|kind| !STREAM_DGRAM.contains(kind)) {
            refused.push(SeccompRule::new(vec![is(0, Op::Eq, family)?, is(1, Op::MaskedEq(TYPE), other)?])?);
        }
    }
    refused.push(SeccompRule::new(vec![is(0, Op::Eq, AF_NETLINK)?, is(2, Op::Ne, NETLINK_ROUTE)?])?);
    Ok(refused)
}

macro_rules! system_calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// Refused by name, so that a program learns EPERM rather than ENOSYS.
#[rustfmt::skip]
const REFUSED: &[i64] = system_calls! {
    SYS_acct SYS_add_key SYS_adjtimex SYS_bpf SYS_chroot SYS_clock_adjtime SYS_clock_settime SYS_delete_module
    SYS_fanotify_init SYS_finit_module SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick SYS_init_module
    SYS_io_uring_enter SYS_io_uring_register SYS_io_uring_setup SYS_kcmp SYS_kexec_load SYS_keyctl SYS_mbind
    SYS_migrate_pages SYS_mount SYS_mount_setattr SYS_move_mount SYS_move_pages SYS_name_to_handle_at
    SYS_open_by_handle_at SYS_open_tree SYS_perf_event_open SYS_pidfd_getfd SYS_pivot_root SYS_process_madvise
    SYS_process_vm_readv SYS_process_vm_writev SYS_ptrace SYS_quotactl SYS_reboot SYS_request_key SYS_set_mempolicy
    SYS_setdomainname SYS_sethostname SYS_setns SYS_settimeofday SYS_swapoff SYS_swapon SYS_syslog SYS_umount2
    SYS_unshare SYS_userfaultfd SYS_vhangup
};

/// What ordinary programs need, of the kernel's table for both architectures. POSIX message queues are not among them:
/// nobody could find those that a call left to the next one.
#[rustfmt::skip]
const COMMON: &[i64] = system_calls! {
    SYS_accept SYS_accept4 SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir SYS_clock_getres SYS_clock_gettime
    SYS_clock_nanosleep SYS_clone SYS_close SYS_close_range SYS_connect SYS_copy_file_range SYS_dup SYS_dup3
    SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat SYS_exit
    SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fchdir SYS_fchmod SYS_fchmodat
    SYS_fchown SYS_fchownat SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fremovexattr
    SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv SYS_get_mempolicy
    SYS_get_robust_list SYS_getcpu SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups
    SYS_getitimer SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority SYS_getrandom SYS_getresgid
    SYS_getresuid SYS_getrlimit SYS_getrusage SYS_getsid SYS_getsockname SYS_getsockopt SYS_gettid SYS_gettimeofday
    SYS_getuid SYS_getxattr SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch 
    SYS_ioctl SYS_ioprio_get SYS_ioprio_set SYS_kill
    SYS_landlock_add_rule SYS_landlock_create_ruleset SYS_landlock_restrict_self SYS_lgetxattr SYS_linkat
    SYS_listen SYS_listxattr SYS_llistxattr SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise SYS_membarrier
    SYS_memfd_create SYS_mincore SYS_mkdirat SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap SYS_mprotect
    SYS_mremap SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock SYS_munlockall SYS_munmap SYS_nanosleep
    SYS_newfstatat SYS_openat SYS_openat2 SYS_personality SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe2
    SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2
    SYS_prlimit64 SYS_pselect6 SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead SYS_readlinkat
    SYS_readv SYS_recvfrom SYS_recvmmsg SYS_recvmsg SYS_remap_file_pages SYS_removexattr SYS_renameat
    SYS_renameat2 SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask
    SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo
    SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_getaffinity SYS_sched_getattr
    SYS_sched_getparam SYS_sched_getscheduler SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr
    SYS_sched_setparam SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop
    SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_set_robust_list SYS_set_tid_address
    SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer SYS_setpgid SYS_setpriority SYS_setregid
    SYS_setresgid SYS_setresuid SYS_setreuid SYS_setrlimit SYS_setsid SYS_setsockopt SYS_setuid SYS_setxattr
    SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown SYS_sigaltstack SYS_signalfd4 SYS_socket SYS_socketpair
    SYS_splice SYS_statfs SYS_statx SYS_symlinkat SYS_sync SYS_sync_file_range SYS_syncfs SYS_sysinfo SYS_tee
    SYS_tgkill SYS_timer_create SYS_timer_delete SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime
    SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times SYS_tkill SYS_truncate SYS_umask SYS_uname
    SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
};

/// Calls that only the older architecture has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[i64] = system_calls! {
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create SYS_epoll_wait
    SYS_eventfd SYS_fork SYS_futimesat SYS_getdents SYS_getpgrp SYS_inotify_init SYS_lchown SYS_link SYS_lstat
    SYS_mkdir SYS_mknod SYS_open SYS_pause SYS_pipe SYS_poll SYS_readlink SYS_rename SYS_rmdir SYS_select
    SYS_signalfd SYS_stat SYS_symlink SYS_time SYS_unlink SYS_utime SYS_utimes SYS_vfork
};
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// Newer calls, by the numbers that all architectures share.
const NEWER: &[i64] = &[
    451, // cachestat
    452, // fchmodat2
    454, // futex_wake
    455, // futex_wait
    456, // futex_requeue
    462, // mseal
];
