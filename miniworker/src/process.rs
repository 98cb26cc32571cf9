//! One process in an instance, from its start to its end.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use faena_domain::limits::MAX_RESULT;
use faena_domain::log::{LogBuffer, LogStream};
use faena_engine::{AgentError, AgentSocket};
use faena_instance_protocol::{Ended, Run, ToAgent, ToMiniworker};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::capture::{self, Beyond};
use crate::live::{LiveLog, SharedBuffer};

/// How long an instance may take to report a process that was killed.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What to start, with what, and until when.
pub(crate) struct ProcessSpec<'a> {
    pub(crate) run: Run,
    pub(crate) stdin: &'a [u8],
    /// Files that are placed below `path` before it starts: name and content.
    pub(crate) files: Vec<(&'static str, Bytes)>,
    pub(crate) deadline: Instant,
    /// Until when the agent lets anything run.
    pub(crate) lease: LeaseEnd,
    /// Ends the process early: the node stops.
    pub(crate) stop: &'a CancellationToken,
    /// What takes its standard output and standard error.
    pub(crate) log: LiveLog,
}

/// The instant of `CLOCK_BOOTTIME`, in milliseconds, at which a claim ends unless it is renewed meanwhile.
pub type LeaseEnd = watch::Receiver<u64>;

/// Tells the agent until when it may let anything run.
pub(crate) async fn tell_lease(agent: &AgentSocket, lease: &mut LeaseEnd) -> Result<(), AgentError> {
    let until_ms = *lease.borrow_and_update();
    agent.send(&ToAgent::Lease { until_ms }, &[]).await
}

/// Why there is nothing to judge.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The process could not be started.
    #[error("{0}")]
    Refused(String),
    /// The instance is gone, or speaks nonsense.
    #[error("the instance was lost: {0}")]
    Lost(#[from] AgentError),
    /// It did not report what it was told to end.
    #[error("the instance does not answer")]
    Silent,
    /// The node has no more descriptors or memory.
    #[error("the node cannot serve the instance")]
    Node(#[from] io::Error),
}

/// Why a process was ended before it ended itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The deadline.
    Deadline,
    /// Too much standard output.
    Output,
    /// The node stops.
    Stop,
}

/// A process that has ended, and all it put out.
pub(crate) struct Finished {
    pub(crate) ended: Ended,
    pub(crate) cut: Option<Cut>,
    pub(crate) stdout: LogBuffer,
    /// None where standard output is both.
    pub(crate) stderr: Option<LogBuffer>,
    /// The content of `output.json`.
    pub(crate) output: LogBuffer,
}

/// A file in memory that nobody can change any more.
pub(crate) fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("faena", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(bytes)?;
    file.rewind()?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

type Reading = JoinHandle<io::Result<LogBuffer>>;

struct Streams {
    stdout: Reading,
    stderr: Option<Reading>,
    output: Reading,
    too_much: CancellationToken,
}

async fn start(agent: &AgentSocket, process: &ProcessSpec<'_>) -> Result<Streams, RunError> {
    let stdin = sealed(process.stdin)?;
    let files = process.files.iter().map(|(_, content)| sealed(content)).collect::<io::Result<Vec<_>>>()?;
    let (stdout, stdout_end) = capture::pipe()?;
    let (stderr, stderr_end) = capture::pipe()?;
    let (output, output_end) = capture::pipe()?;
    for end in [&stdout_end, &stderr_end] {
        capture::share(end);
    }
    let error_end = if process.log.stderr.is_none() { &stdout_end } else { &stderr_end };
    let mut fds = vec![stdin.as_fd(), stdout_end.as_fd(), error_end.as_fd()];
    fds.extend(process.run.wants_output.then(|| output_end.as_fd()));
    fds.extend(files.iter().map(AsFd::as_fd));
    agent.send(&ToAgent::Run(process.run.clone()), &fds).await?;
    let too_much = CancellationToken::new();
    let beyond = if process.log.stderr.is_none() { Beyond::Drop } else { Beyond::Stop };
    let (reading, tell) = (capture::read(stdout, process.log.stdout.clone(), beyond), too_much.clone());
    Ok(Streams {
        stdout: tokio::spawn(async move {
            let captured = reading.await?;
            if captured.is_cut() && beyond == Beyond::Stop {
                tell.cancel();
            }
            Ok(captured)
        }),
        stderr: process.log.stderr.clone().map(|to| tokio::spawn(capture::read(stderr, to, Beyond::Drop))),
        output: tokio::spawn(capture::read(output, SharedBuffer::new(LogStream::Stdout, MAX_RESULT), Beyond::Stop)),
        too_much,
    })
}

/// Starts a process and stays with it until everything of it has ended.
pub(crate) async fn run(
    agent: &mut AgentSocket,
    mut process: ProcessSpec<'_>,
    started: impl FnOnce(),
) -> Result<Finished, RunError> {
    let streams = start(agent, &process).await?;
    let (ended, cut) = follow(agent, &mut process, &streams.too_much, started).await?;
    // Every process is dead and the agent holds no end of these, so they have ended too.
    let last = async {
        let whole = |reading: Result<io::Result<LogBuffer>, _>| reading.map_err(io::Error::other)?;
        let stderr = match streams.stderr {
            Some(reading) => Some(whole(reading.await)?),
            None => None,
        };
        Ok::<_, io::Error>((whole(streams.stdout.await)?, stderr, whole(streams.output.await)?))
    };
    let (stdout, stderr, output) = tokio::time::timeout(LAST_WORDS, last).await.map_err(|_| RunError::Silent)??;
    Ok(Finished { ended, cut, stdout, stderr, output })
}

async fn follow(
    agent: &mut AgentSocket,
    process: &mut ProcessSpec<'_>,
    too_much: &CancellationToken,
    started: impl FnOnce(),
) -> Result<(Ended, Option<Cut>), RunError> {
    let mut started = Some(started);
    let mut cut = None;
    let mut deadline = process.deadline;
    loop {
        let why = tokio::select! {
            frame = agent.receive() => match frame?.0 {
                ToMiniworker::Started { id } if id == process.run.id => {
                    if let Some(started) = started.take() {
                        started();
                    }
                    continue;
                }
                ToMiniworker::Refused { id, message } if id == process.run.id => return Err(RunError::Refused(message)),
                ToMiniworker::Ended(ended) if ended.id == process.run.id => return Ok((ended, cut)),
                _ => return Err(RunError::Silent),
            },
            Ok(()) = process.lease.changed() => {
                tell_lease(agent, &mut process.lease).await?;
                continue;
            }
            () = tokio::time::sleep_until(deadline) => Cut::Deadline,
            () = too_much.cancelled(), if cut.is_none() => Cut::Output,
            () = process.stop.cancelled(), if cut.is_none() => Cut::Stop,
        };
        if cut.is_some() {
            return Err(RunError::Silent);
        }
        cut = Some(why);
        deadline = Instant::now() + LAST_WORDS;
        agent.send(&ToAgent::Kill, &[]).await?;
    }
}
