//! The ways from an instance to the world: its network device, whose connections the gateway ends, and a proxy for those
//! that have no device. Both ask the same judge and have one account.

mod account;
mod gateway;
mod proxy;
mod request;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use faena_domain::FunctionId;
use faena_egress::{Asker, EgressPolicy, InstanceEgress, Reach, Reason};
use faena_gateway::Counters;
use faena_protocol::records::Code;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

pub(crate) use account::{Account, EgressReport};
use gateway::Attached;
pub use gateway::Gateway;
use proxy::Proxy;

/// Functions that are forgotten at once when there are more; those in use are known again when they ask.
const MOST: usize = 10_000;

/// What the instances of a node share.
#[derive(Debug)]
pub struct NodeEgress {
    policy: Arc<EgressPolicy>,
    gateway: Gateway,
    /// On whose behalf names are looked up: one asker for all instances of a function, however many there are.
    askers: Mutex<HashMap<FunctionId, Asker>>,
}

impl NodeEgress {
    /// What the operator permits, and the process that serves devices.
    pub fn new(policy: EgressPolicy, gateway: Gateway) -> Self {
        Self { policy: Arc::new(policy), gateway, askers: Mutex::default() }
    }

    fn asker(&self, code: &Code) -> Asker {
        let mut askers = self.askers.lock();
        if askers.len() >= MOST {
            askers.clear();
        }
        let new = || Asker::new(&self.policy, Some(&code.namespace));
        askers.entry(code.function_id()).or_insert_with(new).clone()
    }

    /// Serves an instance of a version, which may reach this.
    pub(crate) fn serve(&self, code: &Code, reach: Reach, ways: Ways) -> io::Result<Egress> {
        let judge = InstanceEgress::new(Arc::clone(&self.policy), reach, self.asker(code));
        let outlet = Arc::new(Outlet { account: Account::new(judge.policy().bytes.0)?, judge, call: Mutex::default() });
        let owner = {
            let mut hasher = DefaultHasher::new();
            code.function_id().hash(&mut hasher);
            hasher.finish()
        };
        Ok(Egress {
            proxy: ways.listener.map(|listener| Proxy::serve(listener, Arc::clone(&outlet))),
            device: ways.device.map(|device| self.gateway.attach(device, Arc::clone(&outlet), owner)),
            outlet,
        })
    }
}

/// What an instance with egress was made with.
#[derive(Debug)]
pub(crate) struct Ways {
    listener: Option<std::net::TcpListener>,
    device: Option<OwnedFd>,
}

impl Ways {
    /// Takes them out of an instance; none where it has no egress.
    pub(crate) fn of(instance: &mut faena_engine::Instance) -> Option<Self> {
        let (listener, device) = (instance.listener.take(), instance.device.take());
        (listener.is_some() || device.is_some()).then_some(Self { listener, device })
    }
}

/// Judges, connects and counts for one instance.
#[derive(Debug)]
pub(crate) struct Outlet {
    judge: InstanceEgress,
    pub(crate) account: Account,
    /// Ends what the call that runs has begun.
    call: Mutex<CancellationToken>,
}

impl Outlet {
    /// Connects to an address that was dialled.
    async fn dial(&self, target: SocketAddrV4) -> Result<TcpStream, Reason> {
        match self.judge.dial(target).await {
            Ok((stream, host)) => {
                self.account.reached(host);
                Ok(stream)
            }
            Err(refusal) => {
                if refusal.is_denied() {
                    self.account.refused(&refusal);
                }
                Err(refusal.reason)
            }
        }
    }

    /// Answers a DNS query.
    async fn answer(&self, query: &[u8], by_datagram: bool) -> Vec<u8> {
        let (answer, refusal) = self.judge.answer(query, by_datagram).await;
        refusal.iter().for_each(|refusal| self.account.refused(refusal));
        answer
    }

    /// Cancelled when the call that runs now ends.
    fn end_of_call(&self) -> CancellationToken {
        self.call.lock().clone()
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.call.lock().cancel();
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

    /// A call has ended, and no other runs: the next begins with all that may pass in one. Tells what has passed since a
    /// reading.
    pub(crate) fn end_call(&self, since: Counters, connections: Connections) -> EgressReport {
        if connections == Connections::Reset {
            let mut call = self.outlet.call.lock();
            call.cancel();
            *call = CancellationToken::new();
            // Nothing else is accepted while the lock is held.
            self.proxy.iter().for_each(Proxy::close_backlog);
            self.device.iter().for_each(Attached::end_call);
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
        self.outlet.call.lock().cancel();
    }
}
