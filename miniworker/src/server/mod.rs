//! An instance whose process answers many calls.
//!
//! A call is written to its process at once, on the task that hands it over; everything else is done by one task that owns
//! the instance: it reads answers, watches deadlines and leases, keeps what the process writes, and destroys it all when
//! the process ends or its owner retires it. So a client that goes away takes no call with it.

mod answer;
mod http;
mod stream;
mod task;
mod traffic;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use faena_domain::CallNum;
use faena_domain::limits::MAX_CALL_LOG;
use faena_domain::log::{LogBuffer, LogStream};
use faena_engine::{Instance, InstanceHandle, Usage};
use faena_instance_protocol::handler::{Call, HEADER, Header, Kind, LENGTHS};
use faena_invoker::{PipeReceiver, StreamedAnswer};
use faena_protocol::direct::HttpHead;
use faena_protocol::records::Code;
use parking_lot::{Mutex, MutexGuard};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::Node;
use crate::call::InstanceCall;
use crate::code::CodeLease;
use crate::egress::{Egress, Outlet};
use crate::live::{self, SharedBuffer};
use crate::owner::InstanceOwner;
use http::Exchange;
pub(crate) use http::{Client as HttpClient, PORT};
pub use stream::StreamBounds;
use stream::StreamFailure;
pub(crate) use task::MAX_LOG_BETWEEN;
use task::Task;
use traffic::{InFlight, Traffic, flush, widen};

/// What is read of answers at once, and what a pipe holds where nobody has it hold more (pipe(7)).
const CHUNK: usize = 64 * 1024;
/// How long the log of a call stays open that its server answered with a failure: frameworks answer before they write the
/// traceback, and it belongs to this call.
const TRACEBACK: Duration = Duration::from_millis(20);
/// How much later than `stream_max` a stream is ended by its instance's task, should it still be there.
const AFTER_STREAM: Duration = Duration::from_secs(5);
/// Orders that wait for an instance's task.
const ORDERS: usize = 256;

/// What an instance's task is told.
enum Order {
    /// Begin a call whose lease the agent has to hear of first.
    Begin(Box<InstanceCall>),
    /// End a call, whether or not its client waits.
    Cancel(CallNum),
    /// A call over HTTP has ended.
    Answered(u64, Result<http::Answer, http::ExchangeError>),
    /// The answer of a handler is to stop, and why; without a reason its client may leave.
    StreamStopped(u64, Option<StreamFailure>),
}

/// How calls reach the process.
pub(crate) enum Protocol {
    /// Frames on its standard input.
    Frames(Sender),
    /// HTTP on a port of its own loopback.
    Http(http::Client),
}

/// An instance that answers many calls.
pub struct ServerInstance {
    owner: Arc<dyn InstanceOwner>,
    code: Arc<Code>,
    node: Arc<Node>,
    /// What counts what passes between it and the world, where it has egress.
    outlet: Option<Arc<Outlet>>,
    protocol: Protocol,
    traffic: Mutex<Traffic>,
    guard: Mutex<Option<Box<dyn InstanceHandle>>>,
    /// What its process has written while calls ran that have not ended.
    log: SharedBuffer,
    orders: mpsc::Sender<Order>,
    /// Has its task look again at what is to be written and until when.
    look_again: Notify,
    retired: CancellationToken,
    gone: CancellationToken,
}

impl std::fmt::Debug for ServerInstance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerInstance").field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// The parts of an instance whose process has said that it may be called.
pub(crate) struct ServerParts {
    pub(crate) instance: Instance,
    pub(crate) protocol: Protocol,
    /// Where its answers come from, if it speaks frames.
    pub(crate) answers: Option<Receiver>,
    pub(crate) output: Receiver,
    /// What it wrote until then.
    pub(crate) log: LogBuffer,
}

impl ServerInstance {
    /// Takes over an instance; its task lives on the runtime that this is called on.
    pub(crate) fn spawn(
        (owner, node): (Arc<dyn InstanceOwner>, Arc<Node>),
        (code, tree): (Arc<Code>, CodeLease),
        begun: ServerParts,
        egress: Option<Egress>,
    ) -> Arc<Self> {
        let (orders, receiver) = mpsc::channel(ORDERS);
        let server = Arc::new(Self {
            owner,
            code,
            node,
            outlet: egress.as_ref().map(|egress| Arc::clone(egress.outlet())),
            protocol: begun.protocol,
            traffic: Mutex::default(),
            guard: Mutex::new(Some(begun.instance.guard)),
            log: SharedBuffer::new(LogStream::Output, MAX_CALL_LOG),
            orders,
            look_again: Notify::new(),
            retired: CancellationToken::new(),
            gone: CancellationToken::new(),
        });
        let task = Task {
            server: Arc::clone(&server),
            agent: begun.instance.agent,
            answers: begun.answers,
            output: Some(begun.output),
            between: begun.log,
            is_ending: false,
            egress,
            tree,
            orders: receiver,
            incoming: BytesMut::new(),
            is_widened: false,
            lease_ms: u64::MAX,
            is_given_up: false,
            is_spent: false,
            used: None,
            usage: Usage::default(),
            unroutable: 0,
            given_up: HashSet::new(),
        };
        tokio::spawn(task.run());
        server
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock()
    }

