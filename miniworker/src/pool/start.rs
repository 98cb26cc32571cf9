//! Makes an instance, and starts in it what answers calls.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use faena_domain::environment::path_prefix;
use faena_domain::limits::{MAX_CALL_LOG, STDERR_TAIL};
use faena_domain::log::{LogBuffer, LogStream};
use faena_domain::program::{Language, Program};
use faena_domain::{CallError, Command, Contract, EngineKind, ErrorKind, Layer, Network, Reuse};
use faena_engine::{EngineError, ImageId, Instance, InstanceSpec, PreloadedProcess};
use faena_instance_protocol::handler::{self, FORKS, HEADER, Header, Kind};
use faena_instance_protocol::{DEFAULT_PATH, Ended, RESIDENT, Run, SHIMS, ToAgent, ToMiniworker};
use faena_protocol::records::Code;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tracing::debug;

use super::parked::Parked;
use super::served::{BETWEEN, Begun, Protocol, Served};
use super::state::{Key, Made, is_served};
use super::{Shared, http};
use crate::attempt::{Failure, base_environment};
use crate::code::CodeLease;
use crate::egress::Egress;
use crate::{capture, instance, result};

/// The pause before a port is tried again on which nobody listens yet.
const TRY_AGAIN: Duration = Duration::from_millis(2);
/// How often a server that does not listen yet is looked at.
const SURVEY: Duration = Duration::from_millis(500);
/// How long a server may listen elsewhere before that is the reason.
const ELSEWHERE: Duration = Duration::from_secs(2);
/// How long a server may do nothing before it listens.
const CALM: Duration = Duration::from_secs(5);
/// How long the last words of a process that has ended are waited for.
const REST: Duration = Duration::from_secs(1);
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
    let tree = pool.node.code.get(code).await?;
    let mut wired = if is_served(code) { Some(Wired::new(pool, code, &tree)?) } else { None };
    let instance = create(pool, code, tree.clone(), wired.as_mut()).await?;
    let mut instance = Unfinished { instance: Some(instance), pool: Arc::clone(pool) };
    debug!(function = %code.function, took = ?begun.elapsed(), "an instance was made");
    instance.agent.send(&ToAgent::Lease { until_ms: u64::MAX }, &[]).await.map_err(gone)?;
    let asker = pool.node.askers.of(&code.namespace, &code.function);
    let egress = instance.listener.take().map(|listener| Egress::serve(listener, Arc::clone(&pool.node.egress), asker));
    let (key, code, pool) = (Arc::clone(key), Arc::clone(code), Arc::clone(pool));
    let Some(wired) = wired else {
        let instance = instance.finish();
        let parked = Parked { instance, egress, is_cold: asked, key, code, tree, pool, is_frozen: false, calls: 0 };
        return Ok(Made::Parked(Box::new(parked)));
    };
    let since = Instant::now();
    let Wired { run, resident, mut frames, output, .. } = wired;
    match frames.as_mut().filter(|_| instance.is_inhabited) {
        Some(frames) => say_begin(frames, &run).await.map_err(node_failure)?,
        None => launch(&mut instance, run, &resident).await?,
    }
    // The process has its ends; its own end shows only when nobody else holds them.
    drop(resident);
    let begun = match frames {
        Some(frames) => greet(&code, frames, output, instance).await?,
        None => listen((&pool, &code), output, instance).await?,
    };
    debug!(function = %code.function, took = ?since.elapsed(), "its process may be called");
    Ok(Made::Served(Served::begin_life(pool, (key, code, tree), begun, egress)))
}

/// A process that answers many calls, before it runs, and our ends of what joins us.
struct Wired {
    /// What is run.
    run: Run,
    /// An interpreter that waits to be told so, and its ends of what joins us.
    resident: Arc<PreloadedProcess>,
    /// Whether it may be a clone of an interpreter that is held ready.
    may_be_clone: bool,
    /// Where frames go to and come from; none where it speaks HTTP.
    frames: Option<Frames>,
    output: Receiver,
}

