//! The ways from an instance to the world: its network device, whose connections the gateway ends, and a proxy for those
//! that have no device. Both ask the same judge and have one account.

mod account;
mod caller;
mod gateway;
mod proxy;
mod request;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use faena_domain::identity::INTERNAL_DOMAIN;
use faena_domain::{FunctionId, FunctionName};
use faena_egress::{Asker, Destination, EgressPolicy, InstanceEgress, Reach, Reason, Refusal};
use faena_engine::InstanceNetwork;
use faena_gateway::Counters;
use faena_protocol::records::Code;
use parking_lot::Mutex;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::owner::InstanceOwner;

pub(crate) use account::{Account, EgressReport};
use caller::{CallingFunction, Wait};
use gateway::Attached;
pub use gateway::Gateway;
use proxy::Proxy;

/// Connections of one instance to the resolver; ordinary queries come as datagrams.
const RESOLVER_STREAMS: usize = 2;
/// Functions that are forgotten at once when there are more; those in use are known again when they ask.
const MOST: usize = 10_000;

/// What the instances of a node share.
#[derive(Debug)]
pub struct NodeEgress {
    policy: Arc<EgressPolicy>,
    gateway: Gateway,
    /// The api's socket for calls from instances.
    internal: PathBuf,
    /// On whose behalf names are looked up: one asker for all instances of a function, however many there are.
    askers: Mutex<HashMap<FunctionId, Asker>>,
}

impl NodeEgress {
    /// What the operator permits, the process that serves devices, and the api's socket for calls from instances.
    pub fn new(policy: EgressPolicy, gateway: Gateway, internal: PathBuf) -> Self {
        Self { policy: Arc::new(policy), gateway, internal, askers: Mutex::default() }
    }

    fn asker(&self, code: &Code) -> Asker {
        let mut askers = self.askers.lock();
        if askers.len() >= MOST {
            askers.clear();
        }
        let new = || Asker::new(Some(&code.namespace));
        askers.entry(code.function_id()).or_insert_with(new).clone()
    }

    /// Serves an instance of a version, which may reach this; its owner learns when it waits for another function.
    pub(crate) fn serve(
        &self,
        code: &Code,
        reach: Reach,
        ways: Ways,
        owner: Option<Arc<dyn InstanceOwner>>,
    ) -> io::Result<Egress> {
        let judge = InstanceEgress::new(Arc::clone(&self.policy), reach, self.asker(code));
        let outlet = Arc::new(Outlet {
            account: Account::new(judge.policy().bytes.0)?,
            judge,
            caller: CallingFunction {
                namespace: code.namespace.clone(),
                function: code.function.clone(),
                scopes: code.scopes.clone(),
                internal: self.internal.clone(),
                running: Mutex::default(),
                waiting: Mutex::default(),
                owner,
            },
            call: Mutex::default(),
            call_number: AtomicU64::default(),
            resolver_streams: Semaphore::new(RESOLVER_STREAMS),
        });
        let owner = {
            let mut hasher = DefaultHasher::new();
            code.function_id().hash(&mut hasher);
            hasher.finish()
        };
        Ok(Egress {
            proxy: ways.listener.map(|listener| Proxy::serve(listener, Arc::clone(&outlet))),
            device: ways.device.map(|device| self.gateway.attach(device, ways.network, (Arc::clone(&outlet), owner))),
            outlet,
        })
    }
}

/// What an instance with egress was made with.
#[derive(Debug)]
pub(crate) struct Ways {
    listener: Option<std::net::TcpListener>,
    device: Option<OwnedFd>,
    network: Option<InstanceNetwork>,
}

impl Ways {
    /// Takes them out of an instance; none where it has no egress.
    pub(crate) fn of(instance: &mut faena_engine::Instance) -> Option<Self> {
        let (listener, device) = (instance.listener.take(), instance.device.take());
        let network = instance.guard.network();
        (listener.is_some() || device.is_some()).then_some(Self { listener, device, network })
    }
}

/// Judges, connects and counts for one instance.
#[derive(Debug)]
pub(crate) struct Outlet {
    judge: InstanceEgress,
    pub(crate) account: Account,
    caller: CallingFunction,
    /// The call that runs.
    call: Mutex<CurrentCall>,
    /// Its number again, for who holds other locks.
    call_number: AtomicU64,
    /// Connections to the resolver that may be open.
    resolver_streams: Semaphore,
}

/// A call of an instance, or the pause before it.
#[derive(Debug, Default)]
struct CurrentCall {
    number: u64,
    /// Ends what it has begun.
    end: CancellationToken,
}

