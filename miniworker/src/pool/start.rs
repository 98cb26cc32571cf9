//! Makes an instance, and starts in it what answers calls.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::environment::path_prefix;
use faena_domain::limits::STDERR_TAIL;
use faena_domain::{CallError, Command, Contract, EngineKind, ErrorKind, Exit, Layer, Network};
use faena_engine::{EngineError, ImageId, Instance, InstanceSpec};
use faena_instance_protocol::handler::{HEADER, Header, Kind};
use faena_instance_protocol::{Run, SHIMS, ToAgent, ToMiniworker};
use faena_protocol::records::Code;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tracing::debug;

use super::parked::Parked;
use super::served::{Begun, Served, Speech};
use super::state::{Key, Made, is_served};
use super::{Shared, http};
use crate::attempt::{Failure, base_environment};
use crate::code::CodeLease;
use crate::egress::Egress;
use crate::{capture, instance, result};

/// The pause before a port is tried again on which nobody listens yet.
const TRY_AGAIN: Duration = Duration::from_millis(2);
/// How long the last words of a process that has ended are waited for.
const REST: Duration = Duration::from_secs(1);
/// The number of the one process of an instance that answers many calls.
const PROCESS: u64 = 1;
/// Files that hold a handler where faena.toml names none, and its name in them.
const DEFAULTS: [(&str, &str); 2] = [("handler.py", "handle"), ("handler.mjs", "handle")];

/// Why there is no instance for a call.
#[derive(Debug)]
pub(crate) enum StartError {
    /// Too many wait already.
    Full,
    /// It did not come in time.
    Late,
    /// It could not be made, or its process could not be started.
    Failed(CallError),
}

impl StartError {
    /// What the call is told.
    pub(crate) fn into_call_error(self) -> CallError {
        match self {
            Self::Full => CallError::new(ErrorKind::Unavailable, Layer::Queue, "too many calls wait for an instance"),
            Self::Late => CallError::new(ErrorKind::Timeout, Layer::Start, "no instance came in time"),
            Self::Failed(error) => error,
        }
    }
}

impl<E: Into<Failure>> From<E> for StartError {
    fn from(error: E) -> Self {
        match error.into() {
            Failure::Call(error) => Self::Failed(error),
            Failure::Stopped => Self::Late,
        }
    }
}

fn refused(message: impl Into<String>) -> StartError {
    StartError::Failed(CallError::new(ErrorKind::Start, Layer::Start, message))
}

/// Makes one instance, and tells the pool.
pub(super) async fn start(pool: Arc<Shared>, key: Arc<Key>, code: Arc<Code>, asked: bool) {
    let begun = Instant::now();
    let making = make(&pool, &key, &code, asked);
    let most = code.limits.timeout;
    let made = tokio::time::timeout(most.duration(), making).await.unwrap_or_else(|_| {
        let message = format!("the attempt took longer than {} ms while its instance was made", most.0);
        Err(StartError::Failed(CallError::new(ErrorKind::Timeout, Layer::Start, message)))
    });
    if made.is_ok() {
        pool.state().learn(&key, begun.elapsed().as_secs_f64() * 1000.0);
    }
    pool.started(&key, asked, made);
}

async fn make(pool: &Arc<Shared>, key: &Arc<Key>, code: &Arc<Code>, asked: bool) -> Result<Made, StartError> {
    let begun = Instant::now();
    let (instance, tree) = create(pool, code).await?;
    let mut instance = Unfinished { instance: Some(instance), pool: Arc::clone(pool) };
    debug!(function = %code.function, took = ?begun.elapsed(), "an instance was made");
    instance.agent.send(&ToAgent::Lease { until_ms: u64::MAX }, &[]).await.map_err(gone)?;
    let egress = instance.listener.take().map(|listener| Egress::serve(listener, Arc::clone(&pool.node.egress)));
    let (key, code, pool) = (Arc::clone(key), Arc::clone(code), Arc::clone(pool));
    if !is_served(&code) {
        let instance = instance.finish();
        let parked = Parked { instance, egress, is_cold: asked, key, code, tree, pool, is_frozen: false };
        return Ok(Made::Parked(Box::new(parked)));
    }
    let words = words(&code, tree.path())?;
    let since = Instant::now();
    let begun = match code.serving.contract {
        Contract::Http => listen(&pool, &code, words, instance, egress).await?,
        Contract::Handler | Contract::Command => greet(&pool, &code, words, instance, egress).await?,
    };
    debug!(function = %code.function, took = ?since.elapsed(), "its process may be called");
    Ok(Made::Served(Served::begin_life(pool, key, code, begun)))
}

