//! The versions that calls run, remembered for as long as nothing has changed that db has shown us.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use faena_db_client::DbClient;
use faena_domain::{FunctionName, FunctionStatus, Namespace, Version};
use faena_protocol::DbError;
use faena_protocol::db::{FunctionsSeen, VersionResolve};
use faena_protocol::records::Code;

/// Names that are remembered; beyond it all are forgotten, and those in use come back at once.
const MOST: usize = 20_000;
/// How long db may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A version that calls run.
#[derive(Debug)]
pub(crate) struct Current {
    /// Where it stands.
    pub(crate) status: FunctionStatus,
    /// What its instances need.
    pub(crate) code: Arc<Code>,
    seen: FunctionsSeen,
}

/// Every version that was asked for lately, by its namespace and the name as it was asked for.
#[derive(Debug)]
pub(crate) struct Versions {
    db: DbClient,
    known: RwLock<HashMap<Namespace, HashMap<String, Arc<Current>>>>,
}

impl Versions {
    pub(crate) fn new(db: DbClient) -> Self {
        Self { db, known: RwLock::default() }
    }

    /// The version that a name stands for, where that is known and still so.
    pub(crate) fn known(&self, namespace: &Namespace, name: &str) -> Option<Arc<Current>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(namespace)?.get(name).filter(|current| current.seen == self.db.functions_seen()).cloned()
    }

    /// The version that a call runs which names one or none, as it is remembered or as db tells it.
    ///
    /// # Errors
    /// What db says, where there is no such function or version or it cannot tell.
    pub(crate) async fn of(
        &self,
        namespace: &Namespace,
        function: &FunctionName,
        version: Option<Version>,
    ) -> Result<Arc<Current>, DbError> {
        match self.known(namespace, function.as_str()).filter(|_| version.is_none()) {
            Some(current) => Ok(current),
            None => self.ask(namespace, function, version).await,
        }
    }

    async fn ask(
        &self,
        namespace: &Namespace,
        function: &FunctionName,
        version: Option<Version>,
    ) -> Result<Arc<Current>, DbError> {
        let request = VersionResolve { namespace: namespace.clone(), function: function.clone(), version };
        let (resolved, seen) = self.db.ask_seeing(&request, ANSWER).await?;
        if version.is_some() {
            return Ok(Arc::new(Current { status: resolved.status, code: Arc::new(resolved.code), seen }));
        }
        let name = function.to_string();
        let before = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            known.get(namespace).and_then(|names| names.get(&name)).cloned()
        };
        // The pool knows instances by the allocation of their code, and finds them again.
        let code = before.map(|before| Arc::clone(&before.code)).filter(|code| **code == resolved.code);
        let code = code.unwrap_or_else(|| Arc::new(resolved.code));
        let current = Arc::new(Current { status: resolved.status, code, seen });
        if seen.is_settled() && resolved.status == FunctionStatus::Ready {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            if known.values().map(HashMap::len).sum::<usize>() >= MOST {
                known.clear();
            }
            known.entry(namespace.clone()).or_default().insert(name, Arc::clone(&current));
        }
        Ok(current)
    }
}
