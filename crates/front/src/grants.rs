//! What a node may read and whom it may speak for: what it was sent work for, and nothing else.

use std::collections::{HashMap, HashSet};

use faena_domain::{
    BlobKey, CallPattern, FunctionId, FunctionScope, Labels, Namespace, NodeSelector, Payload, Version,
};
use faena_protocol::internal::InternalCall;
use faena_protocol::records::{BuildJob, CallJob, Code};
use parking_lot::Mutex;

/// Blobs that are remembered of one node before the older half is forgotten. Work names its blobs again each time it is sent.
const REMEMBERED: usize = 100_000;

/// Versions that are remembered of one node before all of them are forgotten; each is named again with its next call.
const VERSIONS: usize = 10_000;

/// What a version on a node may call, as whom, and on which nodes.
#[derive(Debug, Default)]
struct CallRights {
    calls: Vec<CallPattern>,
    scopes: Vec<FunctionScope>,
    nodes: Vec<NodeSelector>,
}

#[derive(Debug, Default)]
struct Granted {
    recent: HashSet<BlobKey>,
    older: HashSet<BlobKey>,
    /// Namespaces that it was sent work of, and the selectors of the latest.
    namespaces: HashMap<Namespace, Vec<NodeSelector>>,
    callers: HashMap<FunctionId, HashMap<Version, CallRights>>,
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
        if let Some(image) = &code.image_content {
            self.blob(image.key);
        }
        self.namespaces.insert(code.namespace.clone(), code.nodes.clone());
        if self.callers.len() >= VERSIONS {
            self.callers.clear();
        }
        let caller = CallRights { calls: code.calls.clone(), scopes: code.scopes.clone(), nodes: code.nodes.clone() };
        let versions = self.callers.entry(code.function_id()).or_default();
        if versions.len() >= VERSIONS {
            versions.clear();
        }
        versions.insert(code.version, caller);
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

    /// Whether the node may store blobs of a namespace, with the labels that it has now.
    pub(crate) fn may_write(&self, namespace: &Namespace, labels: &Labels) -> bool {
        let granted = self.0.lock();
        granted.namespaces.get(namespace).is_some_and(|nodes| nodes.iter().all(|selector| selector.permits(labels)))
    }

    /// Whether a function of the node may make a call, with the labels that the node has now.
    pub(crate) fn may_call(&self, call: &InternalCall, labels: &Labels) -> bool {
        let granted = self.0.lock();
        let versions = granted.callers.get(&FunctionId::new(&call.namespace, &call.caller));
        versions.into_iter().flat_map(HashMap::values).any(|caller| {
            caller.calls.iter().any(|pattern| pattern.permits(call.target.as_str()))
                && call.scopes.iter().all(|scope| caller.scopes.contains(scope))
                && caller.nodes.iter().all(|selector| selector.permits(labels))
        })
    }
}
