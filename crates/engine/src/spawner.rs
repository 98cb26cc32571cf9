//! The way to a spawner: a process of ours that makes instances for as long as we live.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use faena_launcher::{Numbered, Order, READY, Refusal, Reply};
use parking_lot::{Mutex, MutexGuard};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tokio::task::JoinHandle;
use tracing::warn;

use crate::EngineError;
use crate::agent::{FrameSender, FrameSocket};

/// How long an order may take.
const ORDER: Duration = Duration::from_secs(10);

type SpawnerReply = Result<Vec<OwnedFd>, Refusal>;
type Asked = Arc<Mutex<HashMap<u64, oneshot::Sender<SpawnerReply>>>>;

/// A spawner that runs.
#[derive(Debug)]
struct Running {
    orders: FrameSender,
    asked: Asked,
    /// Whether it takes orders.
    is_ready: Arc<AtomicBool>,
    /// Holds its socket.
    listening: JoinHandle<()>,
    /// Ends with its socket, and is collected when this is dropped.
    _child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Starts a spawner, and another one should it end.
#[derive(Debug)]
pub(crate) struct Spawner {
    program: PathBuf,
    words: Vec<String>,
    running: AsyncMutex<Option<Running>>,
    next: AtomicU64,
    /// When it was last started.
    started: Mutex<Option<Instant>>,
}

fn lock(asked: &Asked) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<SpawnerReply>>> {
    asked.lock()
}

impl Running {
    fn start(program: &std::path::Path, words: &[String]) -> Result<Self, EngineError> {
        let failed = |error: std::io::Error| EngineError::create("starting the spawner", error);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        let child = Command::new(program)
            .args(words)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        let socket = FrameSocket::new(ours).map_err(failed)?;
        let (orders, asked) = (socket.sender(), Asked::default());
        let is_ready = Arc::new(AtomicBool::new(false));
        let listening = tokio::spawn(listen(socket, Arc::clone(&asked), Arc::clone(&is_ready)));
        Ok(Self { orders, asked, is_ready, listening, _child: child })
    }
}

/// Gives each reply to its asker. An instance whose asker has gone ends with its descriptor and its socket.
async fn listen(mut socket: FrameSocket, asked: Asked, is_ready: Arc<AtomicBool>) {
    loop {
        let (reply, fds) = match socket.receive::<Reply>().await {
            Ok(reply) => reply,
            Err(error) => {
                warn!(%error, "the spawner of instances has ended");
                is_ready.store(false, Ordering::Release);
                // The askers learn it by the end of their channels.
                return lock(&asked).clear();
            }
        };
        if reply.id == READY {
            is_ready.store(true, Ordering::Release);
        }
        let answer = reply.result.map(|()| fds);
        if let Some(waiting) = lock(&asked).remove(&reply.id) {
            let _ = waiting.send(answer);
        }
    }
}

impl Spawner {
    /// One that is started as `program` with these words, when it is needed.
    pub(crate) fn new(program: PathBuf, words: Vec<String>) -> Self {
        let (running, started) = (AsyncMutex::new(None), Mutex::new(None));
        Self { program, words, running, next: AtomicU64::new(READY + 1), started }
    }

    fn start(&self) -> Result<Running, EngineError> {
        *self.started.lock() = Some(Instant::now());
        Running::start(&self.program, &self.words)
    }

    /// Whether it takes orders at once. If none runs, one is started, but not within `again` of the last one.
    pub(crate) async fn is_ready(&self, again: Duration) -> bool {
        let mut running = self.running.lock().await;
        if running.as_ref().is_some_and(|current| current.listening.is_finished()) {
            *running = None;
        }
        if let Some(current) = running.as_ref() {
            return current.is_ready.load(Ordering::Acquire);
        }
        let started = *self.started.lock();
        if started.is_none_or(|started| started.elapsed() >= again) {
            match self.start() {
                Ok(begun) => *running = Some(begun),
                Err(error) => warn!(%error, "a spawner of instances could not be started"),
            }
        }
        false
    }

    /// Has an order carried out; returns the descriptors of what was made.
    pub(crate) async fn order(&self, order: Order, fds: &[BorrowedFd<'_>]) -> Result<Vec<OwnedFd>, EngineError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let answer = self.ask(Numbered { id, order }, fds).await?;
        match tokio::time::timeout(ORDER, answer).await {
            Ok(Ok(Ok(made))) => Ok(made),
            Ok(Ok(Err(Refusal { step, error }))) => Err(EngineError::Create { step, message: error }),
            Ok(Err(_)) => Err(EngineError::lost("launching", "the spawner ended without a reply")),
            Err(_) => Err(EngineError::lost("launching", "the spawner did not reply in time")),
        }
    }

    async fn ask(
        &self,
        order: Numbered,
        fds: &[BorrowedFd<'_>],
    ) -> Result<oneshot::Receiver<SpawnerReply>, EngineError> {
        let mut running = self.running.lock().await;
        for _ in 0..2 {
            let current = match running.as_ref() {
                Some(current) => current,
                None => running.insert(self.start()?),
            };
            let (waiting, answer) = oneshot::channel();
            lock(&current.asked).insert(order.id, waiting);
            match current.orders.send(&order, fds).await {
                Ok(()) => return Ok(answer),
                Err(error) => warn!(%error, "the spawner of instances has ended; starting another"),
            }
            *running = None;
        }
        Err(EngineError::lost("launching", "the spawner takes no orders"))
    }
}
