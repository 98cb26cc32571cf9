//! One build: the engine is chosen, dependencies are installed, the tree becomes an artifact.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use faena_blob::archive::{self, Bounds as ArchiveBounds};
use faena_domain::build::{LOG_TAIL, MAX_LOG, looks_like_network, reason};
use faena_domain::environment::{ca_variables, package_variables, path_prefix, proxy_variables};
use faena_domain::log::{LogBuffer, LogStream, StoredLog};
use faena_domain::program::Program;
use faena_domain::{BlobKey, BuildFailure, Command, EngineKind, ErrorKind, Exit, ImageName, Payload};
use faena_egress::Reach;
use faena_engine::{CA_BUNDLE, Engine, EngineError, ImageId, Instance, InstanceSpec, Pull};
use faena_gateway::Counters;
use faena_instance_protocol::{EGRESS_PORT, Run, ToAgent, ToMiniworker};
use faena_protocol::records::{BuildJob, BuildOutcome};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::egress::{Connections, Ways};
use crate::process::{self, Cut, Finished, LeaseEnd, ProcessSpec, RunError};
use crate::start::program::{config_problem, image_variables};
use crate::{Node, capture, instance, live, names, result};

/// How long the tree may take to become an archive.
const PACK: Duration = Duration::from_secs(120);

/// Why there is no artifact.
enum BuildStop {
    /// The build failed.
    Build(BuildFailure),
    /// The node stops.
    Stopped,
}

fn failed(kind: ErrorKind, message: impl Into<String>) -> BuildStop {
    BuildStop::Build(BuildFailure { kind, message: message.into() })
}

fn platform(error: impl std::fmt::Display) -> BuildStop {
    failed(ErrorKind::Infrastructure, error.to_string())
}

/// Whether a node has an image, or why it does not; nothing is pulled.
///
/// # Errors
/// A sentence for people that says what each engine lacks.
pub async fn find_image(node: &Node, image: &ImageName, engine: Option<EngineKind>) -> Result<(), String> {
    choose(node, image, engine, Pull::Never).await.map(drop).map_err(|failure| failure.message)
}

/// Finds the engine for an image: an image that Docker has, a name that the sandbox maps, an image that Docker may pull.
async fn choose(
    node: &Node,
    name: &ImageName,
    engine: Option<EngineKind>,
    pull: Pull,
) -> Result<(Arc<dyn Engine>, ImageId), BuildFailure> {
    let image = name.tagged();
    let plain = name.as_str();
    let order: Vec<(EngineKind, Pull)> = match engine {
        Some(kind) => vec![(kind, pull)],
        None => vec![(EngineKind::Docker, Pull::Never), (EngineKind::Sandbox, Pull::Never), (EngineKind::Docker, pull)],
    };
    let order_is_fixed = engine.is_some();
    let mut reasons: Vec<String> = Vec::new();
    for (kind, pull) in order {
        let Some(engine) = node.engines.get(&kind) else {
            reasons.push(format!("this worker has no engine {kind}"));
            continue;
        };
        let name = if kind == EngineKind::Docker { image.as_str() } else { plain };
        match engine.resolve(name, pull).await {
            Ok(id) => return Ok((Arc::clone(engine), id)),
            Err(EngineError::Unavailable { message, .. }) if order_is_fixed => {
                return Err(BuildFailure { kind: ErrorKind::Infrastructure, message });
            }
            Err(error) => reasons.push(error.to_string()),
        }
    }
    reasons.sort();
    reasons.dedup();
    let message = format!("no engine has the image {plain}: {}", reasons.join("; "));
    Err(BuildFailure { kind: ErrorKind::Image, message })
}

/// The engine and the id of the image of a build; an image of the platform is fetched, any other one is found on the node.
async fn image_of(node: &Node, job: &BuildJob) -> Result<(Arc<dyn Engine>, ImageId), BuildFailure> {
    let runtime = &job.runtime;
    let Some(content) = &job.code.image_content else {
        return choose(node, &runtime.image, runtime.engine, node.pull).await;
    };
    // Both can run it; the sandbox makes instances sooner.
    let engine = match runtime.engine {
        Some(kind) => node.engines.get(&kind),
        None => [EngineKind::Sandbox, EngineKind::Docker].iter().find_map(|kind| node.engines.get(kind)),
    };
    let failed = |kind, message| BuildFailure { kind, message };
    let engine =
        engine.ok_or_else(|| failed(ErrorKind::Image, "this worker lacks the engine of the runtime".to_owned()))?;
    match node.images.get(engine, content).await {
        Ok(id) => Ok((Arc::clone(engine), id)),
        Err(EngineError::Image(message)) => Err(failed(ErrorKind::Image, message)),
        Err(error) => Err(failed(ErrorKind::Infrastructure, error.to_string())),
    }
}

