//! An interpreter that is held ready: it has loaded itself and our shim and nothing of a user's, and is a spawner.
//!
//! `hold` becomes the interpreter, on the host's own system; the shim calls [`serve`] through a library of ours. An
//! instance is then one clone of that interpreter. The clone builds its root, gives up what it could do and installs the
//! list of system calls as any other child of a spawner does; then it forks. One of both executes the agent, and the
//! other goes on as the interpreter, once nobody can look into the agent any more.
//!
//! ```text
//! interpreter ─ clone3 ─▶ child: groups, root, limits, capabilities, landlock, seccomp
//!                           ├─ fork ─▶ process of the user's: groups, streams; waits, then loads code
//!                           └─ exec ─▶ agent, which is then not dumpable, and lets the process go on
//! ```

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use faena_confine::seccomp::Filters;
use faena_confine::user::{self, Streams};
use faena_instance_protocol::handler::ANSWERS;
use faena_instance_protocol::{DEFAULT_PATH, Run, handler};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::{Failure, Step, clone, mounts, spawner};

/// What holds an interpreter: after the word, the interpreter and the words that it is started with.
pub(crate) fn hold() -> ExitCode {
    let Err(error) = become_interpreter(std::env::args().skip(2).collect());
    eprintln!("no interpreter is held ready: {error}");
    ExitCode::FAILURE
}

/// The system that instances see is read-only, and so is whatever the interpreter has mapped of it.
fn become_interpreter(words: Vec<String>) -> io::Result<Infallible> {
    mounts::leave_namespace()?;
    mounts::make_private()?;
    mounts::attach_read_only(&mounts::clone_tree(Path::new("/usr"))?, "/usr".as_ref())?;
    let (program, words) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    // What an interpreter reads of its environment when it starts is that of every instance.
    let env = [("PATH", DEFAULT_PATH), ("LANG", "C.UTF-8")];
    Err(Command::new(program).args(words).env_clear().envs(env).exec())
}

/// Serves orders from standard input. Returns in a new instance what its process is to do, as [`handler::begin`] writes it;
/// in the process that called it, nothing at the end of the orders, or when they cannot be served.
pub fn serve() -> Option<Vec<u8>> {
    let served = Filters::new().map_err(io::Error::other).and_then(|filters| spawner::serve(Some(filters)));
    match served {
        Ok(None) => None,
        Ok(Some(begun)) => {
            // The interpreter's own descriptors and ours, which exec would have closed.
            close_all();
            Some(begun.enter())
        }
        Err(error) => {
            eprintln!("the spawner of instances ended: {error}");
            None
        }
    }
}

fn close_all() {
    // SAFETY: the call takes numbers only; the owners of these descriptors in this process are gone.
    unsafe { libc::syscall(libc::SYS_close_range, ANSWERS + 1, libc::c_uint::MAX, 0) };
}

/// Waits until the agent, which alone holds the other end, has closed it. One that could not begin ends the instance, and
/// this process with it.
fn wait_for_end(ready: &OwnedFd) {
    loop {
        match rustix::io::read(ready, &mut [0u8]) {
            Ok(_) => return,
            Err(rustix::io::Errno::INTR) => {}
            // SAFETY: _exit takes no pointers; nothing of the parent's is flushed.
            Err(_) => unsafe { libc::_exit(127) },
        }
    }
}

/// What the process beside the agent is to do.
pub(crate) struct Begun {
    env: BTreeMap<String, String>,
    words: Vec<String>,
}

impl Begun {
    /// Sets the environment for whatever is no interpreter's, and tells the interpreter.
    fn enter(self) -> Vec<u8> {
        // SAFETY: this process has one thread, and whatever the interpreter has read of the environment is a copy.
        unsafe { libc::clearenv() };
        for (name, value) in &self.env {
            // SAFETY: as above.
            unsafe { std::env::set_var(name, value) };
        }
        handler::begin(self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())), &self.words)
    }
}

/// What a child needs to go on as the interpreter.
pub(crate) struct PreloadedProcess<'a> {
    pub(crate) run: &'a Run,
    pub(crate) streams: &'a Streams,
    pub(crate) filters: &'a Filters,
    pub(crate) groups: &'a [OwnedFd],
}

impl PreloadedProcess<'_> {
    /// Forks: the agent goes its way by `exec`, which is given what it has to know of the process; the process returns
    /// what it is to do.
    pub(crate) fn begin(
        &self,
        exec: impl FnOnce(Vec<String>) -> Result<Infallible, Failure>,
    ) -> Result<Begun, Failure> {
        self.filters.install().map_err(io::Error::other).step("installing the list of system calls")?;
        let (ready, tell) = pipe_with(PipeFlags::empty()).step("making a pipe")?;
        let pid = clone::fork().step("forking")?;
        if let Some(pid) = pid {
            drop(ready);
            let (pid, tell) = (pid.to_string(), tell.as_raw_fd().to_string());
            let words = ["--process", &pid, "--path", &self.run.path, "--ready", &tell];
            return exec(words.map(str::to_owned).into()).map(|never| match never {});
        }
        drop(tell);
        Ok(self.settle(ready))
    }

    /// In the process: becomes the user's. What cannot be done is written where the process would write.
    fn settle(&self, ready: OwnedFd) -> Begun {
        let folder = CString::new(self.run.path.as_str()).unwrap_or_default();
        if let Err((step, error)) = user::settle(self.streams, &folder, self.groups) {
            let _ = rustix::io::write(&self.streams.error, format!("{step}: {error}\n").as_bytes());
            // SAFETY: _exit takes no pointers; nothing of the parent's is flushed.
            unsafe { libc::_exit(127) }
        }
        wait_for_end(&ready);
        Begun { env: user::environment(self.run), words: self.run.words.clone() }
    }
}
