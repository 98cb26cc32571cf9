//! Runs the launcher, and takes hold of what it started.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use faena_launcher::{INSTANCE, Report};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::EngineError;

/// How long a launcher may take.
const LAUNCH: Duration = Duration::from_secs(10);

/// Starts an instance whose agent has this end of a socket.
pub(super) async fn run(
    launcher: &Path,
    spec: &impl Serialize,
    socket: std::os::unix::net::UnixStream,
) -> Result<OwnedFd, EngineError> {
    let (pid, mut child) = ask(launcher, INSTANCE, spec, Stdio::from(OwnedFd::from(socket))).await?;
    let opened = Pid::from_raw(pid)
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
        .map_err(|error| EngineError::lost("taking hold of the instance", error));
    // It waited for this, so that the number could not become another's.
    let _ = child.kill().await;
    opened
}

/// Runs a launcher until it has reported.
pub(crate) async fn ask(
    launcher: &Path,
    word: &str,
    spec: &impl Serialize,
    input: Stdio,
) -> Result<(i32, tokio::process::Child), EngineError> {
    let text = serde_json::to_string(spec).map_err(|error| EngineError::create("writing the spec", error))?;
    let mut child = Command::new(launcher)
        .args([word, &text])
        .env_clear()
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| EngineError::create(format!("starting {}", launcher.display()), error))?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        let read = tokio::time::timeout(LAUNCH, output.read_line(&mut line)).await;
        if !matches!(read, Ok(Ok(_))) {
            return Err(EngineError::lost("launching", "the launcher did not report in time"));
        }
    }
    match serde_json::from_str(&line) {
        Ok(Report::Running(pid)) => Ok((pid, child)),
        Ok(Report::Failed { step, error }) => Err(EngineError::Create { step, message: error }),
        Err(_) => Err(EngineError::lost("launching", "the launcher ended without a report")),
    }
}