fn gone(error: faena_engine::AgentError) -> StartError {
    StartError::from(EngineError::Lost { step: "starting the process".to_owned(), message: error.to_string() })
}

/// An instance whose process does not answer yet: whoever gives up on it has it destroyed.
struct Unfinished {
    instance: Option<Instance>,
    pool: Arc<Shared>,
}

impl Unfinished {
    fn finish(mut self) -> Instance {
        self.instance.take().unwrap_or_else(|| unreachable!("only this and drop take it out"))
    }
}

impl std::ops::Deref for Unfinished {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        self.instance.as_ref().unwrap_or_else(|| unreachable!("only finish and drop take it out"))
    }
}

impl std::ops::DerefMut for Unfinished {
    fn deref_mut(&mut self) -> &mut Instance {
        self.instance.as_mut().unwrap_or_else(|| unreachable!("only finish and drop take it out"))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(instance) = self.instance.take() {
            self.pool.tasks.spawn(instance.guard.destroy());
        }
    }
}

async fn create(pool: &Arc<Shared>, code: &Code) -> Result<(Instance, CodeLease), StartError> {
    let node = &pool.node;
    let kind = code.engine.unwrap_or(EngineKind::Sandbox);
    let none = || CallError::new(ErrorKind::Unavailable, Layer::Start, format!("this worker has no engine {kind}"));
    let engine = node.engines.get(&kind).ok_or_else(|| StartError::Failed(none()))?;
    let tree = node.code.get(&code.archive).await?;
    if let Some(blank) = pool.take_blank(code) {
        let laid = instance::lay(blank, tree.clone()).await;
        pool.restock(code);
        match laid {
            Ok(instance) => {
                let alive = instance.agent.send(&ToAgent::Lease { until_ms: u64::MAX }, &[]).await;
                match alive {
                    Ok(()) => return Ok((instance, tree)),
                    Err(error) => {
                        debug!(%error, "an instance that waited without code is gone");
                        instance.guard.destroy().await;
                    }
                }
            }
            Err(error) => debug!(%error, "an instance that waited without code cannot be used"),
        }
    }
    let has_egress = code.network == Network::Egress;
    let spec = InstanceSpec {
        name: instance::name('c'),
        image: ImageId(code.image_id.clone().unwrap_or_else(|| code.image.clone())),
        code: Some(tree.path().to_owned()),
        path: code.path.clone(),
        limits: code.limits,
        egress: has_egress,
        ca_bundle: node.ca_bundle.clone().filter(|_| has_egress),
    };
    let made = instance::create(Arc::clone(engine), spec, tree.clone()).await?;
    pool.restock(code);
    Ok((made, tree))
}

