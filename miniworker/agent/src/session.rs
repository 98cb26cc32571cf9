//! The one loop: frames in, ends of processes in, frames out.

use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use faena_instance_protocol::{
    Decoder, Ended, OUTPUT, Outgoing, Output, RESIDENT, Run, SECRETS, ToAgent, ToMiniworker,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

use crate::memory::Memory;
use crate::{clean, connect, files, pack, process, survey};
use faena_confine::user::Streams;

/// How long an agent waits for its first lease.
const FIRST_LEASE_MS: u64 = 60_000;

/// A process of the user that has not been told of yet.
struct Running {
    id: u64,
    path: String,
    output: Option<OwnedFd>,
    process: process::Process,
    before: Usage,
}

/// What the processes before this one had used; the kernel only adds.
struct Usage {
    oom_kills: u64,
    cpu_us: u64,
    peak: Option<u64>,
}

/// One life of an agent.
pub(crate) struct Session {
    stream: UnixStream,
    decoder: Decoder,
    children: process::Children,
    memory: Memory,
    join: Vec<OwnedFd>,
    lease_ms: u64,
    running: Option<Running>,
    /// How this process stood before any of the user's ran.
    standing: process::Standing,
    /// Whether a process has run and ended.
    has_run: bool,
    /// Where the last one ran.
    path: String,
    /// Files in [`SECRETS`], with what they contain.
    secrets: Vec<(String, OwnedFd)>,
}

fn now_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).unwrap_or(0)
}

impl Session {
    /// `adopted` is a process of the user's that was born with the instance, and where it works.
    pub(crate) fn new(
        stream: UnixStream,
        memory: Memory,
        join: Vec<OwnedFd>,
        adopted: Option<(process::Process, String)>,
    ) -> Result<Self, String> {
        let children = process::Children::watch().map_err(|error| format!("signalfd: {error}"))?;
        let lease_ms = now_ms() + FIRST_LEASE_MS;
        let none = Usage { oom_kills: 0, cpu_us: 0, peak: None };
        let running =
            adopted.map(|(process, path)| Running { id: RESIDENT, path, output: None, process, before: none });
        Ok(Self {
            stream,
            decoder: Decoder::default(),
            children,
            memory,
            join,
            lease_ms,
            path: running.as_ref().map(|running| running.path.clone()).unwrap_or_default(),
            running,
            standing: process::Standing::of(0),
            has_run: false,
            secrets: Vec::new(),
        })
    }

    /// Serves until the socket ends or the lease has passed. The caller ends the process, which ends the instance.
    pub(crate) fn run(mut self, nonce: String, listener: Option<TcpListener>) -> Result<(), String> {
        let fds: Vec<BorrowedFd<'_>> = listener.iter().map(AsFd::as_fd).collect();
        self.send(&ToMiniworker::Ready { nonce, has_listener: listener.is_some() }, &fds)?;
        drop(listener);
        // One that ended before its end could be heard of.
        self.reap()?;
        loop {
            let left = self.lease_ms.saturating_sub(now_ms());
            if left == 0 {
                return Err("the lease has passed".to_owned());
            }
            let (has_frames, has_ended) = self.wait(left)?;
            if has_ended {
                self.reap()?;
            }
            if has_frames && !self.receive()? {
                return Ok(());
            }
        }
    }

