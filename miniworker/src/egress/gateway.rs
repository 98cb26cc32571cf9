//! The way to the gateway: one process for all instances of a node, started when the first has a device, and again
//! should it end.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};
use std::time::Duration;

use faena_egress::Reason;
use faena_engine::{FrameSender, FrameSocket, InstanceNetwork};
use faena_gateway::{Blocked, DeviceId, FLOWS, FromGateway, NET, Refuse, ToGateway};
use faena_instance_protocol::link;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{debug, warn};

use super::{Connected, Outlet, Wait};

/// How long a gateway that has ended is waited for before the next is started.
const AGAIN: Duration = Duration::from_millis(200);
/// From how many bytes on the allocator maps memory for a block of its own, and gives it back when that is freed
/// (mallopt(3), `M_MMAP_THRESHOLD`): buffers of connections then take what was written to them, and no more.
const OWN_BLOCK: &str = "65536";
/// The longest query by TCP (RFC 1035, 4.2.2); a query has one name.
const MAX_QUERY: usize = 4096;

/// The pause after each of them: datagrams are held to a rate too.
const BETWEEN_QUERIES: Duration = Duration::from_millis(10);

/// A message with its descriptors.
type Message = (ToGateway, Vec<OwnedFd>);

/// The gateway of a node.
#[derive(Debug)]
pub struct Gateway {
    program: PathBuf,
    /// Where its messages are sent and received: instances live on runtimes that may be busy.
    home: Handle,
    devices: Arc<Mutex<Devices>>,
    /// Whether the process is looked after.
    is_driven: Once,
}

#[derive(Debug, Default)]
struct Devices {
    last: u64,
    attached: HashMap<DeviceId, Attachment>,
    /// The way to the gateway that runs. Each has one of its own: what is late for one that has ended never reaches another,
    /// whose connections have the same numbers.
    messages: Option<UnboundedSender<Message>>,
}

impl Devices {
    fn send(&self, message: Message) {
        // One that runs next is told of every device that is attached then.
        if let Some(messages) = &self.messages {
            let _ = messages.send(message);
        }
    }
}

/// A device, while its instance lives. It is kept here too, so that another gateway can serve it.
#[derive(Debug)]
struct Attachment {
    device: Arc<OwnedFd>,
    /// Where its kernel tells which connections it has.
    network: Option<InstanceNetwork>,
    outlet: Arc<Outlet>,
    owner: u64,
}

/// A device that is served until this is dropped.
#[derive(Debug)]
pub(super) struct Attached {
    id: DeviceId,
    devices: Arc<Mutex<Devices>>,
}

impl Attached {
    /// Resets the connections of a call that has ended; `next` is the number of the next.
    pub(super) fn end_call(&self, next: u64) {
        self.send(ToGateway::EndCall { device: self.id, next });
    }

    /// Lets pass what may pass in a call.
    pub(super) fn renew(&self) {
        self.send(ToGateway::Renew { device: self.id });
    }

    fn send(&self, message: ToGateway) {
        self.devices.lock().send((message, Vec::new()));
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let attachment = {
            let mut devices = self.devices.lock();
            let attachment = devices.attached.remove(&self.id);
            devices.send((ToGateway::Detach { device: self.id }, Vec::new()));
            attachment
        };
        // The kernel takes milliseconds for the last descriptor of a device.
        if let (Some(attachment), Ok(runtime)) = (attachment, Handle::try_current()) {
            runtime.spawn_blocking(move || drop(attachment));
        }
    }
}

impl Gateway {
    /// One that is `program`, run again, when it is needed; its messages are handled on this runtime.
    pub fn new(program: PathBuf, home: Handle) -> Self {
        Self { program, home, devices: Arc::default(), is_driven: Once::new() }
    }

    /// Has a device served.
    pub(super) fn attach(
        &self,
        device: OwnedFd,
        network: Option<InstanceNetwork>,
        (outlet, owner): (Arc<Outlet>, u64),
    ) -> Attached {
        self.is_driven.call_once(|| {
            let driver = Driver { program: self.program.clone(), devices: Arc::clone(&self.devices) };
            self.home.spawn(driver.run());
        });
        let mut devices = self.devices.lock();
        devices.last += 1;
        let (id, attachment) =
            (DeviceId(devices.last), Attachment { device: Arc::new(device), network, outlet, owner });
        if let Ok(message) = attachment.message(id, Vec::new()) {
            devices.send(message);
        }
        devices.attached.insert(id, attachment);
        drop(devices);
        Attached { id, devices: Arc::clone(&self.devices) }
    }
}