impl Wired {
    fn new(pool: &Shared, code: &Code, tree: &CodeLease) -> Result<Self, StartError> {
        let program = Started::of(code, tree)?;
        let (output, end) = capture::pipe().map_err(node_failure)?;
        capture::share(&end);
        let (frames, input, answers) = match code.serving.contract {
            Contract::Http => (None, std::fs::File::open("/dev/null").map_err(node_failure)?.into(), None),
            Contract::Handler | Contract::Command => {
                let (frames, input, answers) = Frames::new().map_err(node_failure)?;
                if program.opens_calls {
                    capture::share(&input);
                }
                (Some(frames), input, Some(answers))
            }
        };
        let may_be_clone = program.may_be_clone(pool, code, tree);
        let (waiting, domain) = (waiting_run(&code.path, false), code.namespace.to_string());
        Ok(Self {
            run: run_frame(pool, code, program.words),
            resident: Arc::new(PreloadedProcess { run: waiting, domain, input, output: end, answers }),
            may_be_clone,
            frames,
            output,
        })
    }

    fn offered(&self) -> Option<Arc<PreloadedProcess>> {
        self.may_be_clone.then(|| Arc::clone(&self.resident))
    }

    /// Goes over to an interpreter that waits in an instance which has its code now.
    fn take_over(&mut self, channel: Channel) -> io::Result<()> {
        let Channel { frames, output } = channel.registered_here()?;
        (self.frames, self.output) = (Some(frames), output);
        Ok(())
    }
}

/// Tells an interpreter that waits what it is to do. That goes the way of its calls: the zygote that it is a clone of, and so
/// all of its other clones, know nothing of it.
async fn say_begin(frames: &mut Frames, run: &Run) -> io::Result<()> {
    let path = format!("{}{DEFAULT_PATH}", run.path_prefix);
    let env = run.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let body = handler::begin(env.chain([("PATH", path.as_str())]), &run.words);
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let header = Header { kind: Kind::Begin, id: 0, length }.encode();
    frames.calls.write_all(&[&header[..], &body].concat()).await
}

/// Our ends of the pipes of a process that speaks frames. Two pipes cost two thirds of what a socket does: nobody is
/// woken because the other has read (docs/adr/0012-two-pipes-for-frames.md).
#[derive(Debug)]
pub(super) struct Frames {
    calls: Sender,
    answers: Receiver,
}

impl Frames {
    /// Our ends, and those of the process: what it reads calls from, and what it answers on.
    fn new() -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let (input, calls) = pipe_with(PipeFlags::CLOEXEC)?;
        let (answers, end) = capture::pipe()?;
        // A program may open what it answers on by its name.
        capture::share(&end);
        Ok((Self { calls: Sender::from_owned_fd(calls)?, answers }, input, end))
    }
}

/// Our ends of what joins us with a process that speaks frames.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) frames: Frames,
    pub(super) output: Receiver,
}

impl Channel {
    /// The same pipes, registered with the runtime of this task. Another runtime's thread would be woken by each answer, only
    /// to wake this one.
    fn registered_here(self) -> io::Result<Self> {
        let Self { frames: Frames { calls, answers }, output } = self;
        let calls = Sender::from_owned_fd(calls.into_nonblocking_fd()?)?;
        let answers = Receiver::from_owned_fd(answers.into_nonblocking_fd()?)?;
        let output = Receiver::from_owned_fd(output.into_nonblocking_fd()?)?;
        Ok(Self { frames: Frames { calls, answers }, output })
    }
}

/// An interpreter that waits in an instance without code, before it runs.
pub(super) fn waiting(domain: &str, path: &str) -> io::Result<(PreloadedProcess, Channel)> {
    let (output, end) = capture::pipe()?;
    capture::share(&end);
    let (frames, input, answers) = Frames::new()?;
    let (run, domain) = (waiting_run(path, true), domain.to_owned());
    Ok((PreloadedProcess { run, domain, input, output: end, answers: Some(answers) }, Channel { frames, output }))
}

