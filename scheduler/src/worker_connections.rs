//! The direct path to workers in other processes: each of our threads has a connection of its own to each worker, so that
//! a call crosses no thread on its way there and back.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use bytes::Bytes;
use faena_db_client::KnownNodes;
use faena_domain::{CallError, CallNum, EngineKind, ErrorKind, Layer, Owner};
use faena_invoker::remote::{Incoming, PartSender, Streams};
use faena_invoker::{Caller, Invocation, Invoker, RequestBody, StreamedAnswer};
use faena_protocol::direct::InvocationEnd;
use faena_protocol::direct::wire::{self, AnswerHead, CallHead, RequestStream, WorkerMessage};
use faena_protocol::node::{EngineInfo, NodeInfo};
use faena_protocol::records::Code;
use faena_transport::{Endpoint, LinkEvent, LinkHandle, UnopenedLink};
use http_body::Body;
use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use crate::fleet::NodeTerms;

/// Versions that a connection has numbers for; beyond it all are forgotten.
const NUMBERED: usize = 4096;
/// How much later than its deadline a call is waited for that no worker tells the end of.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often such calls are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// One slot, as parts of slots are counted: calls of a version share an instance, and each has its part of that slot.
const SLOT: u32 = 1 << 16;

/// The part of a slot that a call of a version has.
fn slot_part(code: &Code) -> u32 {
    (SLOT / code.serving.parallel().max(1)).max(1)
}

/// A call that a worker has.
struct Pending {
    slot_part: u32,
    engine: EngineKind,
    /// When its end should have been told; none once its answer is a stream, which ends with the connection at the latest.
    until: Option<Instant>,
    caller: Box<dyn Caller>,
    streams: Streams,
    /// The task that sends its request's body.
    _upload: Option<AbortOnDropHandle<()>>,
}

/// Sends parts of streams to a worker.
#[derive(Clone)]
struct PartsToWorker(LinkHandle);

impl PartSender for PartsToWorker {
    async fn send(&self, message: Bytes) -> bool {
        self.0.send(message).await
    }
}

/// What is on its way over one connection.
#[derive(Default)]
struct Lines {
    calls: HashMap<CallNum, Pending>,
    /// Numbers of versions, by the address of their code; the code is held, so that no other gets that address.
    numbers: HashMap<usize, (u32, Arc<Code>)>,
    next: u32,
}

/// One connection of one thread to one worker.
struct Wire {
    worker: String,
    link: LinkHandle,
    is_up: AtomicBool,
    lines: Mutex<Lines>,
    direct: Arc<AtomicU32>,
}

/// One worker.
struct Remote {
    /// The run of it that is connected.
    owner: Owner,
    endpoints: Vec<Endpoint>,
    engines: Vec<EngineKind>,
    slots: u32,
    /// It takes no more calls; those that it has may end.
    is_leaving: bool,
    /// What an administrator says of its node; none before db has told.
    terms: Option<NodeTerms>,
    /// What this api's direct calls have of its slots, in parts of [`SLOT`].
    direct: Arc<AtomicU32>,
    /// Slots that it holds by way of the scheduler.
    scheduled: AtomicU32,
    wires: Arc<RwLock<HashMap<ThreadId, Arc<Wire>>>>,
    tasks: Vec<JoinHandle<()>>,
}

/// All workers that take calls directly, by their names.
#[derive(Clone, Default)]
pub struct WorkerConnections {
    remotes: Arc<RwLock<HashMap<String, Remote>>>,
    known: Arc<RwLock<Arc<KnownNodes>>>,
    threads: Arc<Vec<Handle>>,
}

impl std::fmt::Debug for WorkerConnections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WorkerConnections")
    }
}

fn kinds(engines: &[EngineInfo]) -> Vec<EngineKind> {
    engines.iter().map(|info| info.engine).collect()
}

impl Drop for Remote {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        for wire in self.wires.write().drain() {
            wire.1.lose_all("it has left");
        }
    }
}

