//! An instance whose process answers many calls.
//!
//! A call is written to its process at once, on the task that hands it over; everything else is done by one task that owns
//! the instance: it reads answers, watches deadlines and leases, keeps what the process writes, and destroys it all when
//! the process ends or nobody wants it any more. So a client that goes away takes no call with it.

mod renewal;
mod task;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use faena_domain::CallNum;
use faena_domain::limits::MAX_CALL_LOG;
use faena_domain::log::{LogBuffer, LogStream};
use faena_engine::{Instance, InstanceHandle, Usage};
use faena_instance_protocol::handler::{Call, HEADER, LENGTHS};
use faena_protocol::records::Code;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::call::{PoolCall, PoolEnd};
use super::state::Key;
use super::{Shared, http};
use crate::code::CodeLease;
use crate::egress::Egress;
use crate::live::{self, SharedBuffer};
pub(super) use task::BETWEEN;
use task::Task;

/// What is read of answers at once, and what a pipe holds where nobody has it hold more (pipe(7)).
const CHUNK: usize = 64 * 1024;
/// What a pipe holds through which large frames have come (pipe(7): the most that an ordinary user may have).
const WIDE: usize = 1024 * 1024;
/// How long the log of a call stays open that its server answered with a failure: frameworks answer before they write the
/// traceback, and it belongs to this call.
const TRACEBACK: Duration = Duration::from_millis(20);
/// Orders that wait for an instance's task.
const ORDERS: usize = 256;

/// A call that an instance works at.
struct InFlight {
    id: u64,
    began: Instant,
    call: Box<PoolCall>,
}

/// What the tasks that hand calls over share with the instance's task.
#[derive(Default)]
struct Lines {
    in_flight: Vec<InFlight>,
    /// What the pipe did not take at once.
    unsent: VecDeque<Bytes>,
    next: u64,
    frozen: bool,
    /// Its pipe holds more than a pipe does at first.
    is_widened: bool,
    /// It takes no more calls.
    closed: bool,
    /// It listens no more: what is under way will not be answered.
    is_deaf: bool,
    /// The earliest deadline that its task waits for.
    armed: Option<Instant>,
}

/// What an instance's task is told.
enum Order {
    /// Begin a call whose lease the agent has to hear of first.
    Begin(Box<PoolCall>),
    /// End a call, whether or not its client waits.
    Cancel(CallNum),
    /// A call over HTTP has ended.
    Answered(u64, Result<http::Answer, http::Failure>),
}

/// How calls reach the process.
pub(super) enum Protocol {
    /// Frames on its standard input.
    Frames(Sender),
    /// HTTP on a port of its own loopback.
    Http(http::Client),
}

