//! Calls of the direct path that come from another process: handed to the pool as they come, on a thread of one runtime
//! where their instances live too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use faena_domain::{CallError, CallNum, EngineKind, ErrorKind, Layer};
use faena_invoker::remote::{Incoming, PartSender, Streams};
use faena_invoker::{Caller, Invocation, Invoker, RequestBody, StreamedAnswer};
use faena_pool::Pool;
use faena_protocol::direct::wire::{
    self, AnswerHead, CallHead, DirectMessage, Part, PartTold, RequestStream, WireError,
};
use faena_protocol::direct::{HttpHead, InvocationEnd};
use faena_protocol::records::Code;
use faena_transport::{Peer, ServerEvent, ServerHandle, UnopenedServer};
use http_body::Body;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use crate::DirectSocket;

/// What is known of a thread of an api.
#[derive(Default)]
struct ApiThread {
    /// Versions by their numbers.
    codes: HashMap<u32, Arc<Code>>,
    calls: Calls,
}

/// The calls of a thread of an api that have not ended, and their streams.
type Calls = Arc<Mutex<HashMap<CallNum, Streams>>>;

/// Serves one socket until the task is aborted.
pub(crate) async fn serve(socket: DirectSocket, pool: Pool, worker: String) {
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
    let opened = match socket {
        DirectSocket::Local(endpoint) => server.open(&endpoint, heard).await,
        DirectSocket::Front(dialer, lane) => Ok(server.open_through(dialer, lane, heard)),
    };
    match opened {
        Ok(_open) => std::future::pending().await,
        Err(error) => warn!(%error, "calls cannot be sent here directly; they go by the scheduler"),
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
            DirectMessage::Part(num, part) => {
                if let Some(streams) = caller.calls.lock().get_mut(&num) {
                    streams.take(part);
                }
            }
            DirectMessage::Call(head, body) => match caller.codes.get(&head.code) {
                Some(code) => self.call(Arc::clone(code), Arc::clone(&caller.calls), peer, head, body),
                None => {
                    warn!(call = %head.num, "a call of a version that was not named");
                    caller.calls.lock().insert(head.num, Streams::default());
                    // A refused call reports its end when it is dropped.
                    drop(self.reporter(head.num, Arc::clone(&caller.calls), peer, EngineKind::Sandbox));
                }
            },
        }
    }

    fn reporter(&self, num: CallNum, calls: Calls, peer: Peer, engine: EngineKind) -> Reporter {
        let to_api = ToApi { num, calls, handle: self.handle.clone(), peer };
        Reporter { to_api, worker: self.worker.clone(), engine, stream: None, is_told: false }
    }

    fn call(&self, code: Arc<Code>, calls: Calls, peer: Peer, head: CallHead, body: Bytes) {
        let num = head.num;
        let reporter = self.reporter(num, Arc::clone(&calls), peer, code.engine.unwrap_or(EngineKind::Sandbox));
        let mut params = body;
        let mut streams = Streams::default();
        let mut begin = |length| {
            let (incoming, body) = Incoming::begin(num, length, reporter.to_api.clone());
            streams.incoming = Some(incoming);
            body.map_err(Into::into).boxed_unsync()
        };
        let body = match (head.stream, head.body) {
            (Some(RequestStream::Body(length)), _) => RequestBody::Stream(begin(length)),
            (Some(RequestStream::Upgrade), _) => RequestBody::Upgrade(begin(None)),
            (None, Some(length)) => RequestBody::Whole(params.split_off(params.len().saturating_sub(length))),
            (None, None) => RequestBody::None,
        };
        calls.lock().insert(num, streams);
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
            caller: Box::new(reporter),
        };
        // A refused call reports its end when it is dropped.
        drop(self.pool.submit(call));
    }

    /// Nobody hears the ends of its calls: nothing of them runs on.
    fn lost(&self, caller: &ApiThread) {
        let calls = std::mem::take(&mut *caller.calls.lock());
        if !calls.is_empty() {
            debug!(calls = calls.len(), "an api is gone; its calls are cancelled");
        }
        for num in calls.into_keys() {
            cancel(&self.pool, num);
        }
    }
}

