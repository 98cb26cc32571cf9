//! From a process of ours to one of the user's.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use faena_instance_protocol::handler::ANSWERS;
use faena_instance_protocol::{DEFAULT_PATH, Run};

/// What the kernel kills first when memory runs out (proc(5), `oom_score_adj`).
const KILL_ME_FIRST: &[u8] = b"1000";

/// What a process has as 0, 1 and 2, and to answer on.
#[derive(Debug)]
pub struct Streams {
    /// 0.
    pub input: OwnedFd,
    /// 1.
    pub output: OwnedFd,
    /// 2.
    pub error: OwnedFd,
    /// [`ANSWERS`], of a process that speaks frames.
    pub answers: Option<OwnedFd>,
}

/// The environment: the image's, without what is ours or the dynamic linker's, then the call's.
pub fn environment(run: &Run) -> BTreeMap<String, String> {
    let reserved = |name: &str| name.starts_with("LD_") || name.starts_with("FAENA_");
    let mut env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| !reserved(name))
        .collect();
    env.extend(run.env.iter().cloned());
    let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    let path = format!("{}{path}", run.path_prefix);
    env.insert("PATH".to_owned(), path);
    env
}

/// Makes this process, a fork of one of ours with one thread, one of the user's but for what it executes.
///
/// `groups` are files of control groups that it enters.
///
/// # Errors
/// The step that failed, and what the kernel said.
pub fn settle(streams: &Streams, folder: &CStr, groups: &[OwnedFd]) -> Result<(), (String, io::Error)> {
    let step = |what: &str, error: rustix::io::Errno| (what.to_owned(), io::Error::from(error));
    for group in groups {
        rustix::io::write(group, b"0").map_err(|error| step("entering a control group", error))?;
    }
    prefer_for_the_oom_killer();
    let_others_finish();
    let standard = [(&streams.input, 0), (&streams.output, 1), (&streams.error, 2)];
    for (stream, number) in standard.into_iter().chain(streams.answers.iter().map(|answers| (answers, ANSWERS))) {
        place(stream, number).map_err(|error| ("its streams".to_owned(), error))?;
    }
    rustix::process::chdir(folder).map_err(|error| step(&format!("entering {}", folder.to_string_lossy()), error))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // A failure means that it leads a session already.
    let _ = rustix::process::setsid();
    restore_signals();
    Ok(())
}

/// Gives a descriptor a number, under which it survives exec.
fn place(stream: &OwnedFd, number: i32) -> io::Result<()> {
    let stream = stream.as_raw_fd();
    // SAFETY: the calls take numbers only. Nothing here owns these ones, but for a stream that has its number already.
    let done =
        unsafe { if stream == number { libc::fcntl(number, libc::F_SETFD, 0) } else { libc::dup2(stream, number) } };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The agent is not what is killed. A process that is not dumpable has files in /proc that are root's until this is undone; no
/// other process of the user's runs at this moment.
fn prefer_for_the_oom_killer() {
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable);
    let _ = std::fs::write("/proc/self/oom_score_adj", KILL_ME_FIRST);
}

/// A process of the user's that wakes does not preempt the one that woke it (sched(7), `SCHED_BATCH`): a worker that hands
/// out several calls goes on handing them out, instead of changing places with a process after each.
fn let_others_finish() {
    // All that the kernel's sched_param holds.
    let priority: libc::c_int = 0;
    // SAFETY: the priority lives through the call. A kernel that refuses leaves everything as it was. The function of
    // that name does nothing in musl.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_BATCH, &raw const priority) };
}

fn restore_signals() {
    // SAFETY: the set is initialised before it is read; a program that starts processes expects to be told of their ends.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}
