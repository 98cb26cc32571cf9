//! The trait by which an api hands a call to an instance. A worker's pool implements it, and so do the connections to
//! workers in other processes.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use faena_domain::CallNum;
use faena_protocol::direct::{HttpRequest, InvocationEnd};
use faena_protocol::records::Code;

/// A call on its way to an instance.
pub struct Invocation {
    /// Its number.
    pub num: CallNum,
    /// What runs; the same allocation for every call of a version.
    pub code: Arc<Code>,
    /// The params, JSON.
    pub params: Bytes,
    /// The request's body, where that is not the params.
    pub body: Option<Bytes>,
    /// The request that it is.
    pub request: Arc<HttpRequest>,
    /// How long the attempt may take, in milliseconds.
    pub timeout_ms: u64,
    /// When the call as a whole has to have ended.
    pub deadline: Instant,
    /// The same instant for the function, in Unix milliseconds.
    pub deadline_unix_ms: i64,
    /// The W3C trace context that it carries.
    pub traceparent: Arc<str>,
    /// Takes its end, exactly once, whether or not the client still waits.
    pub done: Box<dyn FnOnce(InvocationEnd) + Send>,
}

impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invocation").field("num", &self.num).finish_non_exhaustive()
    }
}

/// What takes calls.
pub trait Invoker: Send + Sync + fmt::Debug {
    /// Whether instances of this version can be made here.
    fn offers(&self, code: &Code) -> bool;

    /// Hands a call over. From then on it belongs to the task of its instance: a client that goes away cancels nothing.
    ///
    /// # Errors
    /// The call itself, where too many wait already.
    fn submit(&self, call: Invocation) -> Result<(), Box<Invocation>>;

    /// Ends a call that was handed over; false where it is not known, or has ended.
    fn cancel(&self, num: CallNum) -> bool;
}