/// One that has ended meanwhile needs it no more.
fn cancel(pool: &Pool, num: CallNum) {
    Invoker::cancel(pool, num);
}

/// Sends messages about one call to its api.
#[derive(Clone)]
struct ToApi {
    num: CallNum,
    calls: Calls,
    handle: ServerHandle,
    peer: Peer,
}

impl PartSender for ToApi {
    async fn send(&self, message: Bytes) -> bool {
        self.handle.send(&self.peer, message).await
    }
}

impl ToApi {
    /// The end of the call as a message, once; none if the api is gone.
    fn end(&self, end: InvocationEnd) -> Option<Bytes> {
        self.calls.lock().remove(&self.num)?;
        self.checked(wire::end(self.num, end))
    }

    fn checked(&self, message: Result<Bytes, WireError>) -> Option<Bytes> {
        message.inspect_err(|error| warn!(%error, call = %self.num, "a call cannot be told of")).ok()
    }

    /// Sends a message now, or as soon as there is room for it: an end that is lost is a call that never ends.
    fn tell(&self, message: Option<Bytes>) {
        if let Some(bytes) = message
            && !self.handle.try_send(&self.peer, bytes.clone())
        {
            let to_api = self.clone();
            tokio::spawn(async move { to_api.send(bytes).await });
        }
    }

    /// Sends an answer while it is made, and the call's end behind it.
    async fn stream(self, head: AnswerHead, answer: StreamedAnswer, end: oneshot::Receiver<InvocationEnd>) {
        let outgoing = self.calls.lock().get(&self.num).map(|streams| streams.outgoing.clone());
        if let (Some(outgoing), Some(head)) = (outgoing, self.checked(wire::answer(&head))) {
            self.send(head).await;
            let sending = outgoing.send(self.num, answer.body, &self);
            tokio::pin!(sending);
            tokio::select! {
                () = &mut sending => {}
                () = answer.draining.cancelled() => {
                    self.tell(self.checked(wire::part(self.num, Part::Told(PartTold::Draining))));
                    sending.await;
                }
            }
        }
        if let Ok(end) = end.await
            && let Some(bytes) = self.end(end)
        {
            self.send(bytes).await;
        }
    }
}

/// Reports the answer and the end of a call. Dropping it reports a refusal.
struct Reporter {
    to_api: ToApi,
    worker: String,
    engine: EngineKind,
    /// Takes the end, where the answer is a stream: it is told behind it.
    stream: Option<oneshot::Sender<InvocationEnd>>,
    is_told: bool,
}

impl Reporter {
    fn tell(&mut self, end: InvocationEnd) {
        self.is_told = true;
        match self.stream.take() {
            // Its task has everything that is to be told.
            Some(stream) => drop(stream.send(end)),
            None => self.to_api.tell(self.to_api.end(end)),
        }
    }
}

impl Caller for Reporter {
    fn informs(&mut self, head: HttpHead) {
        // A hint: where too much waits to be sent it is left out.
        if let Some(bytes) = self.to_api.checked(wire::interim(self.to_api.num, head)) {
            self.to_api.handle.try_send(&self.to_api.peer, bytes);
        }
    }

    fn streams(&mut self, answer: StreamedAnswer) {
        let head = AnswerHead {
            num: self.to_api.num,
            head: answer.head.clone(),
            start_ms: answer.start_ms,
            run_ms: answer.run_ms,
            length: answer.body.size_hint().exact(),
        };
        let (tell, end) = oneshot::channel();
        self.stream = Some(tell);
        tokio::spawn(self.to_api.clone().stream(head, answer, end));
    }

    fn ended(mut self: Box<Self>, end: InvocationEnd) {
        self.tell(end);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        let error =
            CallError::new(ErrorKind::Unavailable, Layer::Queue, "the worker takes no more calls at the moment");
        let end = InvocationEnd::unrun(error, &self.worker, self.engine);
        self.tell(end);
    }
}