impl WorkerConnections {
    /// Connections of these threads.
    pub fn new(threads: Vec<Handle>) -> Self {
        Self { remotes: Arc::default(), known: Arc::default(), threads: Arc::new(threads) }
    }

    /// Takes over what an administrator says of nodes.
    pub(crate) fn administer(&self, known: &Arc<KnownNodes>) {
        *self.known.write() = Arc::clone(known);
        for remote in self.remotes.write().values_mut() {
            remote.terms = NodeTerms::of(known, &remote.owner);
        }
    }

    /// A worker takes calls from now on.
    pub fn open(&self, node: &NodeInfo) {
        let endpoints: Vec<Endpoint> =
            node.direct.iter().filter_map(|path| Endpoint::new(PathBuf::from(path)).ok()).collect();
        if endpoints.is_empty() {
            return;
        }
        let worker = &node.owner.worker;
        let mut remotes = self.remotes.write();
        if let Some(known) = remotes.get_mut(worker).filter(|known| known.endpoints == endpoints) {
            // A run after the one that we knew listens where that did, and our connections find it.
            (known.slots, known.is_leaving) = (node.slots, false);
            known.engines = kinds(&node.engines);
            known.terms = NodeTerms::of(&self.known.read(), &node.owner);
            known.owner = node.owner.clone();
            return;
        }
        let (wires, direct) = (Arc::default(), Arc::new(AtomicU32::new(0)));
        let connect = |(number, thread): (usize, &Handle)| {
            let endpoint = endpoints[number % endpoints.len()].clone();
            thread.spawn(keep(endpoint, worker.clone(), Arc::clone(&wires), Arc::clone(&direct)))
        };
        let tasks = self.threads.iter().enumerate().map(connect).collect();
        let (engines, slots) = (kinds(&node.engines), node.slots);
        let terms = NodeTerms::of(&self.known.read(), &node.owner);
        let owner = node.owner.clone();
        let (is_leaving, scheduled) = (false, AtomicU32::new(0));
        let remote = Remote { owner, endpoints, engines, slots, is_leaving, terms, direct, scheduled, wires, tasks };
        remotes.insert(worker.clone(), remote);
    }

    fn change(&self, worker: &str, change: impl FnOnce(&mut Remote)) {
        let mut remotes = self.remotes.write();
        remotes.get_mut(worker).map(change);
    }

    /// A worker takes no more calls; those that it has may end.
    pub fn leave(&self, worker: &str) {
        self.change(worker, |remote| remote.is_leaving = true);
    }

    /// A worker makes instances with these from now on.
    pub fn engines(&self, worker: &str, engines: &[EngineInfo]) {
        self.change(worker, |remote| remote.engines = kinds(engines));
    }

    /// A worker holds so many slots by way of the scheduler.
    pub(crate) fn scheduled(&self, worker: &str, slots: u32) {
        if let Some(remote) = self.remotes.read().get(worker) {
            remote.scheduled.store(slots, Ordering::Relaxed);
        }
    }

    /// A worker is gone, and its calls with it.
    pub fn close(&self, worker: &str) {
        let gone = self.remotes.write().remove(worker);
        // Clients of its calls are told outside of the lock.
        drop(gone);
    }

    /// The connection of this thread to the worker that a version's calls go to: the same one while that has slots, so that
    /// its instances are warm there.
    fn choose(&self, code: &Code) -> Option<Arc<Wire>> {
        let (engine, thread) = (code.engine?, std::thread::current().id());
        let remotes = self.remotes.read();
        let able = remotes.iter().filter_map(|(name, remote)| {
            let takes_work =
                remote.terms.as_ref().is_some_and(|terms| terms.takes_work() && code.is_permitted_on(&terms.labels));
            let offers = !remote.is_leaving && takes_work && remote.engines.contains(&engine);
            let wires = remote.wires.read();
            let wire = wires.get(&thread).filter(|wire| offers && wire.is_up.load(Ordering::Acquire))?;
            let direct = remote.direct.load(Ordering::Relaxed).div_ceil(SLOT);
            let busy = direct + remote.scheduled.load(Ordering::Relaxed);
            Some(((busy >= remote.slots, weight(name, code)), Arc::clone(wire)))
        });
        able.min_by_key(|(order, _)| *order).map(|(_, wire)| wire)
    }
}

