//! The way to the spawner: one process of ours that makes instances for as long as we live.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use faena_launcher::{Numbered, Order, Refusal, Reply, SPAWNER};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tracing::warn;

use crate::EngineError;
use crate::agent::{FrameSender, FrameSocket};

/// How long an order may take.
const ORDER: Duration = Duration::from_secs(10);

type Answer = Result<Option<OwnedFd>, Refusal>;
type Asked = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// A spawner that runs.
#[derive(Debug)]
struct Running {
    orders: FrameSender,
    asked: Asked,
    /// Ends with its socket, and is collected when this is dropped.
    _child: Child,
}

/// Starts a spawner, and another one should it end.
#[derive(Debug)]
pub(crate) struct Spawner {
    program: PathBuf,
    running: AsyncMutex<Option<Running>>,
    next: std::sync::atomic::AtomicU64,
}

fn lock(asked: &Asked) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    fn start(program: &std::path::Path) -> Result<Self, EngineError> {
        let failed = |error: std::io::Error| EngineError::create("starting the spawner", error);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        let child = Command::new(program)
            .arg(SPAWNER)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        let socket = FrameSocket::new(ours).map_err(failed)?;
        let (orders, asked) = (socket.sender(), Asked::default());
        tokio::spawn(listen(socket, Arc::clone(&asked)));
        Ok(Self { orders, asked, _child: child })
    }
}

/// Gives each reply to whoever asked. What nobody waits for any longer ends with its descriptor and its socket.
async fn listen(mut socket: FrameSocket, asked: Asked) {
    loop {
        let (reply, fds) = match socket.receive::<Reply>().await {
            Ok(reply) => reply,
            Err(error) => {
                warn!(%error, "the spawner of instances has ended");
                // Whoever waits learns it by the end of the channel.
                return lock(&asked).clear();
            }
        };
        let answer = reply.result.map(|()| fds.into_iter().next());
        if let Some(waiting) = lock(&asked).remove(&reply.id) {
            let _ = waiting.send(answer);
        }
    }
}

impl Spawner {
    pub(crate) fn new(program: PathBuf) -> Self {
        Self { program, running: AsyncMutex::new(None), next: std::sync::atomic::AtomicU64::new(1) }
    }

    /// Has an order carried out; returns the descriptor of a new instance's first process.
    pub(crate) async fn order(&self, order: Order, fd: BorrowedFd<'_>) -> Result<Option<OwnedFd>, EngineError> {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let answer = self.ask(Numbered { id, order }, fd).await?;
        match tokio::time::timeout(ORDER, answer).await {
            Ok(Ok(Ok(made))) => Ok(made),
            Ok(Ok(Err(Refusal { step, error }))) => Err(EngineError::Create { step, message: error }),
            Ok(Err(_)) => Err(EngineError::lost("launching", "the spawner ended without a reply")),
            Err(_) => Err(EngineError::lost("launching", "the spawner did not reply in time")),
        }
    }

    async fn ask(&self, order: Numbered, fd: BorrowedFd<'_>) -> Result<oneshot::Receiver<Answer>, EngineError> {
        let mut running = self.running.lock().await;
        for _ in 0..2 {
            let current = match running.as_ref() {
                Some(current) => current,
                None => running.insert(Running::start(&self.program)?),
            };
            let (waiting, answer) = oneshot::channel();
            lock(&current.asked).insert(order.id, waiting);
            match current.orders.send(&order, &[fd.as_fd()]).await {
                Ok(()) => return Ok(answer),
                Err(error) => warn!(%error, "the spawner of instances has ended; starting another"),
            }
            *running = None;
        }
        Err(EngineError::lost("launching", "the spawner takes no orders"))
    }
}
