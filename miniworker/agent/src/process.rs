//! Processes of the user: started, killed, collected.

use std::ffi::{CString, c_char};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use faena_confine::user::{self, Streams};
use faena_instance_protocol::handler::ANSWERS;
use faena_instance_protocol::{DEFAULT_PATH, Exit, Run};

use crate::c_string;

/// Becomes readable when children have ended.
pub(crate) struct Children(OwnedFd);

impl Children {
    /// Turns SIGCHLD from an interruption into something to poll for.
    pub(crate) fn watch() -> io::Result<Self> {
        // SAFETY: the set is initialised by sigemptyset before it is read; the calls only take its address.
        let fd = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGCHLD);
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd has just given us this descriptor.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Forgets the signals that were seen.
    pub(crate) fn clear(&self) {
        let mut information = [0; 1024];
        while rustix::io::read(&self.0, &mut information).is_ok_and(|read| read > 0) {}
    }
}

impl AsFd for Children {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The first process of a call.
pub(crate) struct Process(libc::pid_t);

impl Process {
    /// A child that was there before we were.
    pub(crate) fn adopted(pid: libc::pid_t) -> Self {
        Self(pid)
    }
}

/// All that is allocated before the fork.
struct Prepared {
    candidates: Vec<CString>,
    words: Vec<CString>,
    env: Vec<CString>,
    folder: CString,
}

impl Prepared {
    fn new(run: &Run) -> Result<Self, String> {
        let program = run.words.first().ok_or("no program was named")?;
        let env = user::environment(run);
        let candidates = if program.contains('/') {
            vec![c_string(program)]
        } else {
            let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
            path.split(':')
                .filter(|folder| !folder.is_empty())
                .map(|folder| c_string(&format!("{folder}/{program}")))
                .collect()
        };
        Ok(Self {
            candidates,
            words: run.words.iter().map(|word| c_string(word)).collect(),
            env: env.iter().map(|(name, value)| c_string(&format!("{name}={value}"))).collect(),
            folder: c_string(&run.path),
        })
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Starts a process in groups of its own; the answer is known when exec has succeeded or failed.
pub(crate) fn spawn(run: &Run, streams: Streams, join: &[OwnedFd]) -> Result<Process, String> {
    let prepared = Prepared::new(run)?;
    let pipe = |error: rustix::io::Errno| format!("pipe: {error}");
    let (told, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(pipe)?;
    // Out of the way of what the process gets under a number.
    let tell = rustix::io::fcntl_dupfd_cloexec(&end, ANSWERS + 1).map_err(pipe)?;
    drop(end);
    // SAFETY: this program has one thread, so the child may do whatever the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(format!("fork: {}", io::Error::last_os_error())),
        0 => {
            let (step, error) = become_process(&prepared, &streams, join);
            let _ = File::from(tell).write_all(format!("{step}: {error}").as_bytes());
            // SAFETY: _exit takes no pointers; nothing of the parent's is flushed.
            unsafe { libc::_exit(127) }
        }
        child => {
            drop((tell, streams));
            let mut message = String::new();
            let _ = File::from(told).take(4096).read_to_string(&mut message);
            if message.is_empty() {
                return Ok(Process(child));
            }
            end_all();
            Err(message)
        }
    }
}

/// Runs in the child until exec, or to say why not.
fn become_process(prepared: &Prepared, streams: &Streams, join: &[OwnedFd]) -> (String, io::Error) {
    match user::settle(streams, &prepared.folder, join) {
        Ok(()) => {
            // SAFETY: the default action is installed, no handler; what is executed expects it.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            exec(prepared)
        }
        Err(failed) => failed,
    }
}

fn exec(prepared: &Prepared) -> (String, io::Error) {
    let (words, env) = (pointers(&prepared.words), pointers(&prepared.env));
    let program = prepared.words[0].to_string_lossy().into_owned();
    let mut denied = None;
    for candidate in &prepared.candidates {
        // SAFETY: all are NUL-terminated strings, the lists end with a null pointer, and all outlive the call.
        unsafe { libc::execve(candidate.as_ptr(), words.as_ptr(), env.as_ptr()) };
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => denied = Some(error),
            _ => return (program, error),
        }
    }
    (program, denied.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ENOENT)))
}

/// Kills every process of the instance but this one.
pub(crate) fn kill_all() {
    // SAFETY: kill takes no pointers. From PID 1 of a PID namespace, -1 is every other process in it (kill(2)).
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Kills until none is left, and collects them all.
pub(crate) fn end_all() {
    loop {
        kill_all();
        // SAFETY: waitpid with a null status only collects.
        if unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } < 0
            && io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD)
        {
            return;
        }
    }
}