/// An instance that answers many calls.
pub(crate) struct Served {
    id: OnceLock<u64>,
    key: Arc<Key>,
    code: Arc<Code>,
    pool: Arc<Shared>,
    protocol: Protocol,
    lines: Mutex<Lines>,
    guard: Mutex<Option<Box<dyn InstanceHandle>>>,
    /// What its process has written while calls ran that have not ended.
    log: SharedBuffer,
    orders: mpsc::Sender<Order>,
    /// Has its task look again at what is to be written and until when.
    look_again: Notify,
    retired: CancellationToken,
    gone: CancellationToken,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The parts of an instance whose process has said that it may be called.
pub(super) struct Begun {
    pub(super) instance: Instance,
    pub(super) protocol: Protocol,
    /// Where its answers come from, if it speaks frames.
    pub(super) answers: Option<Receiver>,
    pub(super) output: Receiver,
    /// What it wrote until then.
    pub(super) log: LogBuffer,
}

impl Served {
    /// Takes over an instance; its task lives on the runtime that this is called on.
    pub(super) fn begin_life(
        pool: Arc<Shared>,
        (key, code, tree): (Arc<Key>, Arc<Code>, CodeLease),
        begun: Begun,
        egress: Option<Egress>,
    ) -> Arc<Self> {
        let (orders, receiver) = mpsc::channel(ORDERS);
        let served = Arc::new(Self {
            id: OnceLock::new(),
            key,
            code,
            pool,
            protocol: begun.protocol,
            lines: Mutex::default(),
            guard: Mutex::new(Some(begun.instance.guard)),
            log: SharedBuffer::new(LogStream::Output, MAX_CALL_LOG),
            orders,
            look_again: Notify::new(),
            retired: CancellationToken::new(),
            gone: CancellationToken::new(),
        });
        let task = Task {
            served: Arc::clone(&served),
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
        };
        tokio::spawn(task.run());
        served
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, LogBuffer> {
        self.log.lock()
    }

    /// What was written until now while this call ran, as it is stored; none where the call does not run here. The calls
    /// of an instance share its output, which is shown under the oldest of them alone.
    pub(super) fn log_of(&self, num: CallNum) -> Option<String> {
        let is_oldest = || {
            let lines = self.lines();
            lines.in_flight.iter().min_by_key(|flight| flight.id).is_some_and(|flight| flight.call.num == num)
        };
        if !is_oldest() {
            return None;
        }
        let copy = self.log().whole_lines();
        // It may have ended meanwhile, and the next call have written.
        is_oldest().then(|| live::stored(&[copy]))
    }

    /// The number that the pool knows it by.
    pub(super) fn named(&self, id: u64) {
        let _ = self.id.set(id);
    }

    fn id(&self) -> u64 {
        self.id.get().copied().unwrap_or(0)
    }

    /// Whether it takes calls.
    pub(super) fn is_open(&self) -> bool {
        !self.lines().closed
    }

    /// Begins a call; gives it back where the instance takes no more.
    pub(super) fn begin(self: &Arc<Self>, call: Box<PoolCall>) -> Result<(), Box<PoolCall>> {
        if call.lease.is_none() {
            return self.write(call);
        }
        // The agent has to know until when the call may run before it runs.
        self.orders.try_send(Order::Begin(call)).map_err(|error| match error.into_inner() {
            Order::Begin(call) => call,
            Order::Cancel(_) | Order::Answered(..) => unreachable!("what was refused is what was sent"),
        })
    }

    fn write(self: &Arc<Self>, mut call: Box<PoolCall>) -> Result<(), Box<PoolCall>> {
        let mut lines = self.lines();
        if lines.closed {
            return Err(call);
        }
        if lines.frozen {
            if !self.with_guard(|guard| guard.thaw()) {
                lines.closed = true;
                return Err(call);
            }
            lines.frozen = false;
        }
        call.begin_attempt();
        lines.next += 1;
        let id = lines.next;
        let (began, deadline) = (Instant::now(), call.deadline);
        if let Some(started) = call.started.take() {
            started();
        }
        match &self.protocol {
            Protocol::Frames(calls) => {
                let written = self.send(calls, &mut lines, id, &call);
                lines.in_flight.push(InFlight { id, began, call });
                if !written {
                    drop(lines);
                    self.look_again.notify_one();
                    return Ok(());
                }
            }
            Protocol::Http(client) => {
                let exchange = client.exchange(&self.code, &call);
                lines.in_flight.push(InFlight { id, began, call });
                let served = Arc::clone(self);
                tokio::spawn(async move {
                    let answer = exchange.await;
                    if http::is_failure(&answer) {
                        // Frameworks write the traceback behind the answer.
                        tokio::time::sleep(TRACEBACK).await;
                    }
                    // The task is gone only when the call has been ended.
                    let _ = served.orders.send(Order::Answered(id, answer)).await;
                });
            }
        }
        let is_earlier = lines.armed.is_none_or(|armed| deadline < armed);
        drop(lines);
        if is_earlier {
            self.look_again.notify_one();
        }
        Ok(())
    }

    /// Writes a call's frame; false where the pipe did not take all of it.
    fn send(&self, calls: &Sender, lines: &mut Lines, id: u64, call: &PoolCall) -> bool {
        let mut context = String::with_capacity(256);
        call.context(&self.code, &mut context);
        let (params, body) = (call.params.clone(), call.body.clone().unwrap_or_default());
        let carried = params.len() + body.len();
        let is_small = carried <= CHUNK;
        let mut frame = Vec::with_capacity(HEADER + LENGTHS + context.len() + if is_small { carried } else { 0 });
        Call { context: context.as_bytes(), params: &params, body: &body }.begin(id, &mut frame);
        if is_small {
            frame.extend_from_slice(&params);
            frame.extend_from_slice(&body);
            lines.unsent.push_back(frame.into());
        } else {
            let parts = [frame.into(), params, body];
            lines.unsent.extend(parts.into_iter().filter(|part| !part.is_empty()));
            if !std::mem::replace(&mut lines.is_widened, true) {
                widen(calls);
            }
        }
        flush(calls, lines)
    }

    fn with_guard(&self, act: impl FnOnce(&dyn InstanceHandle) -> io::Result<()>) -> bool {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
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
    pub(super) fn freeze(&self) -> bool {
        let mut lines = self.lines();
        if lines.in_flight.is_empty() && !lines.closed && !lines.frozen {
            if let Protocol::Http(client) = &self.protocol {
                client.close_idle();
            }
            lines.frozen = self.with_guard(|guard| guard.freeze());
        }
        lines.frozen
    }

    fn usage(&self) -> Usage {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        guard.as_deref().map(InstanceHandle::usage).unwrap_or_default()
    }

    pub(super) fn memory(&self) -> Option<u64> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner).as_deref().and_then(InstanceHandle::memory)
    }

    /// Ends a call, which may still be on its way in; false where it is not known to be here.
    pub(super) fn cancel(&self, num: CallNum) -> bool {
        let is_here = self.lines().in_flight.iter().any(|flight| flight.call.num == num);
        // Orders are taken in turn, so a call that waits among them has begun when this is taken.
        self.orders.try_send(Order::Cancel(num)).is_ok() && is_here
    }

    /// Has it destroyed when its last call has ended.
    pub(super) fn retire(&self) {
        self.lines().closed = true;
        self.retired.cancel();
    }

    /// Gives up the calls that it works at: their clients learn that no end will be told.
    pub(super) fn cut(&self) {
        self.lines().in_flight.clear();
        self.look_again.notify_one();
    }

    /// Returns when nothing of it is left.
    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

/// Has a pipe hold more, so that large frames travel in fewer pieces. A kernel that permits no more leaves it as it is.
fn widen(pipe: &impl std::os::fd::AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, WIDE);
}

/// Writes what is unsent; true where nothing is left to be written.
fn flush(calls: &Sender, lines: &mut Lines) -> bool {
    while let Some(first) = lines.unsent.front_mut() {
        match calls.try_write(first) {
            Ok(written) => {
                first.advance(written);
                if first.is_empty() {
                    lines.unsent.pop_front();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            // It listens no more. Its end says why; nothing is ever written to it again.
            Err(_) => {
                lines.unsent.clear();
                lines.closed = true;
                lines.is_deaf = true;
            }
        }
    }
    true
}

impl Served {
    /// Returns when the lease that the agent knows is not that of the calls any more.
    async fn lease_changed(&self, known_ms: u64) {
        let mut leases: Vec<_> = {
            let lines = self.lines();
            lines.in_flight.iter().filter_map(|flight| flight.call.lease.clone()).collect()
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
            Protocol::Frames(calls) => flush(calls, &mut self.lines()),
            Protocol::Http(_) => true,
        }
    }
}
