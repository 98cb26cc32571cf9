//! Waits until a process that speaks frames says that it may be called.

use std::time::Duration;

use faena_domain::limits::{MAX_CALL_LOG, STDERR_TAIL};
use faena_domain::log::{LogBuffer, LogStream};
use faena_domain::{Layer, Reuse};
use faena_engine::Instance;
use faena_instance_protocol::handler::{FORKS, HEADER, Header, Kind};
use faena_instance_protocol::{Ended, ToMiniworker};
use faena_protocol::records::Code;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::Unfinished;
use super::wiring::Frames;
use crate::failure::StartError;
use crate::server::{MAX_LOG_BETWEEN, Protocol, ServerParts};
use crate::{capture, result};

/// How long the last output of a process that has ended is waited for.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Waits until a process that speaks frames says that it may be called.
pub(super) async fn greet(
    code: &Code,
    Frames { calls, mut answers }: Frames,
    output: Receiver,
    mut instance: Unfinished,
) -> Result<ServerParts, StartError> {
    let mut head = [0; HEADER];
    let mut log = start_log();
    let greeted = tokio::select! {
        read = answers.read_exact(&mut head) => read.ok().and_then(|_| is_ready(&head)),
        left = follow(&mut instance, &output, &mut log) => return Err(ended(left?, &output, log, code).await),
    };
    let Some(forks) = greeted else {
        // A process that closes what it answers on ends as a rule, and says why.
        let left = follow(&mut instance, &output, &mut log).await?;
        return Err(ended(left, &output, log, code).await);
    };
    if !forks && code.serving.reuse == Reuse::Fork {
        return Err(StartError::refused(
            "reuse = \"fork\" is supported only by processes that fork for each call; of Faena's handlers only Python's does",
        ));
    }
    Ok(ServerParts {
        instance: instance.finish(),
        protocol: Protocol::Frames(calls),
        answers: Some(answers),
        output,
        log,
    })
}

/// Whether a process that may be called forks for each call; none where it may not be called.
fn is_ready(head: &[u8; HEADER]) -> Option<bool> {
    match Header::decode(head)? {
        Header { kind: Kind::Ready, id: 0, length: 0 } => Some(false),
        Header { kind: Kind::Ready, id: FORKS, length: 0 } => Some(true),
        _ => None,
    }
}

/// Reads what a process writes until it ends.
async fn follow(instance: &mut Instance, output: &Receiver, log: &mut LogBuffer) -> Result<Ended, StartError> {
    loop {
        tokio::select! {
            frame = instance.agent.receive() => match frame.map_err(|error| StartError::agent_gone(&error))?.0 {
                ToMiniworker::Ended(ended) => return Ok(ended),
                _ => return Err(StartError::unexpected_frame()),
            },
            readable = output.readable() => {
                if readable.is_err() || !read_some(output, log) {
                    // Nothing more is written; only its end is left.
                    return match instance.agent.receive().await.map_err(|error| StartError::agent_gone(&error))?.0 {
                        ToMiniworker::Ended(ended) => Ok(ended),
                        _ => Err(StartError::unexpected_frame()),
                    };
                }
            }
        }
    }
}

/// What takes the output of a process until it may be called.
pub(super) fn start_log() -> LogBuffer {
    LogBuffer::new(LogStream::Output, MAX_CALL_LOG)
}

/// Takes what is there, up to what an error tells; false at the end.
pub(super) fn read_some(output: &Receiver, log: &mut LogBuffer) -> bool {
    let mut chunk = [0; 4096];
    loop {
        match output.try_read(&mut chunk) {
            Ok(0) => return false,
            Ok(read) => {
                log.push(capture::now(), &chunk[..read]);
                log.keep_end(MAX_LOG_BETWEEN);
            }
            Err(_) => return true,
        }
    }
}

/// A process that ended before it could be called. All of it is dead, so what it wrote has an end.
pub(super) async fn ended(ended: Ended, output: &Receiver, mut log: LogBuffer, code: &Code) -> StartError {
    let rest = async { while output.readable().await.is_ok() && read_some(output, &mut log) {} };
    // A process that holds the pipe open all the same is not waited for.
    let _ = tokio::time::timeout(LAST_OUTPUT, rest).await;
    let when = (Layer::Start, " before it could be called");
    let mut error = result::fallen(ended.exit, ended.oom_kills, code.limits.memory, when);
    error.stderr_tail = result::tail(&String::from_utf8_lossy(log.bytes()), STDERR_TAIL).to_owned();
    StartError::Failed(error)
}