/// What is executed: our shim around the user's handler, or the runtime's own program.
fn words(code: &Code, tree: &Path) -> Result<Vec<String>, StartError> {
    let own = || Command::parse(&code.run).map(|command| command.words).map_err(|error| refused(error.to_string()));
    if code.serving.contract == Contract::Http {
        return own();
    }
    let stands = |file: &str| std::fs::symlink_metadata(tree.join(file)).is_ok_and(|found| found.is_file());
    let default = || DEFAULTS.iter().find(|(file, _)| stands(file)).map(|(file, name)| format!("{file}:{name}"));
    let Some(place) = code.serving.handler.clone().or_else(default) else { return own() };
    let file = place.rsplit_once(':').map_or(place.as_str(), |(file, _)| file);
    let shim = |program: &[&str], name: &str| {
        let program = program.iter().map(|word| (*word).to_owned());
        Ok(program.chain([format!("{SHIMS}/{name}"), place.clone()]).collect())
    };
    match file.rsplit_once('.').map(|(_, extension)| extension) {
        // -S: the shim finds packages itself, in half the time.
        Some("py") => shim(&["python3", "-S"], "python.py"),
        Some("mjs" | "js" | "cjs") => shim(&["node"], "node.mjs"),
        _ => Err(refused(format!(
            "handler = {place:?} is neither .py nor .mjs; a program of another language is the runtime's run, and needs no handler"
        ))),
    }
}

fn run_frame(pool: &Shared, code: &Code, words: Vec<String>) -> Run {
    let mut env: BTreeMap<String, String> = base_environment(&pool.node, code);
    let parallel = code.serving.parallel().to_string();
    let ours = [
        ("FAENA_FUNCTION", code.function.to_string()),
        ("FAENA_VERSION", code.version.to_string()),
        ("FAENA_PARALLEL", parallel),
    ];
    env.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    if code.serving.contract == Contract::Http {
        env.insert("PORT".to_owned(), http::PORT.to_string());
    }
    Run {
        id: PROCESS,
        words,
        env: env.into_iter().collect(),
        path_prefix: path_prefix(&code.path),
        path: code.path.clone(),
        wants_output: false,
        has_params: false,
    }
}

/// Starts the process; one pipe takes all that it writes.
async fn launch(
    pool: &Shared,
    code: &Code,
    words: Vec<String>,
    instance: &mut Instance,
    input: impl AsFd,
) -> Result<Receiver, StartError> {
    let (output, end) = capture::pipe().map_err(node_failure)?;
    capture::share(&end);
    let run = ToAgent::Run(run_frame(pool, code, words));
    instance.agent.send(&run, &[input.as_fd(), end.as_fd(), end.as_fd()]).await.map_err(gone)?;
    drop(end);
    match instance.agent.receive().await.map_err(gone)?.0 {
        ToMiniworker::Started { id: PROCESS } => Ok(output),
        ToMiniworker::Refused { id: PROCESS, message } => {
            Err(refused(format!("the process could not be started: {message}")))
        }
        _ => Err(nonsense()),
    }
}

fn node_failure(error: io::Error) -> StartError {
    let message = format!("the node cannot serve the instance: {error}");
    StartError::Failed(CallError::new(ErrorKind::Infrastructure, Layer::Start, message))
}

fn nonsense() -> StartError {
    StartError::from(EngineError::Lost {
        step: "starting the process".to_owned(),
        message: "it sent what no instance sends now".to_owned(),
    })
}

/// Starts a process that speaks frames, and waits until it says that it may be called.
async fn greet(
    pool: &Shared,
    code: &Code,
    words: Vec<String>,
    mut instance: Unfinished,
    egress: Option<Egress>,
) -> Result<Begun, StartError> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(node_failure)?;
    ours.set_nonblocking(true).map_err(node_failure)?;
    let (mut frames, writing) = tokio::net::UnixStream::from_std(ours).map_err(node_failure)?.into_split();
    let output = launch(pool, code, words, &mut instance, &theirs).await?;
    drop(theirs);
    let mut head = [0; HEADER];
    let mut log = Vec::new();
    let greeted = tokio::select! {
        read = frames.read_exact(&mut head) => read.is_ok() && is_ready(&head),
        left = follow(&mut instance, &output, &mut log) => return Err(ended(left?, &output, log).await),
    };
    if !greeted {
        // A process that closes its input ends as a rule, and says why.
        let left = follow(&mut instance, &output, &mut log).await?;
        return Err(ended(left, &output, log).await);
    }
    Ok(Begun {
        instance: instance.finish(),
        speech: Speech::Frames(writing),
        frames: Some(frames),
        output,
        log,
        egress,
    })
}

