//! Requests to the database service, one module for each resource. Each type names its reply, and declares whether it writes
//! and who may send it; every write may be sent again.

mod accounts;
mod audit;
mod blobs;
mod builds;
mod callbacks;
mod calls;
mod config;
mod credentials;
mod functions;
mod images;
mod logs;
mod nodes;
mod providers;
mod runtimes;
mod service;
mod slots;
mod workers;

use std::fmt;

use faena_domain::CallStatus;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use accounts::*;
pub use audit::*;
pub use blobs::*;
pub use builds::*;
pub use callbacks::*;
pub use calls::*;
pub use config::*;
pub use credentials::*;
pub use functions::*;
pub use images::*;
pub use logs::*;
pub use nodes::*;
pub use providers::*;
pub use runtimes::*;
pub use service::*;
pub use slots::*;
pub use workers::*;

/// The message type of a reply that holds what was asked for.
pub const REPLY_OK: &str = "ok";
/// The message type of a reply that holds a [`DbError`].
pub const REPLY_ERROR: &str = "error";

/// The content of a reply that holds what was asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answered {
    /// What the database had seen of its functions when it answered.
    pub functions: FunctionsSeen,
    /// What was asked for.
    pub answer: Box<serde_json::value::RawValue>,
}

/// How often what calls run has changed. It rises with every change, and is odd while one is under way: nothing that was
/// read then may be remembered. [`FunctionChanges`] tells what a rise was about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FunctionsSeen(pub u64);

impl FunctionsSeen {
    /// Whether nothing changes at the moment.
    pub fn is_settled(self) -> bool {
        self.0.is_multiple_of(2)
    }
}

/// A request with its name and the type of its reply.
pub trait DbRequest: Serialize + DeserializeOwned + Send + 'static {
    /// What the reply holds.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// The message type.
    const TYPE: &'static str;
    /// Whether it changes something.
    const ACCESS: Access;
}

/// What the database keeps under names and numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Resource {
    /// A runtime.
    Runtime,
    /// A function.
    Function,
    /// A version of a function.
    Version,
    /// A call.
    Call,
    /// A call that was acknowledged and did not succeed.
    DeadLetter,
    /// A namespace.
    Namespace,
    /// An account.
    Account,
    /// A token or a key.
    Credential,
    /// A key.
    Key,
    /// A rule.
    Rule,
    /// A value of the configuration.
    Config,
    /// An identity provider.
    Provider,
    /// A node.
    Node,
    /// An image that the platform keeps.
    Image,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runtime => "runtime",
            Self::Function => "function",
            Self::Version => "version",
            Self::Call => "call",
            Self::DeadLetter => "dead letter",
            Self::Namespace => "namespace",
            Self::Account => "account",
            Self::Credential => "credential",
            Self::Key => "key",
            Self::Rule => "rule",
            Self::Config => "value of the configuration",
            Self::Provider => "identity provider",
            Self::Node => "node",
            Self::Image => "image",
        })
    }
}

/// Why the database did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum DbError {
    /// There is no such thing.
    #[error("there is no {what} {name:?}")]
    NotFound {
        /// What kind of thing.
        what: Resource,
        /// The name that was asked for.
        name: String,
    },
    /// It would contradict what is there.
    #[error("{message}")]
    Conflict {
        /// A sentence that names both.
        message: String,
    },
    /// More than its namespace may have.
    #[error("{message}")]
    OverQuota {
        /// A sentence that names the quota.
        message: String,
    },
    /// More than is permitted.
    #[error("{message}")]
    TooMuch {
        /// A sentence that names the bound.
        message: String,
    },
    /// The first account must be an administrator of the root namespace, and the last one of a namespace stays.
    #[error("{message}")]
    AdministratorNeeded {
        /// A sentence that names the namespace.
        message: String,
    },
    /// Who asks may not become a node, or is none any longer.
    #[error("{message}")]
    NotAdmitted {
        /// A sentence that says why.
        message: String,
    },
    /// The claim it was made under is over: another epoch or another owner.
    #[error("the claim is over: another epoch or owner holds it, or it has ended")]
    Stale,
    /// The service has too many requests waiting; try again later.
    #[error("the database has no room for more requests at the moment")]
    Full,
    /// As many calls, or builds, wait as may.
    #[error("{message}")]
    QueueFull {
        /// A sentence that names the bound.
        message: String,
    },
    /// The disk is nearly full: new work is refused, and what runs is finished.
    #[error("the disk of the database is nearly full")]
    DiskLow,
    /// The key was used before, for another request.
    #[error("the Idempotency-Key {key:?} was used for another request")]
    KeyReused {
        /// The key.
        key: String,
    },
    /// The call has ended, and a terminal status never changes.
    #[error("the call has ended {}", .status.as_str())]
    Ended {
        /// How.
        status: CallStatus,
    },
    /// The service did not answer in time, or is not there. Whether it did it is not known.
    #[error("the database service does not answer")]
    Unavailable,
    /// The request is malformed or of another version.
    #[error("the database service did not understand the request: {message}")]
    Invalid {
        /// What was wrong with it.
        message: String,
    },
    /// The store failed; its log says how.
    #[error("the database failed: {message}")]
    Internal {
        /// What was being done.
        message: String,
    },
}

/// Whether a request changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It only looks.
    Read,
    /// It changes something. It may be sent again: it changes nothing more, and is answered as the first time, or, where it
    /// deleted something, that there is no such thing.
    Write,
}

/// Who may send a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// An api, and the scheduler beside it.
    Api,
    /// A worker.
    Worker,
    /// The service itself.
    Db,
}

/// What is known of a kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its type.
    pub name: &'static str,
    /// Whether it changes something.
    pub access: Access,
    /// Who may send it.
    pub senders: &'static [Sender],
}

/// Every kind of request.
pub fn messages() -> impl Iterator<Item = &'static Message> {
    let all = [
        service::MESSAGES,
        runtimes::MESSAGES,
        functions::MESSAGES,
        builds::MESSAGES,
        calls::MESSAGES,
        logs::MESSAGES,
        callbacks::MESSAGES,
        nodes::MESSAGES,
        images::MESSAGES,
        workers::MESSAGES,
        blobs::MESSAGES,
        accounts::MESSAGES,
        config::MESSAGES,
        credentials::MESSAGES,
        providers::MESSAGES,
        audit::MESSAGES,
    ];
    all.into_iter().flatten()
}

/// Declares the requests of a resource: whether each reads or writes, its type on the wire, who may send it, and its reply.
macro_rules! requests {
    ($($(#[$doc:meta])* $access:ident $name:ident = $text:literal by [$($sender:ident),*] -> $reply:ty { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        /// The kinds of requests of this resource.
        pub(super) const MESSAGES: &[super::Message] = &[$(super::Message {
            name: $text,
            access: super::Access::$access,
            senders: &[$(super::Sender::$sender),*],
        }),*];

        $(
            $(#[$doc])*
            #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
            #[serde(rename_all = "camelCase", deny_unknown_fields)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $type,)*
            }

            impl super::DbRequest for $name {
                type Reply = $reply;
                const TYPE: &'static str = $text;
                const ACCESS: super::Access = super::Access::$access;
            }
        )*
    };
}
use requests;

/// What a put made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Put<T> {
    /// The thing as it is now.
    pub record: T,
    /// Whether it was not there before.
    pub created: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_request_has_a_name_of_its_own_and_a_sender() {
        let mut names: Vec<&str> = messages().map(|message| message.name).collect();
        assert!(messages().all(|message| !message.senders.is_empty()));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
