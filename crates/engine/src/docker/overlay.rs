//! Runs the launcher that mounts a container's code on the host.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use faena_launcher::{OVERLAY, OverlaySpec, Refusal};
use tokio::process::Command;

use crate::EngineError;

/// How long it may take.
const MOUNT: Duration = Duration::from_secs(10);

/// Mounts, and returns when that is done.
pub(super) async fn mount(launcher: &Path, spec: &OverlaySpec) -> Result<(), EngineError> {
    let text = serde_json::to_string(spec).map_err(|error| EngineError::create("writing the spec", error))?;
    let run = Command::new(launcher)
        .args([OVERLAY, &text])
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(MOUNT, run).await {
        Ok(output) => output.map_err(|error| EngineError::create(format!("starting {}", launcher.display()), error))?,
        Err(_) => return Err(EngineError::lost("mounting the code", "the launcher did not end in time")),
    };
    match serde_json::from_slice(&output.stdout) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Refusal { step, error })) => Err(EngineError::Create { step, message: error }),
        Err(_) => Err(EngineError::lost("mounting the code", "the launcher ended without a word")),
    }
}
