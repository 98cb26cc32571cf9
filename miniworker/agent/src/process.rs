//! Processes of the user: started, killed, collected.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use faena_instance_protocol::{Exit, Run};

use crate::c_string;

/// Searched where neither the image nor the runtime names a `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the kernel kills first when memory runs out (proc(5), `oom_score_adj`).
const KILL_ME_FIRST: &[u8] = b"1000";

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

/// What a process has as 0, 1 and 2.
pub(crate) struct Streams {
    pub(crate) input: OwnedFd,
    pub(crate) output: OwnedFd,
    pub(crate) error: OwnedFd,
}

/// All that is allocated before the fork.
struct Prepared {
    candidates: Vec<CString>,
    words: Vec<CString>,
    env: Vec<CString>,
    folder: CString,
}

/// The environment: the image's, without what is ours or the dynamic linker's, then the call's.
fn environment(run: &Run) -> BTreeMap<String, String> {
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

impl Prepared {
    fn new(run: &Run) -> Result<Self, String> {
        let program = run.words.first().ok_or("no program was named")?;
        let env = environment(run);
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
    let (told, tell) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| format!("pipe: {error}"))?;
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
    let step = |what: &str, error: rustix::io::Errno| (what.to_owned(), io::Error::from(error));
    for group in join {
        if let Err(error) = rustix::io::write(group, b"0") {
            return step("entering a control group", error);
        }
    }
    prefer_for_the_oom_killer();
    let_others_finish();
    for (stream, number) in [(&streams.input, 0), (&streams.output, 1), (&streams.error, 2)] {
        // SAFETY: both are descriptors of this process; 0, 1 and 2 are owned by nobody here.
        if unsafe { libc::dup2(stream.as_raw_fd(), number) } < 0 {
            return ("its streams".to_owned(), io::Error::last_os_error());
        }
    }
    let folder = prepared.folder.to_string_lossy().into_owned();
    if let Err(error) = rustix::process::chdir(prepared.folder.as_c_str()) {
        return step(&format!("entering {folder}"), error);
    }
    // A failure means that it leads a session already.
    let _ = rustix::process::setsid();
    restore_signals();
    exec(prepared)
}

/// The agent is not what is killed. It is not dumpable, so its files in /proc are root's until this is undone;
/// exec undoes it anyway, and no other process of the user's runs at this moment.
fn prefer_for_the_oom_killer() {
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable);
    let _ = std::fs::write("/proc/self/oom_score_adj", KILL_ME_FIRST);
}

/// A process of the user's that wakes does not push aside whoever woke it (sched(7), `SCHED_BATCH`): a worker that hands
/// out several calls goes on handing them out, instead of changing places with a process after each.
fn let_others_finish() {
    // All that the kernel's sched_param holds.
    let priority: libc::c_int = 0;
    // SAFETY: the priority lives through the call. A kernel that refuses leaves everything as it was. The function of
    // that name does nothing in musl.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_BATCH, &raw const priority) };
}

fn restore_signals() {
    // SAFETY: the set is initialised before it is read; SIGPIPE and SIGCHLD get their defaults, as exec'd programs expect.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
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

/// Collects whoever has ended; tells how the watched process did, if it is among them.
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
