//! What a node may read and whom it may speak for: what it was sent work for, and nothing else.

use std::collections::{HashMap, HashSet};

use faena_domain::{BlobKey, CallPattern, FunctionId, FunctionScope, Namespace, Payload};
use faena_protocol::internal::InternalCall;
use faena_protocol::records::{BuildJob, CallJob, Code};
use parking_lot::Mutex;

/// Blobs that are remembered of one node before the older half is forgotten. Work names its blobs again each time it is sent.
const REMEMBERED: usize = 100_000;

/// What a function of a node may call, and as whom.
#[derive(Debug, Default)]
struct Caller {
    calls: Vec<CallPattern>,
    scopes: Vec<FunctionScope>,
}

#[derive(Debug, Default)]
struct Granted {
    recent: HashSet<BlobKey>,
    older: HashSet<BlobKey>,
    namespaces: HashSet<Namespace>,
    callers: HashMap<FunctionId, Caller>,
}

/// What one node was sent.
#[derive(Debug, Default)]
pub(crate) struct Grants(Mutex<Granted>);

impl Granted {
    fn blob(&mut self, key: BlobKey) {
        if self.recent.len() >= REMEMBERED {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(key);
    }

    fn payload(&mut self, payload: &Payload) {
        if let Payload::Blob { key, .. } = payload {
            self.blob(*key);
        }
    }

    fn code(&mut self, code: &Code) {
        self.blob(code.archive);
        self.namespaces.insert(code.namespace.clone());
        if !code.calls.is_empty() {
            let caller = Caller { calls: code.calls.clone(), scopes: code.scopes.clone() };
            self.callers.insert(code.function_id(), caller);
        }
    }
}

impl Grants {
    /// The node was sent a call.
    pub(crate) fn call(&self, job: &CallJob) {
        let mut granted = self.0.lock();
        granted.code(&job.code);
        granted.payload(&job.params);
        job.body.iter().for_each(|body| granted.payload(body));
    }

    /// The node was sent a build.
    pub(crate) fn build(&self, job: &BuildJob) {
        self.0.lock().code(&job.code);
    }

    /// The node was told of a version that it is to run.
    pub(crate) fn code(&self, code: &Code) {
        self.0.lock().code(code);
    }

    /// Whether the node may read a blob.
    pub(crate) fn may_read(&self, key: &BlobKey) -> bool {
        let granted = self.0.lock();
        granted.recent.contains(key) || granted.older.contains(key)
    }

    /// Whether the node may store blobs of a namespace.
    pub(crate) fn may_write(&self, namespace: &Namespace) -> bool {
        self.0.lock().namespaces.contains(namespace)
    }

    /// Whether a function of the node may make a call.
    pub(crate) fn may_call(&self, call: &InternalCall) -> bool {
        let granted = self.0.lock();
        let caller = granted.callers.get(&FunctionId::new(&call.namespace, &call.caller));
        caller.is_some_and(|caller| {
            caller.calls.iter().any(|pattern| pattern.permits(call.target.as_str()))
                && call.scopes.iter().all(|scope| caller.scopes.contains(scope))
        })
    }
}