/// An interpreter that waits for what it is to do; with time to do it, it rehearses before.
fn waiting_run(path: &str, has_time: bool) -> Run {
    let shim = format!("{SHIMS}/python.py");
    let words = ["python3", "-S", &shim, if has_time { "--rehearse" } else { "--wait" }].map(str::to_owned).into();
    Run {
        id: RESIDENT,
        words,
        env: Vec::new(),
        path_prefix: String::new(),
        path: path.to_owned(),
        has_answers: false,
        wants_output: false,
        files: Vec::new(),
    }
}

/// Whose interpreters a version's instances may be clones of, where they may.
pub(super) fn domain(pool: &Shared, code: &Code, tree: &CodeLease) -> Option<String> {
    let program = Started::of(code, tree).ok().filter(|_| is_served(code))?;
    program.may_be_clone(pool, code, tree).then(|| code.namespace.to_string())
}

/// Whether an interpreter that was started before a version was known is as good as one of its own: nothing that it would
/// have read at its start is set, and the version brings no other one.
fn suits_a_clone(code: &Code, tree: &CodeLease) -> bool {
    let is_read_early = |name: &str| {
        name.starts_with("PYTHON") || name.starts_with("LC_") || matches!(name, "LANG" | "LANGUAGE" | "PATH")
    };
    let prefix = path_prefix(&code.path);
    let own = format!("{}/", code.path);
    let mut folders = prefix.split(':').filter_map(|folder| folder.strip_prefix(own.as_str()));
    !code.env.keys().any(|name| is_read_early(name))
        && !folders.any(|folder| tree.may_have(&format!("{folder}/python3")))
}

fn gone(error: faena_engine::AgentError) -> StartError {
    StartError::from(EngineError::Lost { step: "starting the process".to_owned(), message: error.to_string() })
}

/// An instance whose process does not answer yet: dropping this destroys it.
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