/// Rendezvous hashing: each function has an order of workers of its own, which changes only for those of a worker that
/// comes or goes (Thaler and Ravishankar 1998).
fn weight(worker: &str, code: &Code) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (worker, &code.namespace, &code.function).hash(&mut hasher);
    hasher.finish()
}

impl Invoker for WorkerConnections {
    fn offers(&self, code: &Code) -> bool {
        self.choose(code).is_some()
    }

    fn submit(&self, call: Invocation) -> Result<(), Box<Invocation>> {
        match self.choose(&call.code) {
            Some(wire) => wire.send(call),
            None => Err(Box::new(call)),
        }
    }

    fn cancel(&self, num: CallNum) -> bool {
        let remotes = self.remotes.read();
        remotes.values().any(|remote| {
            let wires = remote.wires.read();
            wires.values().any(|wire| wire.cancel(num))
        })
    }
}

impl Wire {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock()
    }

    fn send(&self, mut call: Invocation) -> Result<(), Box<Invocation>> {
        let mut lines = self.lines();
        let Ok(code) = self.number(&mut lines, &call.code) else { return Err(Box::new(call)) };
        let head = head(&call, code);
        let bodies = [&call.params[..], call.body.whole().map(|body| &body[..]).unwrap_or_default()];
        if !wire::call(&head, &bodies).is_ok_and(|bytes| self.link.try_send(bytes)) {
            return Err(Box::new(call));
        }
        let slot_part = slot_part(&call.code);
        self.direct.fetch_add(slot_part, Ordering::Relaxed);
        let streams = Streams::default();
        let upload = match std::mem::take(&mut call.body) {
            RequestBody::Stream(body) | RequestBody::Upgrade(body) => {
                let (outgoing, to, num) = (streams.outgoing.clone(), PartsToWorker(self.link.clone()), call.num);
                let sending = tokio::spawn(async move { outgoing.send(num, body, &to).await });
                Some(AbortOnDropHandle::new(sending))
            }
            RequestBody::None | RequestBody::Whole(_) => None,
        };
        let pending = Pending {
            slot_part,
            engine: call.code.engine.unwrap_or(EngineKind::Sandbox),
            until: Some(call.deadline + PATIENCE),
            caller: call.caller,
            streams,
            _upload: upload,
        };
        lines.calls.insert(call.num, pending);
        Ok(())
    }

    /// The number of a version on this connection; one that has none is named first.
    fn number(&self, lines: &mut Lines, code: &Arc<Code>) -> Result<u32, wire::WireError> {
        let place = Arc::as_ptr(code) as usize;
        if let Some((number, _)) = lines.numbers.get(&place) {
            return Ok(*number);
        }
        if lines.numbers.len() >= NUMBERED {
            lines.numbers.clear();
            self.link.try_send(wire::forget()?);
        }
        lines.next += 1;
        let number = lines.next;
        if !self.link.try_send(wire::code(number, code)?) {
            return Err(wire::WireError::Unknown);
        }
        lines.numbers.insert(place, (number, Arc::clone(code)));
        Ok(number)
    }

    fn cancel(&self, num: CallNum) -> bool {
        // Its end is told by the worker, as of any other call.
        self.lines().calls.contains_key(&num) && wire::cancel(num).is_ok_and(|bytes| self.link.try_send(bytes))
    }

    fn heard(&self, bytes: &Bytes) {
        match WorkerMessage::decode(bytes) {
            Ok(WorkerMessage::End(num, end)) => {
                let pending = self.lines().calls.remove(&num);
                if let Some(pending) = pending {
                    self.finish(pending, *end);
                }
            }
            Ok(WorkerMessage::Interim(num, head)) => {
                if let Some(pending) = self.lines().calls.get_mut(&num) {
                    pending.caller.informs(head);
                }
            }
            Ok(WorkerMessage::Answer(answer)) => self.answer(*answer),
            Ok(WorkerMessage::Part(num, part)) => {
                if let Some(pending) = self.lines().calls.get_mut(&num) {
                    pending.streams.take(part);
                }
            }
            Err(error) => warn!(%error, worker = self.worker, "a message of a worker was dropped"),
        }
    }

    /// The answer of a call begins.
    fn answer(&self, answer: AnswerHead) {
        let mut lines = self.lines();
        let Some(pending) = lines.calls.get_mut(&answer.num) else { return };
        let AnswerHead { num, head, start_ms, run_ms, length } = answer;
        let (incoming, body) = Incoming::begin(num, length, PartsToWorker(self.link.clone()));
        pending.streams.incoming = Some(incoming);
        pending.until = None;
        let draining = pending.streams.draining.clone();
        pending.caller.streams(StreamedAnswer { head, start_ms, run_ms, body, draining });
    }

    fn finish(&self, pending: Pending, end: InvocationEnd) {
        self.direct.fetch_sub(pending.slot_part, Ordering::Relaxed);
        pending.caller.ended(end);
    }

    fn lose(&self, pending: Pending, why: &str) {
        let message = format!("the worker {} was lost with the call: {why}", self.worker);
        let error = CallError::new(ErrorKind::Infrastructure, Layer::Run, message);
        let end = InvocationEnd::unrun(error, &self.worker, pending.engine);
        self.finish(pending, end);
    }

    /// Whatever was on its way is lost; a new connection knows no numbers.
    fn lose_all(&self, why: &str) {
        self.is_up.store(false, Ordering::Release);
        let lines = std::mem::take(&mut *self.lines());
        for pending in lines.calls.into_values() {
            self.lose(pending, why);
        }
    }

    /// Calls whose end should have been told long ago.
    fn lose_late(&self) {
        let now = Instant::now();
        let late: Vec<Pending> = {
            let mut lines = self.lines();
            lines
                .calls
                .extract_if(|_, pending| pending.until.is_some_and(|until| until < now))
                .map(|(_, pending)| pending)
                .collect()
        };
        for pending in late {
            self.lose(pending, "it did not tell its end");
        }
    }
}

