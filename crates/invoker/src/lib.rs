//! The trait by which an api hands a call to an instance. A worker's pool implements it, and so do the connections to
//! workers in other processes.

mod body;
pub mod remote;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use faena_domain::CallNum;
use faena_domain::units::Millis;
use faena_protocol::direct::{HttpHead, HttpRequest, InvocationEnd};
use faena_protocol::records::Code;
use tokio_util::sync::CancellationToken;

pub use body::{
    BodyError, BodyStream, BrokenOff, Direction, EXCERPT, Kept, Meter, Observed, PIECE, PipeReceiver, PipeSender,
    RequestBody, Seen, WINDOW, pipe,
};

/// A call on its way to an instance.
pub struct Invocation {
    /// Its number.
    pub num: CallNum,
    /// What runs; the same allocation for every call of a version.
    pub code: Arc<Code>,
    /// The params, JSON.
    pub params: Bytes,
    /// The request's body, where that is not the params.
    pub body: RequestBody,
    /// The request that it is.
    pub request: Arc<HttpRequest>,
    /// How long the attempt may take, in milliseconds; to the head of the answer, where that is a stream.
    pub timeout_ms: u64,
    /// When the call as a whole has to have ended, unless its answer is a stream by then.
    pub deadline: Instant,
    /// The same instant for the function, in Unix milliseconds.
    pub deadline_unix_ms: i64,
    /// The W3C trace context that it carries.
    pub traceparent: Arc<str>,
    /// Is told how it goes on.
    pub caller: Box<dyn Caller>,
}

impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invocation").field("num", &self.num).finish_non_exhaustive()
    }
}

/// Who handed a call over.
pub trait Caller: Send {
    /// The function has sent an interim answer, such as 103. Any number, before the answer begins.
    fn informs(&mut self, head: HttpHead);

    /// The answer has begun and is a stream. At most once, and before the end.
    fn streams(&mut self, answer: StreamedAnswer);

    /// The call has ended. Exactly once, whether or not the client still waits.
    fn ended(self: Box<Self>, end: InvocationEnd);
}

/// The head of an answer whose body is still being made.
#[derive(Debug)]
pub struct StreamedAnswer {
    /// Its status and headers; 101 where the function accepts a WebSocket.
    pub head: HttpHead,
    /// How long the call waited for an instance.
    pub start_ms: Millis,
    /// How long the function took until the head.
    pub run_ms: Millis,
    /// Its body. Dropping it tells the function that its client has gone.
    pub body: PipeReceiver,
    /// Cancelled when the worker drains: streams without an end of their own end now.
    pub draining: CancellationToken,
}

/// What takes calls.
pub trait Invoker: Send + Sync + fmt::Debug {
    /// Whether instances of this version can be made here.
    fn offers(&self, code: &Code) -> bool;

    /// Hands a call over. From then on it belongs to the task of its instance: a client that goes away before the answer
    /// has begun cancels nothing.
    ///
    /// # Errors
    /// The call itself, where too many wait already.
    fn submit(&self, call: Invocation) -> Result<(), Box<Invocation>>;

    /// Ends a call that was handed over; false where it is not known, or has ended.
    fn cancel(&self, num: CallNum) -> bool;
}