impl Outlet {
    /// Connects to an address that was dialled.
    async fn dial(&self, target: SocketAddrV4) -> Result<Connected, Reason> {
        let connected = async {
            let (destination, host) = self.judge.dial(target).await?;
            let connected = match destination {
                Destination::World(stream, _) => {
                    Connected::World(stream, self.judge.server_names(&host, target.port()))
                }
                Destination::Function(name) => Connected::Function(self.call(name).await?),
            };
            self.account.reached(host);
            Ok(connected)
        };
        connected.await.map_err(|refusal: Refusal| {
            if refusal.is_denied() {
                self.account.refused(&refusal);
            }
            refusal.reason
        })
    }

    /// A connection on which another function answers.
    async fn call(&self, target: FunctionName) -> Result<UnixStream, Refusal> {
        let host = format!("{target}.{INTERNAL_DOMAIN}");
        self.caller.call(target).await.map_err(|error| {
            let refusal = Refusal { target: host, reason: Reason::Unreachable(error.to_string()) };
            self.account.refused(&refusal);
            refusal
        })
    }

    /// A call begins: until what is returned is dropped, calls of other functions are its own.
    pub(crate) fn begin(self: &Arc<Self>, deadline: Instant, depth: u32) -> EgressCall {
        let id = self.caller.begin(deadline, depth);
        EgressCall { before: self.account.total(), id, outlet: Arc::clone(self) }
    }

    /// Answers a DNS query.
    async fn answer(&self, query: &[u8], by_datagram: bool) -> Vec<u8> {
        let (answer, refusal) = self.judge.answer(query, by_datagram).await;
        refusal.iter().for_each(|refusal| self.account.refused(refusal));
        answer
    }

    /// Cancelled when the call that runs now ends.
    fn end_of_call(&self) -> CancellationToken {
        self.call.lock().end.clone()
    }

    /// The same, of the call of this number; none where that has ended.
    fn end_of(&self, number: u64) -> Option<CancellationToken> {
        let call = self.call.lock();
        (call.number == number).then(|| call.end.clone())
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.call.lock().end.cancel();
    }
}

/// Where a connection of an instance leads.
enum Connected {
    /// To a server, with the names that its client may name in TLS.
    World(TcpStream, Option<Vec<String>>),
    /// To another function.
    Function(UnixStream),
}

/// A call that runs in an instance with egress.
#[derive(Debug)]
pub(crate) struct EgressCall {
    /// What had passed when it began.
    before: Counters,
    id: u64,
    outlet: Arc<Outlet>,
}

impl EgressCall {
    /// It may go on until this.
    pub(crate) fn extend(&self, deadline: Instant) {
        self.outlet.caller.extend(self.id, deadline);
    }

    /// It has ended; returns what had passed when it began.
    pub(crate) fn end(self) -> Counters {
        self.before
    }
}

impl Drop for EgressCall {
    fn drop(&mut self) {
        self.outlet.caller.end(self.id);
    }
}

/// The egress of one instance; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Egress {
    outlet: Arc<Outlet>,
    proxy: Option<Proxy>,
    device: Option<Attached>,
}

/// What becomes of connections when a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connections {
    /// They are reset, and those that were asked for are never opened.
    Reset,
    /// They live as long as the instance: what keeps them is the process that all calls share.
    Keep,
}

impl Egress {
    /// The account of the instance.
    pub(crate) fn outlet(&self) -> &Arc<Outlet> {
        &self.outlet
    }

    /// A call has ended while others run. Where those that ran when the budget was renewed last have all ended, it is renewed:
    /// an instance that never rests is not held to the budget of one call for ever.
    pub(crate) fn end_one_of_several(&self, since: Counters) -> EgressReport {
        let report = self.outlet.account.report(since, false);
        if self.outlet.caller.is_another_generation() {
            self.outlet.account.renew();
            self.device.iter().for_each(Attached::renew);
        }
        report
    }

    /// A call has ended, and no other runs: the next begins with all that may pass in one. Tells what has passed since a
    /// reading.
    pub(crate) fn end_call(&self, since: Counters, connections: Connections) -> EgressReport {
        if connections == Connections::Reset {
            let mut call = self.outlet.call.lock();
            call.end.cancel();
            *call = CurrentCall { number: call.number + 1, end: CancellationToken::new() };
            self.outlet.call_number.store(call.number, Ordering::Release);
            // Nothing else is accepted while the lock is held.
            self.proxy.iter().for_each(Proxy::close_backlog);
            self.device.iter().for_each(|device| device.end_call(call.number));
        } else {
            self.device.iter().for_each(Attached::renew);
        }
        let report = self.outlet.account.report(since, true);
        self.outlet.account.renew();
        report
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.outlet.call.lock().end.cancel();
    }
}
