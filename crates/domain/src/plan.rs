//! How a call is executed: its *call path*, decided once, from the request and the version that it runs.
//!
//! | path | the client | the row of the call |
//! |---|---|---|
//! | direct | holds its connection | written behind the reply; the bytes go to an instance at once |
//! | sync | holds its connection | written behind the reply; the scheduler assigns a worker |
//! | queued | may go | committed before the call is acknowledged or run |
//!
//! A call is queued if anything about it has to outlive the client's connection, or has an order among other calls. A connection
//! that is to become a WebSocket can go to an instance directly, or not at all.

use crate::{Contract, FunctionStatus};

/// How a call is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallPath {
    /// An instance that answers many calls gets it at once; there is no row before the reply.
    Direct,
    /// The scheduler assigns it while the client waits; there is no row before the reply.
    Sync,
    /// Its row is committed first.
    Queued,
}

impl CallPath {
    /// The path's name, for people and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Sync => "sync",
            Self::Queued => "queued",
        }
    }
}

/// What a request asks of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a question of its own")]
pub struct CallTerms {
    /// The client waits for the end: it called `/f/`, or prefers to wait.
    pub is_waited: bool,
    /// The body is handed to the function as it is: the client called `/f/`.
    pub is_passed_on: bool,
    /// The same request again is the same call.
    pub has_key: bool,
    /// It starts at an instant.
    pub has_start: bool,
    /// It has an order among the function's calls.
    pub has_priority: bool,
    /// It is retried although its client waits.
    pub has_retries: bool,
    /// Its end is told to a URL.
    pub has_callback: bool,
    /// Its connection is to become a WebSocket.
    pub is_upgrade: bool,
}

/// What the version that a call runs is like, and what workers offer for it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallTarget {
    /// How its build stands.
    pub status: FunctionStatus,
    /// How its process is called.
    pub contract: Contract,
    /// Its calls at once are bounded.
    pub has_concurrency: bool,
    /// A worker takes direct calls of it.
    pub is_offered: bool,
}

/// Decides the path of a call; none where it is to become a WebSocket, and cannot be now.
pub fn plan(terms: &CallTerms, target: &CallTarget) -> Option<CallPath> {
    let is_durable = terms.has_key || terms.has_start || terms.has_priority || terms.has_retries || terms.has_callback;
    let is_ready = target.status == FunctionStatus::Ready && !target.has_concurrency;
    match (terms.is_waited && !is_durable && is_ready, target.contract) {
        (true, Contract::Handler | Contract::Http) if terms.is_passed_on && target.is_offered => Some(CallPath::Direct),
        _ if terms.is_upgrade => None,
        (false, _) => Some(CallPath::Queued),
        (true, _) => Some(CallPath::Sync),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON_F: CallTerms = CallTerms {
        is_waited: true,
        is_passed_on: true,
        has_key: false,
        has_start: false,
        has_priority: false,
        has_retries: false,
        has_callback: false,
        is_upgrade: false,
    };
    const WAITED: CallTerms = CallTerms { is_passed_on: false, ..ON_F };
    const ASYNC: CallTerms = CallTerms { is_waited: false, ..WAITED };
    const HANDLER: CallTarget = CallTarget {
        status: FunctionStatus::Ready,
        contract: Contract::Handler,
        has_concurrency: false,
        is_offered: true,
    };
    const COMMAND: CallTarget = CallTarget { contract: Contract::Command, ..HANDLER };

    /// The table of all decisions; it is printed, and is the documentation of the rules.
    #[test]
    fn the_table_of_call_paths() {
        let terms = [
            ("/f/", ON_F),
            ("/f/ with a key", CallTerms { has_key: true, ..ON_F }),
            ("/f/, WebSocket", CallTerms { is_upgrade: true, ..ON_F }),
            ("invoke", ASYNC),
            ("invoke, wait", WAITED),
            ("invoke, wait, key", CallTerms { has_key: true, ..WAITED }),
            ("invoke, wait, runAt", CallTerms { has_start: true, ..WAITED }),
            ("invoke, wait, priority", CallTerms { has_priority: true, ..WAITED }),
            ("invoke, wait, retries", CallTerms { has_retries: true, ..WAITED }),
            ("invoke, wait, callback", CallTerms { has_callback: true, ..WAITED }),
        ];
        let targets = [
            ("handler", HANDLER),
            ("http", CallTarget { contract: Contract::Http, ..HANDLER }),
            ("command", COMMAND),
            ("handler, no direct worker", CallTarget { is_offered: false, ..HANDLER }),
            ("handler, concurrency", CallTarget { has_concurrency: true, ..HANDLER }),
            ("handler, building", CallTarget { status: FunctionStatus::Building, ..HANDLER }),
        ];
        let mut table = String::new();
        for (asked, terms) in &terms {
            for (version, target) in &targets {
                table.push_str(&format!(
                    "{asked:<24}{version:<28}{}\n",
                    plan(terms, target).map_or("refused", CallPath::as_str)
                ));
            }
        }
        println!("{table}");
        let count = |path: &str| table.lines().filter(|line| line.ends_with(path)).count();
        let counts = (count("direct"), count("sync"), count("queued"), count("refused"));
        assert_eq!(counts, (4, 6, 46, 4), "{table}");
    }

    #[test]
    fn a_call_on_f_goes_straight_to_an_instance_that_answers_many() {
        assert_eq!(plan(&ON_F, &HANDLER), Some(CallPath::Direct));
        assert_eq!(plan(&ON_F, &COMMAND), Some(CallPath::Sync));
        assert_eq!(plan(&ON_F, &CallTarget { is_offered: false, ..HANDLER }), Some(CallPath::Sync));
    }

    #[test]
    fn what_must_outlive_its_client_is_queued() {
        assert_eq!(plan(&ASYNC, &HANDLER), Some(CallPath::Queued));
        assert_eq!(plan(&WAITED, &HANDLER), Some(CallPath::Sync));
        for terms in [
            CallTerms { has_key: true, ..ON_F },
            CallTerms { has_callback: true, ..WAITED },
            CallTerms { has_start: true, ..WAITED },
        ] {
            assert_eq!(plan(&terms, &HANDLER), Some(CallPath::Queued));
        }
    }

    #[test]
    fn what_has_to_wait_for_others_is_queued() {
        for target in [
            CallTarget { has_concurrency: true, ..HANDLER },
            CallTarget { status: FunctionStatus::Pending, ..HANDLER },
            CallTarget { status: FunctionStatus::Error, ..HANDLER },
        ] {
            assert_eq!(plan(&ON_F, &target), Some(CallPath::Queued));
        }
    }
}
