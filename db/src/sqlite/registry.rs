//! Every request that there is, by its name.

use std::collections::HashMap;
use std::sync::LazyLock;

use faena_protocol::db::{Health, Ping};
use faena_protocol::{DbError, Envelope, EnvelopeError};
use rusqlite::Connection;

use super::requests::{Job, Read, Request, RequestContext, read};
use super::reserve::Disk;
use super::{
    access, accounts, audit, blobs, builds, callbacks, calls, config, credentials, function_queues, functions, images,
    logs, namespaces, nodes, providers, rules, runtimes, workers,
};

/// The requests of this module.
const REQUESTS: &[Request] = &[read::<Ping>()];

static BY_NAME: LazyLock<HashMap<&str, Request>> =
    LazyLock::new(|| all().map(|request| (request.name, *request)).collect());

fn all() -> impl Iterator<Item = &'static Request> {
    let modules = [
        REQUESTS,
        access::REQUESTS,
        accounts::REQUESTS,
        providers::REQUESTS,
        audit::REQUESTS,
        blobs::REQUESTS,
        builds::REQUESTS,
        callbacks::REQUESTS,
        calls::REQUESTS,
        config::REQUESTS,
        credentials::REQUESTS,
        function_queues::REQUESTS,
        functions::REQUESTS,
        images::REQUESTS,
        logs::REQUESTS,
        namespaces::REQUESTS,
        nodes::REQUESTS,
        rules::REQUESTS,
        runtimes::REQUESTS,
        workers::REQUESTS,
    ];
    modules.into_iter().flatten()
}

/// Finds out what a message asks for.
pub(super) fn prepare(envelope: &Envelope) -> Result<Job, EnvelopeError> {
    let request = BY_NAME.get(envelope.msg_type.as_str());
    let request = request.ok_or_else(|| EnvelopeError::UnknownType(envelope.msg_type.clone()))?;
    (request.prepare)(envelope)
}

impl Read for Ping {
    fn read(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Health, DbError> {
        connection.query_row("SELECT 1", [], |_| Ok(())).map_err(|error| super::internal("asking SQLite", &error))?;
        Ok(Health { clock_step_ms: context.clock_step_ms, disk_low: context.disk == Disk::Short })
    }
}

#[cfg(test)]
mod tests {
    use faena_protocol::db::messages;

    use super::*;

    #[test]
    fn every_kind_of_request_is_registered_once() {
        let sorted = |mut names: Vec<&'static str>| {
            names.sort_unstable();
            names
        };
        let registered = sorted(all().map(|request| request.name).collect());
        assert_eq!(registered, sorted(messages().map(|message| message.name).collect()));
    }
}
