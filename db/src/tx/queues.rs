//! The queues of functions.

use faena_domain::{CallNum, EngineKind, FunctionId, Labels, Namespace, Version};

use super::StoreResult;

/// What waits in a queue, or in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) calls: u64,
    pub(crate) bytes: u64,
    /// Those of the calls that may be claimed.
    pub(crate) due: u64,
}

/// What a worker can run: its engines, and what the labels of its node permit.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) engines: Vec<EngineKind>,
    pub(crate) labels: Labels,
    /// Whether any version or namespace is bound to nodes; while none is, nothing has to be compared.
    pub(crate) are_any_bound: bool,
    /// Db time.
    pub(crate) now: i64,
}

/// A namespace with calls that are due.
#[derive(Debug)]
pub(crate) struct WaitingNamespace {
    pub(crate) name: Namespace,
    pub(crate) weight: u32,
    /// How many more of its calls may run; `None` is unlimited.
    pub(crate) room: Option<u32>,
}

/// A queue with calls that are due.
#[derive(Debug)]
pub(crate) struct WaitingQueue {
    pub(crate) function: FunctionId,
    /// How many more of its calls may run.
    pub(crate) room: u32,
}

/// A call that may be claimed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) num: CallNum,
    pub(crate) version: Version,
    /// What it adds to the message of the claim.
    pub(crate) bytes: usize,
}

/// Rows of queues. The store updates the counts of a queue when a call changes or is removed. Calls that are added are counted by
/// [`QueueRows::add_waiting`], many in one statement.
pub(crate) trait QueueRows {
    /// What waits in each of these queues; `due` is always 0.
    fn waiting_in(&self, functions: &[FunctionId]) -> StoreResult<Vec<Waiting>>;

    /// What waits in all of them; `due` is always 0.
    fn waiting_everywhere(&self) -> StoreResult<Waiting>;

    /// Counts calls that were added to these queues.
    fn add_waiting(&self, added: &[(FunctionId, Waiting)]) -> StoreResult<()>;

    /// Sets how many calls of a function may run at once.
    fn set_concurrency(&self, function: &FunctionId, concurrency: Option<u32>) -> StoreResult<()>;

    /// The namespaces with calls that are due and that may run on this node.
    fn waiting_namespaces(&self, offer: &Offer) -> StoreResult<Vec<WaitingNamespace>>;

    /// The queues of a namespace with calls that are due and that this worker can run; the one that was not served for the
    /// longest comes first.
    fn waiting_queues(&self, namespace: &Namespace, offer: &Offer, limit: u32) -> StoreResult<Vec<WaitingQueue>>;

    /// The next calls of a queue.
    fn candidates_for_update(&self, function: &FunctionId, offer: &Offer, limit: u32) -> StoreResult<Vec<Candidate>>;

    /// A queue was served: every other one comes before it.
    fn end_turn(&self, function: &FunctionId) -> StoreResult<()>;
}