impl Attachment {
    /// Connections that a gateway before the next one has served.
    fn lost(&self) -> Vec<(u16, SocketAddrV4)> {
        let mut open = self.network.map(InstanceNetwork::connections).unwrap_or_default();
        // What the gateway had forgotten before may still be listed.
        open.truncate(FLOWS);
        open
    }

    fn message(&self, id: DeviceId, lost: Vec<(u16, SocketAddrV4)>) -> io::Result<Message> {
        let Self { device, outlet, owner, .. } = self;
        let (budget, call) = (outlet.account.budget(), outlet.call_number.load(Ordering::Acquire));
        let fds = vec![device.try_clone()?, outlet.account.counters().try_clone()?];
        Ok((ToGateway::Attach { device: id, owner: *owner, budget, call, lost }, fds))
    }
}

/// Starts the process, and carries messages.
#[derive(Clone)]
struct Driver {
    program: PathBuf,
    devices: Arc<Mutex<Devices>>,
}

fn start(program: &Path) -> io::Result<(Child, FrameSocket)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let child = Command::new(program)
        .arg(NET)
        .env_clear()
        .env("MALLOC_MMAP_THRESHOLD_", OWN_BLOCK)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, FrameSocket::new(ours)?))
}

impl Driver {
    async fn run(self) {
        loop {
            let (_child, mut socket) = match start(&self.program) {
                Ok(started) => started,
                Err(error) => {
                    warn!(%error, "the gateway of instances cannot be started");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            let (sender, (messages, mut queue)) = (socket.sender(), unbounded_channel());
            self.attach_all(&messages);
            tokio::select! {
                () = send_all(&sender, &mut queue) => {}
                () = self.receive_all(&mut socket, &messages) => {}
            }
            self.devices.lock().messages = None;
            warn!("the gateway of instances has ended, and its connections with it; another is started");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Has a new gateway serve every device that is there, and reset the connections of the one before.
    fn attach_all(&self, messages: &UnboundedSender<Message>) {
        let mut devices = self.devices.lock();
        let attached =
            devices.attached.iter().filter_map(|(id, attachment)| attachment.message(*id, attachment.lost()).ok());
        attached.for_each(|message| drop(messages.send(message)));
        devices.messages = Some(messages.clone());
    }

    async fn receive_all(&self, socket: &mut FrameSocket, messages: &UnboundedSender<Message>) {
        loop {
            match socket.receive::<FromGateway>().await {
                Ok((message, _)) => self.take(message, messages),
                Err(error) => return debug!(%error, "the gateway of instances says no more"),
            }
        }
    }

    fn outlet(&self, device: DeviceId) -> Option<Arc<Outlet>> {
        self.devices.lock().attached.get(&device).map(|attachment| Arc::clone(&attachment.outlet))
    }

    fn take(&self, message: FromGateway, messages: &UnboundedSender<Message>) {
        let messages = messages.clone();
        match message {
            FromGateway::Dial { device, flow, call, target } => {
                let Some(outlet) = self.outlet(device) else { return };
                let Some(end_of_call) = outlet.end_of(call) else { return };
                tokio::spawn(async move {
                    // The gateway has forgotten what its call has asked for, once that has ended.
                    let dialed = end_of_call.run_until_cancelled(dial(&outlet, target)).await;
                    let message = match dialed {
                        Some(Ok((socket, names))) => (ToGateway::Dialed { device, flow, names }, vec![socket]),
                        Some(Err(how)) => (ToGateway::Refused { device, flow, how }, Vec::new()),
                        None => return,
                    };
                    let _ = messages.send(message);
                });
            }
            FromGateway::Query { device, query, message } => {
                let Some(outlet) = self.outlet(device) else { return };
                tokio::spawn(async move {
                    let message = outlet.answer(&message, true).await;
                    let _ = messages.send((ToGateway::Answer { device, query, message }, Vec::new()));
                });
            }
            FromGateway::Blocked { device, why, target } => {
                if let Some(outlet) = self.outlet(device) {
                    let host = format!("{}:{}", outlet.judge.host_of(*target.ip()), target.port());
                    outlet.account.refused(explained(why, &host));
                }
            }
        }
    }
}

/// What a call's log says of a refusal.
pub(super) fn explained(why: Blocked, target: &str) -> String {
    match why {
        Blocked::Udp => format!("egress to {target} refused: UDP; only look-ups are passed on"),
        Blocked::Connections => {
            format!("egress to {target} refused: as many connections as may be open at once are open")
        }
        Blocked::ServerName => {
            format!("egress to {target} refused: its client names a server in TLS that no rule of faena.toml permits")
        }
    }
}

async fn send_all(sender: &FrameSender, messages: &mut UnboundedReceiver<Message>) {
    while let Some((message, fds)) = messages.recv().await {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if let Err(error) = sender.send(&message, &fds).await {
            return debug!(%error, "the gateway of instances takes no more");
        }
    }
}

/// A socket that leads to a destination, and the names that its client may name in TLS.
async fn dial(outlet: &Arc<Outlet>, target: SocketAddrV4) -> Result<(OwnedFd, Option<Vec<String>>), Refuse> {
    if *target.ip() == link::RESOLVER {
        let is_resolver = target.port() == link::DNS_PORT;
        return if is_resolver { Ok((answer_stream(outlet)?, None)) } else { Err(Refuse::Reset) };
    }
    match outlet.dial(target).await {
        Ok(Connected::World(stream, names)) => Ok((stream.into_std().map_err(|_| Refuse::Reset)?.into(), names)),
        Ok(Connected::Function(stream)) => Ok((relay(outlet, stream).map_err(|_| Refuse::Reset)?, None)),
        Err(Reason::Denied(_) | Reason::ConnectionRefused) => Err(Refuse::Reset),
        Err(_) => Err(Refuse::Unreachable),
    }
}

/// A connection to another function: bytes pass through here, so that it is known for how long the instance waits.
fn relay(outlet: &Arc<Outlet>, mut function: UnixStream) -> io::Result<OwnedFd> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut inside = UnixStream::from_std(ours)?;
    let (wait, end_of_call) = (Wait::of(outlet), outlet.end_of_call());
    tokio::spawn(async move {
        let ((mut from, mut to), (mut answer, mut request)) = (inside.split(), function.split());
        let up = async {
            let _ = tokio::io::copy(&mut from, &mut request).await;
            let _ = request.shutdown().await;
            // The answer may still come.
            std::future::pending::<()>().await;
        };
        let passing = async {
            tokio::select! {
                () = up => {}
                _ = tokio::io::copy(&mut answer, &mut to) => {}
            }
        };
        // The end of the answer is the end of the connection, whatever it was.
        let _ = end_of_call.run_until_cancelled(passing).await;
        drop(wait);
    });
    Ok(theirs.into())
}

/// A connection to the resolver: each query and each answer has its length before it (RFC 7766).
fn answer_stream(outlet: &Arc<Outlet>) -> Result<OwnedFd, Refuse> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|_| Refuse::Reset)?;
    ours.set_nonblocking(true).map_err(|_| Refuse::Reset)?;
    let mut stream = UnixStream::from_std(ours).map_err(|_| Refuse::Reset)?;
    let (outlet, end_of_call) = (Arc::clone(outlet), outlet.end_of_call());
    tokio::spawn(async move {
        let Ok(_place) = outlet.resolver_streams.try_acquire() else { return };
        let answers = async {
            loop {
                let length = usize::from(stream.read_u16().await?);
                if length > MAX_QUERY {
                    return io::Result::Ok(());
                }
                let mut query = vec![0; length];
                stream.read_exact(&mut query).await?;
                let answer = outlet.answer(&query, false).await;
                let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
                stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await?;
                tokio::time::sleep(BETWEEN_QUERIES).await;
            }
        };
        // Its end is the end of the connection, whatever it was.
        let _ = end_of_call.run_until_cancelled(answers).await;
    });
    Ok(theirs.into())
}