/// Runs one build to its end; none where the node stopped before it could end.
pub async fn run_build(node: &Node, job: &BuildJob, lease: LeaseEnd, stop: &CancellationToken) -> Option<BuildOutcome> {
    let chosen = tokio::select! {
        chosen = image_of(node, job) => chosen,
        () = stop.cancelled() => return None,
    };
    let (mut log, mut refusals) =
        (LogBuffer::new(LogStream::Output, MAX_LOG), LogBuffer::new(LogStream::Platform, MAX_LOG));
    let (engine, image, made) = match chosen {
        Err(failure) => (None, None, Err(BuildStop::Build(failure))),
        Ok((engine, image)) => {
            let made = if job.runtime.needs_build() {
                build(node, job, (&engine, &image), (lease, stop), (&mut log, &mut refusals)).await
            } else {
                Ok(job.code.archive)
            };
            (Some(engine.kind()), Some(image.0), made)
        }
    };
    let result = match made {
        Ok(artifact) => Ok(artifact),
        Err(BuildStop::Build(failure)) => Err(failure),
        Err(BuildStop::Stopped) => return None,
    };
    let log_tail = result::tail(&String::from_utf8_lossy(log.bytes()), LOG_TAIL).to_owned();
    let log = match node.blobs.of(&job.code.namespace).payload(live::stored(&[log, refusals]).into_bytes()).await {
        Ok(log) => log,
        Err(error) => {
            let mut log = StoredLog::new(MAX_LOG);
            log.remark(capture::now(), &format!("[the log could not be kept: {error}]"));
            Payload::Text(log.into_text())
        }
    };
    info!(function = %job.code.function, version = %job.code.version, ok = result.is_ok(), "a build has ended");
    Some(BuildOutcome { engine, image_id: image, result, log, log_tail })
}

fn run_frame(node: &Node, job: &BuildJob) -> Result<Run, BuildStop> {
    let command =
        Command::parse(&job.runtime.dependencies).map_err(|error| failed(ErrorKind::Build, error.to_string()))?;
    let mut env = image_variables(&job.code);
    env.extend(package_variables(&job.code.path));
    env.extend(proxy_variables(EGRESS_PORT));
    if node.ca_bundle.is_some() {
        env.extend(ca_variables(CA_BUNDLE));
    }
    env.extend(job.code.env.clone());
    env.extend(job.env.clone());
    env.extend(job.config.iter().flat_map(|config| &config.env).map(|(name, value)| (name.clone(), value.0.clone())));
    Ok(Run {
        id: job.epoch.0.unsigned_abs(),
        words: command.words,
        env: env.into_iter().collect(),
        path_prefix: path_prefix(&job.code.path),
        path: job.code.path.clone(),
        has_answers: false,
        wants_output: false,
        files: Vec::new(),
    })
}

async fn build(
    node: &Node,
    job: &BuildJob,
    (engine, image): (&Arc<dyn Engine>, &ImageId),
    (lease, stop): (LeaseEnd, &CancellationToken),
    (log, refusals): (&mut LogBuffer, &mut LogBuffer),
) -> Result<BlobKey, BuildStop> {
    let deadline = Instant::now() + node.build.limits.timeout.duration();
    if let Some(why) = job.config.as_ref().and_then(config_problem) {
        return Err(failed(ErrorKind::Build, why));
    }
    let code = node.code.get(&job.code).await.map_err(platform)?;
    let spec = InstanceSpec {
        name: names::unique('b'),
        image: image.clone(),
        code: Some(code.path().to_owned()),
        path: job.code.path.clone(),
        limits: node.build.limits,
        egress: true,
        ca_bundle: node.ca_bundle.clone(),
        resident: None,
    };
    let mut instance = instance::create(Arc::clone(engine), spec, code).await.map_err(|error| match error {
        EngineError::Create { .. } => {
            failed(ErrorKind::Build, format!("the build's instance could not be made: {error}"))
        }
        error => platform(error),
    })?;
    // A build reaches what the platform permits; what its function may reach is for calls.
    let reach = Reach { networks: job.code.networks.clone(), ..Reach::public() };
    let egress = Ways::of(&mut instance).map(|ways| node.egress.serve(&job.code, reach, ways, None)).transpose();
    let made = match egress {
        Ok(egress) => {
            let made = build_in(node, job, &mut instance, (deadline, lease, stop), log).await;
            let report = egress.map(|egress| egress.end_call(Counters::default(), Connections::Reset));
            *refusals = report.unwrap_or_default().refusals;
            made
        }
        Err(error) => Err(platform(error)),
    };
    instance.guard.destroy().await;
    made
}

