//! Calls of the direct path that come from another process: handed to the pool as they come, on a thread of one runtime
//! where their instances live too.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use faena_domain::{CallError, CallNum, EngineKind, ErrorKind, Layer};
use faena_invoker::{Invocation, Invoker};
use faena_pool::Pool;
use faena_protocol::direct::InvocationEnd;
use faena_protocol::direct::wire::{self, CallHead, DirectMessage};
use faena_protocol::records::Code;
use faena_transport::{Endpoint, Peer, ServerEvent, ServerHandle, UnopenedServer};
use parking_lot::Mutex;
use tracing::{debug, warn};

/// What is known of a thread of an api.
#[derive(Default)]
struct ApiThread {
    /// Versions by their numbers.
    codes: HashMap<u32, Arc<Code>>,
    /// Calls of it that have not ended.
    calls: Arc<Mutex<HashSet<CallNum>>>,
}

/// Serves one socket until the task is aborted.
pub(crate) async fn serve(endpoint: Endpoint, pool: Pool, worker: String) {
    let (handle, server) = UnopenedServer::new();
    let served = Direct { pool, handle, worker };
    let mut callers: HashMap<Peer, ApiThread> = HashMap::new();
    let heard = move |event| match event {
        ServerEvent::Message(peer, bytes) => match DirectMessage::decode(&bytes) {
            Ok(message) => served.heard(callers.entry(peer.clone()).or_default(), peer, message),
            Err(error) => warn!(%error, "a message of an api was dropped"),
        },
        ServerEvent::Lost(peer) => {
            if let Some(caller) = callers.remove(&peer) {
                served.lost(&caller);
            }
        }
    };
    match server.open(&endpoint, heard).await {
        Ok(_open) => std::future::pending().await,
        Err(error) => {
            warn!(%error, endpoint = %endpoint.path().display(), "calls cannot be sent here directly; they go by the scheduler");
        }
    }
}

struct Direct {
    pool: Pool,
    handle: ServerHandle,
    worker: String,
}

impl Direct {
    fn heard(&self, caller: &mut ApiThread, peer: Peer, message: DirectMessage) {
        match message {
            DirectMessage::Code(id, code) => drop(caller.codes.insert(id, Arc::new(*code))),
            DirectMessage::Forget => caller.codes.clear(),
            DirectMessage::Cancel(num) => cancel(&self.pool, num),
            DirectMessage::Call(head, body) => match caller.codes.get(&head.code) {
                Some(code) => self.call(Arc::clone(code), Arc::clone(&caller.calls), peer, head, body),
                None => {
                    warn!(call = %head.num, "a call of a version that was not named");
                    let (num, engine) = (head.num, EngineKind::Sandbox);
                    caller.calls.lock().insert(num);
                    let (calls, handle) = (Arc::clone(&caller.calls), self.handle.clone());
                    drop(EndReporter { num, calls, handle, peer, worker: self.worker.clone(), engine });
                }
            },
        }
    }

    fn call(&self, code: Arc<Code>, calls: Arc<Mutex<HashSet<CallNum>>>, peer: Peer, head: CallHead, body: Bytes) {
        let num = head.num;
        calls.lock().insert(num);
        let engine = code.engine.unwrap_or(EngineKind::Sandbox);
        let answer = EndReporter { num, calls, handle: self.handle.clone(), peer, worker: self.worker.clone(), engine };
        let mut params = body;
        let body = head.body.map(|length| params.split_off(params.len().saturating_sub(length)));
        let call = Invocation {
            num,
            code,
            params,
            body,
            request: head.request,
            timeout_ms: head.timeout_ms,
            deadline: Instant::now() + Duration::from_millis(head.left_ms),
            deadline_unix_ms: head.deadline_unix_ms,
            traceparent: head.traceparent.into(),
            done: Box::new(move |end| answer.tell(end)),
        };
        // One that is refused is told so when it is dropped.
        drop(self.pool.submit(call));
    }

    /// Nobody hears the ends of its calls: nothing of them runs on.
    fn lost(&self, caller: &ApiThread) {
        let calls = std::mem::take(&mut *caller.calls.lock());
        if !calls.is_empty() {
            debug!(calls = calls.len(), "an api is gone; its calls are cancelled");
        }
        for num in calls {
            cancel(&self.pool, num);
        }
    }
}

/// One that has ended meanwhile needs it no more.
fn cancel(pool: &Pool, num: CallNum) {
    Invoker::cancel(pool, num);
}

/// Tells the end of a call, once, whatever becomes of it here.
struct EndReporter {
    num: CallNum,
    calls: Arc<Mutex<HashSet<CallNum>>>,
    handle: ServerHandle,
    peer: Peer,
    worker: String,
    engine: EngineKind,
}

impl EndReporter {
    fn tell(&self, end: InvocationEnd) {
        // The end of one whose caller has gone, or was told already, is nobody's.
        if !self.calls.lock().remove(&self.num) {
            return;
        }
        match wire::end(self.num, end) {
            Ok(bytes) if self.handle.try_send(&self.peer, bytes.clone()) => {}
            Ok(_) => warn!(call = %self.num, "the end of a call cannot be told: too much waits to be sent"),
            Err(error) => warn!(%error, call = %self.num, "the end of a call cannot be told"),
        }
    }
}

impl Drop for EndReporter {
    fn drop(&mut self) {
        if !self.calls.lock().contains(&self.num) {
            return;
        }
        let error =
            CallError::new(ErrorKind::Unavailable, Layer::Queue, "the worker takes no more calls at the moment");
        self.tell(InvocationEnd::unrun(error, &self.worker, self.engine));
    }
}
