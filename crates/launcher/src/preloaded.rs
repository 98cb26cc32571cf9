//! The process beside the agent, where an interpreter that is held ready becomes it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use faena_confine::seccomp::Filters;
use faena_confine::user::{self, Streams};
use faena_instance_protocol::{Run, handler};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::{SpawnFailure, Step, clone};

/// What the process beside the agent is to do.
pub(crate) struct UserProcess {
    env: BTreeMap<String, String>,
    words: Vec<String>,
}

impl UserProcess {
    /// Sets the environment of the process, and returns what tells the interpreter its own.
    pub(crate) fn enter(self) -> Vec<u8> {
        // SAFETY: this process has one thread, and the interpreter holds copies of what it has read of the environment.
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
        exec: impl FnOnce(Vec<String>) -> Result<Infallible, SpawnFailure>,
    ) -> Result<UserProcess, SpawnFailure> {
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
    fn settle(&self, ready: OwnedFd) -> UserProcess {
        let folder = CString::new(self.run.path.as_str()).unwrap_or_default();
        if let Err((step, error)) = user::settle(self.streams, &folder, self.groups) {
            let _ = rustix::io::write(&self.streams.error, format!("{step}: {error}\n").as_bytes());
            // SAFETY: _exit takes no pointers; nothing of the parent's is flushed.
            unsafe { libc::_exit(127) }
        }
        wait_for_end(&ready);
        UserProcess { env: user::environment(self.run), words: self.run.words.clone() }
    }
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