/// The head of a call, as a worker gets it.
fn head(call: &Invocation, code: u32) -> CallHead {
    let left = call.deadline.saturating_duration_since(Instant::now());
    let stream = match &call.body {
        RequestBody::None | RequestBody::Whole(_) => None,
        RequestBody::Stream(body) => Some(RequestStream::Body(body.size_hint().exact())),
        RequestBody::Upgrade(_) => Some(RequestStream::Upgrade),
    };
    CallHead {
        num: call.num,
        code,
        timeout_ms: call.timeout_ms,
        left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        deadline_unix_ms: call.deadline_unix_ms,
        traceparent: call.traceparent.to_string(),
        body: call.body.whole().map(Bytes::len),
        stream,
        request: Arc::clone(&call.request),
    }
}

/// Keeps one thread's connection to a worker, until it is aborted.
async fn keep(
    endpoint: Endpoint,
    worker: String,
    wires: Arc<RwLock<HashMap<ThreadId, Arc<Wire>>>>,
    direct: Arc<AtomicU32>,
) {
    let (handle, link) = UnopenedLink::new();
    let wire = Arc::new(Wire { worker, link: handle, is_up: AtomicBool::new(false), lines: Mutex::default(), direct });
    wires.write().insert(std::thread::current().id(), Arc::clone(&wire));
    let heard = Arc::clone(&wire);
    let _open = link.open(endpoint, move |event| match event {
        LinkEvent::Message(bytes) => heard.heard(&bytes),
        LinkEvent::Up => heard.is_up.store(true, Ordering::Release),
        LinkEvent::Down => {
            debug!(worker = heard.worker, "the direct path to a worker is down");
            heard.lose_all("its connection ended");
        }
    });
    let mut look = tokio::time::interval(LOOK);
    loop {
        look.tick().await;
        wire.lose_late();
    }
}