    fn log(&self) -> MutexGuard<'_, LogBuffer> {
        self.log.lock()
    }

    /// What was written until now while this call ran, as it is stored; none where the call does not run here. The calls
    /// of an instance share its output, which is shown under the oldest of them alone.
    pub fn log_of(&self, num: CallNum) -> Option<String> {
        let is_oldest = || {
            let traffic = self.traffic();
            traffic.in_flight.iter().min_by_key(|flight| flight.id).is_some_and(|flight| flight.call.num == num)
        };
        if !is_oldest() {
            return None;
        }
        let copy = self.log().whole_lines();
        // It may have ended meanwhile, and the next call have written.
        is_oldest().then(|| live::stored(&[copy]))
    }

    /// Whether it takes calls.
    pub fn is_open(&self) -> bool {
        !self.traffic().closed
    }

    /// Begins a call.
    ///
    /// # Errors
    /// The call itself, where the instance takes no more.
    pub fn begin(self: &Arc<Self>, call: Box<InstanceCall>) -> Result<(), Box<InstanceCall>> {
        if call.lease.is_none() {
            return self.write(call);
        }
        // A task that is about to end takes no orders any more.
        if !self.is_open() {
            return Err(call);
        }
        // The agent has to know until when the call may run before it runs.
        self.orders.try_send(Order::Begin(call)).map_err(|error| match error.into_inner() {
            Order::Begin(call) => call,
            Order::Cancel(_) | Order::Answered(..) | Order::StreamStopped(..) => {
                unreachable!("what was refused is what was sent")
            }
        })
    }

    fn write(self: &Arc<Self>, mut call: Box<InstanceCall>) -> Result<(), Box<InstanceCall>> {
        let mut traffic = self.traffic();
        if traffic.closed {
            return Err(call);
        }
        if traffic.frozen {
            if !self.with_guard(|guard| guard.thaw()) {
                traffic.closed = true;
                return Err(call);
            }
            traffic.frozen = false;
        }
        call.begin_attempt();
        traffic.next += 1;
        let id = traffic.next;
        let (began, deadline) = (Instant::now(), call.deadline);
        if let Some(started) = call.started.take() {
            started();
        }
        let depth = call.request.as_ref().map_or(0, |request| request.depth());
        let egress = self.outlet.as_ref().map(|outlet| outlet.begin(deadline, depth));
        match &self.protocol {
            Protocol::Frames(calls) => {
                let written = self.send(calls, &mut traffic, id, &call);
                traffic.in_flight.push(InFlight::new(id, began, call, egress, None));
                if !written {
                    drop(traffic);
                    self.look_again.notify_one();
                    return Ok(());
                }
            }
            Protocol::Http(client) => {
                let exchange = Exchange::new(client, &self.code, &mut call);
                let running = tokio::spawn(Arc::clone(self).exchange(id, exchange));
                let exchange = Some(AbortOnDropHandle::new(running));
                traffic.in_flight.push(InFlight::new(id, began, call, egress, exchange));
            }
        }
        let is_earlier = traffic.armed.is_none_or(|armed| deadline < armed);
        drop(traffic);
        if is_earlier {
            self.look_again.notify_one();
        }
        Ok(())
    }

    /// Exchanges a call with a process that speaks HTTP, and tells the task how that went.
    async fn exchange(self: Arc<Self>, id: u64, exchange: Exchange) {
        let begin = |head, body| self.begin_stream(id, head, body) && self.set_streaming(id);
        let server = Arc::clone(&self);
        let inform = move |head| server.inform(id, head);
        let answer = exchange.run(self.node.streams, inform, begin).await;
        if http::is_failure(&answer) {
            // Frameworks write the traceback behind the answer.
            tokio::time::sleep(TRACEBACK).await;
        }
        // The task is gone only when the call has been ended.
        let _ = self.orders.send(Order::Answered(id, answer)).await;
    }

    /// Changes a call in flight; none if it has ended.
    fn with_flight<T>(&self, id: u64, change: impl FnOnce(&mut InFlight) -> T) -> Option<T> {
        self.traffic().in_flight.iter_mut().find(|flight| flight.id == id).map(change)
    }

    /// Tells the caller that the answer has begun; from now on the bounds of streams apply. False if the call has ended.
    fn begin_stream(&self, id: u64, head: HttpHead, body: PipeReceiver) -> bool {
        let begun = self.with_flight(id, |flight| {
            flight.call.deadline = Instant::now() + self.node.streams.max + AFTER_STREAM;
            flight.egress.iter().for_each(|egress| egress.extend(flight.call.deadline));
            let answer = StreamedAnswer {
                head,
                start_ms: flight.began.saturating_duration_since(flight.call.since).into(),
                run_ms: flight.began.elapsed().into(),
                body,
                draining: self.node.draining.clone(),
            };
            flight.call.stream(answer);
        });
        begun.is_some()
    }

    /// Passes an interim answer to the caller.
    fn inform(&self, id: u64, head: HttpHead) {
        self.with_flight(id, |flight| flight.call.inform(head));
    }

    /// Notes that the answer of a server is a stream, whose exchange reports its end.
    fn set_streaming(&self, id: u64) -> bool {
        self.with_flight(id, |flight| flight.is_streaming = true).is_some()
    }

    /// Sends the process a frame about one of its streams.
    fn tell_of_stream(&self, id: u64, kind: Kind, body: &[u8]) {
        let Protocol::Frames(calls) = &self.protocol else { return };
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let frame = [&Header { kind, id, length }.encode()[..], body].concat();
        let mut traffic = self.traffic();
        traffic.unsent.push_back(frame.into());
        if !flush(calls, &mut traffic) {
            drop(traffic);
            self.look_again.notify_one();
        }
    }

    /// Writes a call's frame; false where the pipe did not take all of it.
    fn send(&self, calls: &Sender, traffic: &mut Traffic, id: u64, call: &InstanceCall) -> bool {
        let mut context = Vec::with_capacity(512);
        call.context(&self.code, &mut context);
        let (params, body) = (call.params.clone(), call.body.whole().cloned().unwrap_or_default());
        let carried = params.len() + body.len();
        let is_small = carried <= CHUNK;
        let mut frame = Vec::with_capacity(HEADER + LENGTHS + context.len() + if is_small { carried } else { 0 });
        Call { context: &context, params: &params, body: &body }.begin(id, &mut frame);
        if is_small {
            frame.extend_from_slice(&params);
            frame.extend_from_slice(&body);
            traffic.unsent.push_back(frame.into());
        } else {
            let parts = [frame.into(), params, body];
            traffic.unsent.extend(parts.into_iter().filter(|part| !part.is_empty()));
            if !std::mem::replace(&mut traffic.is_widened, true) {
                widen(calls);
            }
        }
        flush(calls, traffic)
    }

    fn with_guard(&self, act: impl FnOnce(&dyn InstanceHandle) -> io::Result<()>) -> bool {
        let guard = self.guard.lock();
        match guard.as_deref().map(act) {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                debug!(%error, "an instance cannot be frozen or thawed");
                false
            }
            None => false,
        }
    }

    /// Freezes it unless a call has come meanwhile; true where it is frozen.
    pub fn freeze(&self) -> bool {
        let mut traffic = self.traffic();
        if traffic.in_flight.is_empty() && !traffic.is_renewing && !traffic.closed && !traffic.frozen {
            if let Protocol::Http(client) = &self.protocol {
                client.close_idle();
            }
            traffic.frozen = self.with_guard(|guard| guard.freeze());
        }
        traffic.frozen
    }

    fn usage(&self) -> Usage {
        let guard = self.guard.lock();
        guard.as_deref().map(InstanceHandle::usage).unwrap_or_default()
    }

    fn unroutable(&self) -> Option<u64> {
        self.guard.lock().as_deref()?.network()?.unroutable()
    }

    /// What it holds of memory, in bytes.
    pub fn memory(&self) -> Option<u64> {
        self.guard.lock().as_deref().and_then(InstanceHandle::memory)
    }

    /// Ends a call, which may still be on its way in; false where it is not known to be here.
    pub fn cancel(&self, num: CallNum) -> bool {
        let is_here = self.traffic().in_flight.iter().any(|flight| flight.call.num == num);
        // Orders are taken in turn, so a call that waits among them has begun when this is taken.
        self.orders.try_send(Order::Cancel(num)).is_ok() && is_here
    }

    /// Has it destroyed when its last call has ended.
    pub fn retire(&self) {
        self.traffic().closed = true;
        self.retired.cancel();
    }

    /// Gives up the calls that it works at: their clients learn that no end will be told.
    pub fn cut(&self) {
        self.traffic().in_flight.clear();
        self.look_again.notify_one();
    }

    /// Returns when nothing of it is left.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

impl ServerInstance {
    /// Returns when the lease that the agent knows is not that of the calls any more.
    async fn lease_changed(&self, known_ms: u64) {
        let mut leases: Vec<_> = {
            let traffic = self.traffic();
            traffic.in_flight.iter().filter_map(|flight| flight.call.lease.clone()).collect()
        };
        let until = leases.iter_mut().map(|lease| *lease.borrow_and_update()).min().unwrap_or(u64::MAX);
        if until != known_ms {
            return;
        }
        let Some(first) = leases.first_mut() else { return std::future::pending().await };
        // All of a worker's leases are renewed together; one that was given up ends with its call.
        if first.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn writable(&self) {
        match &self.protocol {
            // A failure shows when it is read from.
            Protocol::Frames(calls) => drop(calls.writable().await),
            Protocol::Http(_) => std::future::pending().await,
        }
    }

    fn flush(&self) -> bool {
        match &self.protocol {
            Protocol::Frames(calls) => flush(calls, &mut self.traffic()),
            Protocol::Http(_) => true,
        }
    }
}
