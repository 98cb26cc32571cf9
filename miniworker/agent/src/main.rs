//! PID 1 of every instance: starts the user's process, and sees that nothing of it is left.
//!
//! It is one thread around one poll. It ends, and every process of the instance with it, when its socket ends or
//! its lease has passed: so no worker that died, stopped or slept leaves anything running behind it.
//!
//! ```text
//! agent --socket FD | --connect PATH   [--copy-to PATH] [--egress] [--oom FD] [--peak FD] [--join FD]…
//!       [--process PID --path PATH --ready FD]
//! ```
//!
//! `--join` names the groups that a user's process enters (files that take a `0`), `--oom` and `--peak` what tells
//! of its memory; where they are not named, the group that is mounted in the instance is asked. `--copy-to` names the
//! folder that the code is copied to, where it could not be mounted there. `--process` names a child that was born with
//! the instance and works in `--path`; it waits until `--ready` closes, and the filter is on both of us already.

mod clean;
mod connect;
mod copy;
mod files;
mod memory;
mod pack;
mod process;
mod session;
mod survey;

use std::ffi::CString;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use faena_confine::seccomp::Filters;
use faena_instance_protocol::{CODE, EGRESS_PORT, NONCE};

use memory::Memory;
use session::Session;

/// What the command line says.
#[derive(Default)]
struct Arguments {
    socket: Option<RawFd>,
    connect: Option<String>,
    copy_to: Option<String>,
    egress: bool,
    oom: Option<RawFd>,
    peak: Option<RawFd>,
    join: Vec<RawFd>,
    process: Option<i32>,
    path: String,
    ready: Option<RawFd>,
}

fn arguments() -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--egress" {
            arguments.egress = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse::<RawFd>().map_err(|_| format!("{word} {value}: no descriptor"));
        match word.as_str() {
            "--connect" => arguments.connect = Some(value),
            "--copy-to" => arguments.copy_to = Some(value),
            "--socket" => arguments.socket = Some(number()?),
            "--oom" => arguments.oom = Some(number()?),
            "--peak" => arguments.peak = Some(number()?),
            "--join" => arguments.join.push(number()?),
            "--process" => arguments.process = Some(number()?),
            "--path" => arguments.path = value,
            "--ready" => arguments.ready = Some(number()?),
            _ => return Err(format!("{word}: unknown")),
        }
    }
    Ok(arguments)
}

/// A descriptor that was inherited and is named on the command line once.
fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: the launcher left this descriptor open for us and names it exactly once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // The user's processes inherit 0, 1 and 2 and nothing else. A descriptor that is not open is found when it is used.
    let _ = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC);
    fd
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> String {
    format!("{what}: {error}")
}

/// A process that could inspect this one could send frames for it: none may, and it gains nothing by exec.
fn harden() -> Result<(), String> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| failed("PR_SET_DUMPABLE", &error))?;
    rustix::thread::set_no_new_privs(true).map_err(|error| failed("PR_SET_NO_NEW_PRIVS", &error))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    Ok(())
}

fn filter() -> Result<(), String> {
    let filters = Filters::new().map_err(|error| failed("seccomp", &error))?;
    filters.install().map_err(|error| failed("seccomp", &error))
}

fn run() -> Result<(), String> {
    let arguments = arguments()?;
    let adopted = arguments.process.map(|pid| (process::Process::adopted(pid), arguments.path));
    if let Some(ready) = arguments.ready {
        harden()?;
        drop(inherited(ready));
    }
    let stream = match (arguments.socket, &arguments.connect) {
        (Some(fd), None) => UnixStream::from(inherited(fd)),
        (None, Some(path)) => UnixStream::connect(path).map_err(|error| format!("{path}: {error}"))?,
        _ => return Err("name --socket or --connect".to_owned()),
    };
    let nonce = std::env::var(NONCE).unwrap_or_default();
    let memory = Memory::new(arguments.oom.map(inherited), arguments.peak.map(inherited));
    let join = arguments.join.into_iter().map(inherited).collect();
    let listener = if arguments.egress {
        Some(TcpListener::bind(("127.0.0.1", EGRESS_PORT)).map_err(|error| format!("the egress port: {error}"))?)
    } else {
        None
    };
    std::env::set_current_dir("/").map_err(|error| format!("/: {error}"))?;
    if let Some(path) = &arguments.copy_to {
        copy::tree(CODE.as_ref(), path.as_ref()).map_err(|error| format!("copying the code to {path}: {error}"))?;
    }
    if adopted.is_none() {
        harden()?;
        filter()?;
    }
    Session::new(stream, memory, join, adopted)?.run(nonce, listener)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("faena-agent: {message}");
            ExitCode::FAILURE
        }
    }
}

/// A word for the kernel; one with a NUL in it, which no frame of ours holds, ends before it.
fn c_string(word: &str) -> CString {
    CString::new(word.split('\0').next().unwrap_or_default()).unwrap_or_default()
}