fn is_ready(head: &[u8; HEADER]) -> bool {
    Header::decode(head) == Some(Header { kind: Kind::Ready, id: 0, length: 0 })
}

/// Reads what a process writes until it ends.
async fn follow(
    instance: &mut Instance,
    output: &Receiver,
    log: &mut Vec<u8>,
) -> Result<faena_instance_protocol::Ended, StartError> {
    loop {
        tokio::select! {
            frame = instance.agent.receive() => match frame.map_err(gone)?.0 {
                ToMiniworker::Ended(ended) => return Ok(ended),
                _ => return Err(nonsense()),
            },
            readable = output.readable() => {
                if readable.is_err() || !read_some(output, log) {
                    // Nothing more is written; only its end is left.
                    return match instance.agent.receive().await.map_err(gone)?.0 {
                        ToMiniworker::Ended(ended) => Ok(ended),
                        _ => Err(nonsense()),
                    };
                }
            }
        }
    }
}

/// Takes what is there, up to what an error tells; false at the end.
fn read_some(output: &Receiver, log: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 4096];
    loop {
        match output.try_read(&mut chunk) {
            Ok(0) => return false,
            Ok(read) => {
                log.extend_from_slice(&chunk[..read]);
                let spare = log.len().saturating_sub(16 * STDERR_TAIL);
                log.drain(..spare);
            }
            Err(_) => return true,
        }
    }
}

/// A process that ended before it could be called. All of it is dead, so what it wrote has an end.
async fn ended(ended: faena_instance_protocol::Ended, output: &Receiver, mut log: Vec<u8>) -> StartError {
    let rest = async { while output.readable().await.is_ok() && read_some(output, &mut log) {} };
    // Whoever holds the pipe open all the same is not waited for.
    let _ = tokio::time::timeout(REST, rest).await;
    let what = "before it could be called";
    let mut error = match result::exit(ended.exit) {
        _ if ended.oom_kills > 0 => CallError::new(ErrorKind::Oom, Layer::Start, format!("memory ran out {what}")),
        Exit::Code(code) => CallError {
            exit_code: Some(code),
            ..CallError::new(ErrorKind::Exit, Layer::Start, format!("the process ended with code {code} {what}"))
        },
        Exit::Signal(signal) => CallError {
            signal: Some(signal),
            ..CallError::new(
                ErrorKind::Signal,
                Layer::Start,
                format!("the process was ended by signal {signal} {what}"),
            )
        },
    };
    error.stderr_tail = result::tail(&String::from_utf8_lossy(&log), STDERR_TAIL).to_owned();
    StartError::Failed(error)
}

/// Starts a process that speaks HTTP, and waits until somebody listens on its port.
async fn listen(
    pool: &Shared,
    code: &Code,
    words: Vec<String>,
    mut instance: Unfinished,
    egress: Option<Egress>,
) -> Result<Begun, StartError> {
    let null = std::fs::File::open("/dev/null").map_err(node_failure)?;
    let output = launch(pool, code, words, &mut instance, &null).await?;
    let mut log = Vec::new();
    loop {
        instance.agent.send(&ToAgent::Connect { port: http::PORT }, &[]).await.map_err(gone)?;
        match instance.agent.receive().await.map_err(gone)? {
            (ToMiniworker::Connected { error: None }, _) => break,
            (ToMiniworker::Connected { error: Some(_) }, _) => tokio::time::sleep(TRY_AGAIN).await,
            (ToMiniworker::Ended(left), _) => return Err(ended(left, &output, log).await),
            _ => return Err(nonsense()),
        }
        read_some(&output, &mut log);
    }
    Ok(Begun {
        instance: instance.finish(),
        speech: Speech::Http(http::Client::default()),
        frames: None,
        output,
        log,
        egress,
    })
}