async fn create(
    pool: &Arc<Shared>,
    code: &Code,
    tree: CodeLease,
    mut wired: Option<&mut Wired>,
) -> Result<Instance, StartError> {
    let node = &pool.node;
    let kind = code.engine.unwrap_or(EngineKind::Sandbox);
    let none = || CallError::new(ErrorKind::Unavailable, Layer::Start, format!("this worker has no engine {kind}"));
    let engine = node.engines.get(&kind).ok_or_else(|| StartError::Failed(none()))?;
    let domain = wired.as_ref().filter(|wired| wired.may_be_clone).map(|wired| wired.resident.domain.clone());
    if let Some(spare) = pool.take_blank(code, domain.as_deref()) {
        let laid = instance::lay(spare.instance, tree.clone()).await;
        pool.restock(code, domain.as_deref());
        match laid {
            Ok(instance) => {
                let is_there = instance.agent.send(&ToAgent::Lease { until_ms: u64::MAX }, &[]).await.is_ok();
                let joined = match (spare.channel, wired.as_deref_mut()) {
                    (Some(channel), Some(wired)) if is_there => wired.take_over(channel),
                    _ => Ok(()),
                };
                if is_there && joined.is_ok() {
                    return Ok(instance);
                }
                debug!(?joined, "an instance that waited without code is gone");
                instance.guard.destroy().await;
                joined.map_err(node_failure)?;
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
        resident: wired.as_deref().and_then(Wired::offered),
    };
    let made = instance::create(Arc::clone(engine), spec, tree).await?;
    pool.restock(code, domain.as_deref());
    Ok(made)
}

/// What is executed: our shim around the user's handler, or the runtime's own program.
struct Started {
    words: Vec<String>,
    /// Whether it is the shim of Python.
    is_python: bool,
    /// Whether it opens the pipe of its calls by its name: Node cannot duplicate a descriptor.
    opens_calls: bool,
}

impl Started {
    fn may_be_clone(&self, pool: &Shared, code: &Code, tree: &CodeLease) -> bool {
        self.is_python && pool.preloads(code) && suits_a_clone(code, tree)
    }

    fn of(code: &Code, tree: &CodeLease) -> Result<Self, StartError> {
        let program = Program::of(&code.serving, &code.run, &code.path, tree);
        let place = match program.map_err(|error| refused(error.to_string()))? {
            Program::Run => {
                let command = Command::parse(&code.run).map_err(|error| refused(error.to_string()))?;
                return Ok(Self { words: command.words, is_python: false, opens_calls: false });
            }
            Program::Shim(place) => place,
        };
        let (program, shim): (&[&str], _) = match place.language {
            // -S: the shim finds packages itself, in half the time.
            Language::Python => (&["python3", "-S"], "python.py"),
            Language::Node => (&["node"], "node.mjs"),
        };
        let words = program.iter().map(|word| (*word).to_owned());
        let words = words.chain([format!("{SHIMS}/{shim}"), place.to_string()]).collect();
        let is_python = place.language == Language::Python;
        Ok(Self { words, is_python, opens_calls: !is_python })
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
    if code.serving.reuse == Reuse::Fork {
        env.insert("FAENA_FORK".to_owned(), "1".to_owned());
    }
    if code.serving.contract == Contract::Http {
        env.insert("PORT".to_owned(), http::PORT.to_string());
    }
    Run {
        id: RESIDENT,
        words,
        env: env.into_iter().collect(),
        path_prefix: path_prefix(&code.path),
        path: code.path.clone(),
        has_answers: false,
        wants_output: false,
        files: Vec::new(),
    }
}

/// Starts the process; one pipe takes all that it writes.
async fn launch(
    instance: &mut Instance,
    run: Run,
    PreloadedProcess { input, output, answers, .. }: &PreloadedProcess,
) -> Result<(), StartError> {
    let streams = [input, output, output].into_iter().chain(answers).map(AsFd::as_fd).collect::<Vec<_>>();
    let run = Run { has_answers: answers.is_some(), ..run };
    instance.agent.send(&ToAgent::Run(run), &streams).await.map_err(gone)?;
    match instance.agent.receive().await.map_err(gone)?.0 {
        ToMiniworker::Started { id: RESIDENT } => Ok(()),
        ToMiniworker::Refused { id: RESIDENT, message } => {
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

/// Waits until a process that speaks frames says that it may be called.
async fn greet(
    code: &Code,
    Frames { calls, mut answers }: Frames,
    output: Receiver,
    mut instance: Unfinished,
) -> Result<Begun, StartError> {
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
        return Err(refused(
            "reuse = \"fork\" needs a process that forks for each call; of the handlers, those in Python do",
        ));
    }
    Ok(Begun { instance: instance.finish(), protocol: Protocol::Frames(calls), answers: Some(answers), output, log })
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

/// What takes the output of a process until it may be called.
fn start_log() -> LogBuffer {
    LogBuffer::new(LogStream::Output, MAX_CALL_LOG)
}

/// Takes what is there, up to what an error tells; false at the end.
fn read_some(output: &Receiver, log: &mut LogBuffer) -> bool {
    let mut chunk = [0; 4096];
    loop {
        match output.try_read(&mut chunk) {
            Ok(0) => return false,
            Ok(read) => {
                log.push(capture::now(), &chunk[..read]);
                log.keep_end(BETWEEN);
            }
            Err(_) => return true,
        }
    }
}

/// A process that ended before it could be called. All of it is dead, so what it wrote has an end.
async fn ended(ended: Ended, output: &Receiver, mut log: LogBuffer, code: &Code) -> StartError {
    let rest = async { while output.readable().await.is_ok() && read_some(output, &mut log) {} };
    // A process that holds the pipe open all the same is not waited for.
    let _ = tokio::time::timeout(REST, rest).await;
    let when = (Layer::Start, " before it could be called");
    let mut error = result::fallen(ended.exit, ended.oom_kills, code.limits.memory, when);
    error.stderr_tail = result::tail(&String::from_utf8_lossy(log.bytes()), STDERR_TAIL).to_owned();
    StartError::Failed(error)
}

/// What a server does that does not listen yet where it should.
struct Watch {
    begun: Instant,
    surveyed: Instant,
    cpu_us: u64,
    /// When it last used CPU time, as far as that was seen.
    worked: Instant,
    /// Since when something listens elsewhere.
    elsewhere: Option<Instant>,
}

impl Watch {
    fn new() -> Self {
        let now = Instant::now();
        Self { begun: now, surveyed: now, cpu_us: 0, worked: now, elsewhere: None }
    }

    /// Takes a survey in; the end of a sentence that begins with "nothing listens", where waiting longer makes no sense.
    fn judge(&mut self, listening: &[String], cpu_us: u64, most: Duration) -> Option<String> {
        let now = Instant::now();
        self.surveyed = now;
        if cpu_us != self.cpu_us {
            (self.cpu_us, self.worked) = (cpu_us, now);
        }
        if listening.is_empty() {
            self.elsewhere = None;
        } else if now - *self.elsewhere.get_or_insert(now) >= ELSEWHERE {
            let at = listening.join(", ");
            return Some(format!(
                "; the process listens on {at} instead: it has to take the port from the variable PORT"
            ));
        }
        if now - self.worked >= CALM {
            let calm = CALM.as_secs();
            return Some(format!(", and the process has used no CPU for {calm} s: it waits for something else"));
        }
        (now - self.begun >= most).then(|| format!(" after {} ms", most.as_millis()))
    }
}

/// Waits until something listens on the port of a process that speaks HTTP.
async fn listen(
    (pool, code): (&Shared, &Code),
    output: Receiver,
    mut instance: Unfinished,
) -> Result<Begun, StartError> {
    let mut log = start_log();
    let mut watch = Watch::new();
    // The reason reaches a call whose own time is as long.
    let most = pool.config.start_timeout.min(code.limits.timeout.duration().mul_f64(0.95));
    loop {
        let is_asked = watch.surveyed.elapsed() >= SURVEY;
        let ask = if is_asked { ToAgent::Survey } else { ToAgent::Connect { port: http::PORT } };
        instance.agent.send(&ask, &[]).await.map_err(gone)?;
        match instance.agent.receive().await.map_err(gone)? {
            (ToMiniworker::Connected { error: None }, _) if !is_asked => break,
            (ToMiniworker::Connected { error: Some(_) }, _) if !is_asked => tokio::time::sleep(TRY_AGAIN).await,
            (ToMiniworker::Surveyed { listening, cpu_us }, _) if is_asked => {
                if let Some(why) = watch.judge(&listening, cpu_us, most) {
                    read_some(&output, &mut log);
                    let message = format!("nothing listens on 127.0.0.1:{} ($PORT){why}", http::PORT);
                    let mut error = CallError::new(ErrorKind::Start, Layer::Start, message);
                    error.stderr_tail = result::tail(&String::from_utf8_lossy(log.bytes()), STDERR_TAIL).to_owned();
                    return Err(StartError::Failed(error));
                }
            }
            (ToMiniworker::Ended(left), _) => return Err(ended(left, &output, log, code).await),
            _ => return Err(nonsense()),
        }
        read_some(&output, &mut log);
    }
    Ok(Begun {
        instance: instance.finish(),
        protocol: Protocol::Http(http::Client::default()),
        answers: None,
        output,
        log,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(60);

    fn ago(span: Duration) -> Instant {
        Instant::now().checked_sub(span).expect("the machine is up for longer")
    }

    #[test]
    fn a_server_that_listens_elsewhere_is_told_where() {
        let mut watch = Watch { elsewhere: Some(ago(ELSEWHERE)), ..Watch::new() };
        let why = watch.judge(&["127.0.0.1:3000".to_owned()], 1, MOST).expect("a reason");
        assert!(why.contains("127.0.0.1:3000") && why.contains("PORT"), "{why}");
        assert_eq!(Watch::new().judge(&["127.0.0.1:3000".to_owned()], 1, MOST), None);
    }

    #[test]
    fn a_server_that_does_nothing_is_not_waited_for() {
        let mut watch = Watch { worked: ago(CALM), cpu_us: 5, ..Watch::new() };
        assert!(watch.judge(&[], 5, MOST).expect("a reason").contains("no CPU"));
        let mut watch = Watch { worked: ago(CALM), cpu_us: 5, ..Watch::new() };
        assert_eq!(watch.judge(&[], 6, MOST), None, "it works");
        let mut watch = Watch { begun: ago(MOST), ..Watch::new() };
        assert_eq!(watch.judge(&[], 6, MOST).as_deref(), Some(" after 60000 ms"));
    }
}