    fn wait(&self, millis: u64) -> Result<(bool, bool), String> {
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN), PollFd::new(&self.children, PollFlags::IN)];
        let seconds = i64::try_from(millis / 1000).unwrap_or(i64::MAX);
        let timeout = Timespec { tv_sec: seconds, tv_nsec: i64::try_from(millis % 1000).unwrap_or(0) * 1_000_000 };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok((!fds[0].revents().is_empty(), !fds[1].revents().is_empty())),
            Err(error) => Err(format!("poll: {error}")),
        }
    }

    /// Takes what has come; false at the end of the stream.
    fn receive(&mut self) -> Result<bool, String> {
        if self.decoder.read(&self.stream).map_err(|error| format!("the socket: {error}"))? == 0 {
            return Ok(false);
        }
        while let Some((frame, fds)) = self.decoder.decode().map_err(|error| error.to_string())? {
            match frame {
                ToAgent::Lease { until_ms } => self.lease_ms = until_ms,
                ToAgent::Run(run) => self.start(&run, fds)?,
                ToAgent::Kill => process::kill_all(),
                ToAgent::Pack { path } => {
                    let error = match fds.into_iter().next() {
                        Some(fd) => pack::write(&path, fd).err().map(|error| error.to_string()),
                        None => Some("no descriptor came with the request".to_owned()),
                    };
                    self.send(&ToMiniworker::Packed { error }, &[])?;
                }
                ToAgent::Connect { port } => match connect::loopback(port) {
                    Ok(connection) => {
                        self.send(&ToMiniworker::Connected { error: None }, &[connection.as_fd()])?;
                    }
                    Err(error) => self.send(&ToMiniworker::Connected { error: Some(error.to_string()) }, &[])?,
                },
                ToAgent::Secret { name } => {
                    let kept = match fds.into_iter().next() {
                        Some(fd) => files::place(SECRETS, &name, 0o400, &fd).map(|()| self.secrets.push((name, fd))),
                        None => Err(std::io::Error::other("no descriptor came with the request")),
                    };
                    self.send(&ToMiniworker::Kept { error: kept.err().map(|error| error.to_string()) }, &[])?;
                }
                ToAgent::Survey => {
                    let (listening, cpu_us) = (survey::listening(), survey::cpu_us());
                    self.send(&ToMiniworker::Surveyed { listening, cpu_us }, &[])?;
                }
                ToAgent::Clean => {
                    let ended = match &self.running {
                        Some(running) => process::end_others(&running.process),
                        None => Ok(()),
                    };
                    let kept = self.running.as_ref().map(|running| &running.process);
                    let stands = ended.and_then(|()| match self.standing.is_kept(kept) {
                        true => Ok(()),
                        false => Err(std::io::Error::other("a call has changed the priority of a process that stays")),
                    });
                    let cleaned =
                        stands.and_then(|()| clean::everything(&self.path)).and_then(|()| self.place_secrets());
                    let error = cleaned.err().map(|error| error.to_string());
                    let oom_kills = self.new_oom_kills();
                    self.send(&ToMiniworker::Cleaned { error, oom_kills }, &[])?;
                }
            }
        }
        Ok(true)
    }

    /// Writes the files that were given into a folder that was emptied: a call may have changed them.
    fn place_secrets(&self) -> std::io::Result<()> {
        self.secrets.iter().try_for_each(|(name, content)| files::place(SECRETS, name, 0o400, content))
    }

    fn start(&mut self, run: &Run, fds: Vec<OwnedFd>) -> Result<(), String> {
        if self.running.is_some() {
            return Err("a second process was asked for while one runs".to_owned());
        }
        let started = self.spawn(run, fds);
        let frame = match started {
            Ok(running) => {
                self.path.clone_from(&running.path);
                self.running = Some(running);
                ToMiniworker::Started { id: run.id }
            }
            Err(message) => ToMiniworker::Refused { id: run.id, message },
        };
        self.send(&frame, &[])
    }

    fn spawn(&self, run: &Run, fds: Vec<OwnedFd>) -> Result<Running, String> {
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or_else(|| "a descriptor is missing".to_owned());
        let (input, output, error) = (next()?, next()?, next()?);
        let streams = Streams { input, output, error, answers: run.has_answers.then(&mut next).transpose()? };
        let output = run.wants_output.then(&mut next).transpose()?;
        for name in &run.files {
            files::place(&run.path, name, 0o644, &next()?).map_err(|error| format!("{}/{name}: {error}", run.path))?;
        }
        if !run.files.is_empty() {
            files::remove_output(&run.path).map_err(|error| format!("{}/{OUTPUT}: {error}", run.path))?;
        }
        let peak = Some(self.memory.peak()).filter(|_| self.has_run).flatten();
        let before = Usage { oom_kills: self.memory.oom_kills(), cpu_us: process::cpu_us(), peak };
        let process = process::spawn(run, streams, &self.join)?;
        Ok(Running { id: run.id, path: run.path.clone(), output, process, before })
    }

    /// Collects the dead. When the first process of a call is among them, all the others follow it.
    fn reap(&mut self) -> Result<(), String> {
        self.children.clear();
        let watched = self.running.as_ref().map(|running| &running.process);
        let Some(exit) = process::collect(watched) else { return Ok(()) };
        let Some(running) = self.running.take() else { return Ok(()) };
        process::end_all();
        self.has_run = true;
        let output = match running.output {
            None => Output::None,
            Some(fd) => files::take_output(&format!("{}/{OUTPUT}", running.path), fd),
        };
        let ended = Ended {
            id: running.id,
            exit,
            oom_kills: self.memory.oom_kills().saturating_sub(running.before.oom_kills),
            // A peak that did not rise was another's.
            peak_memory: self.memory.peak().filter(|peak| running.before.peak.is_none_or(|before| *peak > before)),
            cpu_us: process::cpu_us().saturating_sub(running.before.cpu_us),
            output,
        };
        self.send(&ToMiniworker::Ended(ended), &[])
    }

    /// How often memory ran out since the process was started, or since this was asked last.
    fn new_oom_kills(&mut self) -> u64 {
        let Some(running) = &mut self.running else { return 0 };
        let before = std::mem::replace(&mut running.before.oom_kills, self.memory.oom_kills());
        running.before.oom_kills.saturating_sub(before)
    }

    fn send(&self, message: &ToMiniworker, fds: &[BorrowedFd<'_>]) -> Result<(), String> {
        let mut outgoing = Outgoing::new(message, fds).map_err(|error| error.to_string())?;
        while !outgoing.write(&self.stream).map_err(|error| format!("the socket: {error}"))? {}
        Ok(())
    }
}