async fn build_in(
    node: &Node,
    job: &BuildJob,
    instance: &mut Instance,
    (deadline, mut lease, stop): (Instant, LeaseEnd, &CancellationToken),
    log: &mut LogBuffer,
) -> Result<BlobKey, BuildStop> {
    process::tell_lease(&instance.agent, &mut lease).await.map_err(platform)?;
    let process = ProcessSpec {
        run: run_frame(node, job)?,
        stdin: b"",
        files: Vec::new(),
        deadline,
        lease: lease.clone(),
        stop,
        log: node.logs.of_build(job.reference()),
    };
    let finished = process::run(&mut instance.agent, process, || {}).await.map_err(|error| match error {
        RunError::Refused(message) => {
            failed(ErrorKind::Build, format!("the command of `dependencies` could not be started: {message}"))
        }
        error => platform(error),
    })?;
    judge(job, finished, node, log)?;
    pack(node, job, instance, lease).await
}

/// What the command's end means; its output becomes the log.
fn judge(job: &BuildJob, finished: Finished, node: &Node, log: &mut LogBuffer) -> Result<(), BuildStop> {
    let (cut, exit, oom_kills) = (finished.cut, result::exit(finished.ended.exit), finished.ended.oom_kills);
    *log = finished.stdout;
    let text = String::from_utf8_lossy(log.bytes());
    let program = job.runtime.dependencies.split_whitespace().next().unwrap_or_default();
    let end = match (cut, exit) {
        (Some(Cut::Stop), _) => return Err(BuildStop::Stopped),
        (Some(_), _) => {
            let limit = node.build.limits.timeout;
            return Err(failed(
                ErrorKind::Build,
                format!("{program} ran longer than the {limit} that a build may take"),
            ));
        }
        (None, Exit::Code(0)) => return Ok(()),
        (None, Exit::Code(code)) => format!("{program} ended with code {code}"),
        (None, Exit::Signal(signal)) => format!("{program} was ended by signal {signal}"),
    };
    let why = if oom_kills > 0 {
        format!("{end} after the build had wanted more memory than {}", node.build.limits.memory)
    } else if looks_like_network(&text) {
        format!(
            "{end}, and the network or the package index seems to be the reason; try again with POST /function/{}/build",
            job.code.function
        )
    } else {
        end
    };
    Err(failed(ErrorKind::Build, format!("{why}. Its log says: {}", result::tail(&reason(&text).join(" | "), 800))))
}

/// Takes the tree out of the instance; it is as hostile as an upload.
async fn pack(node: &Node, job: &BuildJob, instance: &mut Instance, mut lease: LeaseEnd) -> Result<BlobKey, BuildStop> {
    let (mut from, to) = capture::pipe().map_err(platform)?;
    instance.agent.send(&ToAgent::Pack { path: job.code.path.clone() }, &[to.as_fd()]).await.map_err(platform)?;
    drop(to);
    let (most, blobs) = (node.build.artifact.0, node.blobs.of(&job.code.namespace));
    let read = async {
        let mut spool = blobs.spool().map_err(platform)?;
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let read = tokio::select! {
                read = from.read(&mut chunk) => read.map_err(platform)?,
                Ok(()) = lease.changed() => {
                    process::tell_lease(&instance.agent, &mut lease).await.map_err(platform)?;
                    continue;
                }
            };
            if read == 0 {
                return spool.finish().map_err(platform);
            }
            if spool.bytes() + read as u64 > most {
                return Err(failed(ErrorKind::Build, format!("the artifact is larger than {}", node.build.artifact)));
            }
            spool.write(&chunk[..read]).map_err(platform)?;
        }
    };
    let spooled =
        tokio::time::timeout(PACK, read).await.map_err(|_| platform("packing the artifact took too long"))??;
    match tokio::time::timeout(PACK, instance.agent.receive()).await {
        Ok(Ok((ToMiniworker::Packed { error: None }, _))) => {}
        Ok(Ok((ToMiniworker::Packed { error: Some(error) }, _))) => {
            return Err(failed(ErrorKind::Build, format!("the artifact could not be packed: {error}")));
        }
        _ => return Err(platform("the instance was lost while it packed the artifact")),
    }
    let bounds = ArchiveBounds { bytes: most, ..ArchiveBounds::ARTIFACT };
    let mut file = spooled.file.try_clone().map_err(platform)?;
    let checked = tokio::task::spawn_blocking(move || archive::check(&mut file, &bounds))
        .await
        .map_err(platform)?
        .map_err(|error| failed(ErrorKind::Build, format!("the artifact was refused: {error}")))?;
    Program::of(&job.code.serving, &job.code.run, &job.code.path, &checked.listing.below(""))
        .map_err(|error| failed(ErrorKind::Build, format!("after the build, {error}")))?;
    blobs.put(&spooled).await.map_err(platform)?;
    Ok(spooled.key)
}