/// How often remaining processes are looked for, 500 µs apart.
const LOOKS: u32 = 200;

/// Whether a process has ended with all of its threads: the first may end before the others (proc_pid_stat(5): the
/// state follows the program's name, which may hold anything; the number of threads is the twentieth field).
fn has_ended(stat: &str) -> bool {
    let Some((_, rest)) = stat.rsplit_once(')') else { return true };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let threads = fields.get(17).and_then(|threads| threads.parse().ok()).unwrap_or(1);
    fields.first() == Some(&"Z") && threads <= 1
}

/// How the kernel shares processors and disks with a process. User code has our uid, so it may change ours too, and what it
/// starts afterwards inherits that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    nice: libc::c_long,
    policy: libc::c_long,
    io: libc::c_long,
    affinity: (libc::c_long, [u8; 128]),
}

impl Standing {
    /// That of a process; 0 is this one.
    pub(crate) fn of(pid: libc::pid_t) -> Self {
        const IOPRIO_WHO_PROCESS: libc::c_int = 1;
        let mut mask = [0_u8; 128];
        // SAFETY: these calls take numbers, and a mask that lives through the call; the functions of these names do nothing
        // in musl.
        unsafe {
            Self {
                nice: libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, pid),
                policy: libc::syscall(libc::SYS_sched_getscheduler, pid),
                io: libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, pid),
                affinity: (libc::syscall(libc::SYS_sched_getaffinity, pid, mask.len(), mask.as_mut_ptr()), mask),
            }
        }
    }

    /// Whether this process stands as it did, and a process of the user's does but for the policy that each is given.
    pub(crate) fn is_kept(&self, kept: Option<&Process>) -> bool {
        let users = Self { policy: libc::SCHED_BATCH.into(), ..*self };
        Self::of(0) == *self && kept.is_none_or(|kept| Self::of(kept.0) == users)
    }
}

/// Processes of the instance that are neither this one nor the kept one, and have not ended (proc_pid_stat(5)); those
/// that have are collected.
fn others(kept: &Process) -> io::Result<Vec<libc::pid_t>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let has_ended = has_ended(&stat);
        if pid == 1 || pid == kept.0 {
            continue;
        }
        if has_ended {
            // Where its parent has ended too it is ours to collect; the kept one collects its own when it goes on.
            // SAFETY: a null status only collects.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
        } else {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Kills every process but this one and the one that is kept. All of them are stopped before they are looked for, so
/// that none begins another one meanwhile: a fork that a signal waits for does not happen.
pub(crate) fn end_others(kept: &Process) -> io::Result<()> {
    for _ in 0..LOOKS {
        // SAFETY: kill takes no pointers. From PID 1 of a PID namespace, -1 is every other process in it (kill(2)).
        unsafe { libc::kill(-1, libc::SIGSTOP) };
        let left = others(kept)?;
        if left.is_empty() {
            // SAFETY: as above.
            unsafe { libc::kill(kept.0, libc::SIGCONT) };
            return Ok(());
        }
        for pid in left {
            // SAFETY: as above.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        std::thread::sleep(std::time::Duration::from_micros(500));
    }
    Err(io::Error::other("processes are left that cannot be ended"))
}

/// Reaps processes that have ended; returns how the watched process ended, if it is among them.
pub(crate) fn collect(watched: Option<&Process>) -> Option<Exit> {
    let mut exit = None;
    loop {
        let mut status = 0;
        // SAFETY: the status is a valid place for the answer.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return exit;
        }
        if watched.is_some_and(|process| process.0 == pid) {
            exit = Some(if libc::WIFEXITED(status) {
                Exit::Code(libc::WEXITSTATUS(status))
            } else {
                Exit::Signal(libc::WTERMSIG(status))
            });
        }
    }
}

/// CPU time of all processes that were collected, in microseconds.
pub(crate) fn cpu_us() -> u64 {
    // SAFETY: zeroed is a valid rusage, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let micros = |time: libc::timeval| u64::try_from(time.tv_sec * 1_000_000 + time.tv_usec).unwrap_or(0);
    micros(usage.ru_utime) + micros(usage.ru_stime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_ended_when_its_last_thread_has() {
        let stat = |state: &str, threads: u32| {
            format!("7 (a) b) {state} 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 {threads} 0 9")
        };
        assert!(has_ended(&stat("Z", 1)) && has_ended(""));
        assert!(!has_ended(&stat("Z", 2)) && !has_ended(&stat("S", 1)));
    }
}
