//! Runtimes.

use faena_domain::{Namespace, RuntimeName, RuntimeSpec};

use super::Put;
use super::requests;
use crate::records::RuntimeRecord;

requests! {
    /// Registers a runtime, or a new revision of it where something differs.
    Write RuntimePut = "runtime.put" by [Api] -> Put<RuntimeRecord> {
        /// Its namespace.
        namespace: Namespace,
        /// The runtime.
        spec: RuntimeSpec,
    }
    /// Forgets a runtime that no function uses.
    Write RuntimeDelete = "runtime.delete" by [Api] -> () {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: RuntimeName,
    }
    /// One runtime.
    Read RuntimeGet = "runtime.get" by [Api] -> RuntimeRecord {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: RuntimeName,
    }
    /// The names of all runtimes, sorted.
    Read RuntimeList = "runtime.list" by [Api] -> Vec<RuntimeName> {
        /// Their namespace.
        namespace: Namespace,
    }
}
