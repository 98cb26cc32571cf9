//! Every request that there is, by its name.

use std::collections::HashMap;
use std::sync::LazyLock;

use faena_protocol::db::{Health, Ping};
use faena_protocol::{Envelope, EnvelopeError};

use super::{
    Job, Read, Request, RequestContext, RuleResult, access, access_rules, accounts, audit, blobs, builds, callbacks,
    calls, claims, config, credentials, functions, images, logs, namespaces, nodes, providers, read, runtimes, secrets,
    workers,
};
use crate::reserve::Disk;
use crate::tx::Tx;

/// The requests of this module.
const REQUESTS: &[Request] = &[read::<Ping>()];

static BY_NAME: LazyLock<HashMap<&str, Request>> =
    LazyLock::new(|| all().map(|request| (request.name, *request)).collect());

fn all() -> impl Iterator<Item = &'static Request> {
    let modules = [
        REQUESTS,
        access::REQUESTS,
        secrets::REQUESTS,
        access_rules::REQUESTS,
        accounts::REQUESTS,
        providers::REQUESTS,
        audit::REQUESTS,
        blobs::REQUESTS,
        builds::REQUESTS,
        callbacks::REQUESTS,
        calls::REQUESTS,
        claims::REQUESTS,
        config::REQUESTS,
        credentials::REQUESTS,
        functions::REQUESTS,
        images::REQUESTS,
        logs::REQUESTS,
        namespaces::REQUESTS,
        nodes::REQUESTS,
        runtimes::REQUESTS,
        workers::REQUESTS,
    ];
    modules.into_iter().flatten()
}

/// Finds out what a message asks for.
pub(crate) fn prepare(envelope: &Envelope) -> Result<Job, EnvelopeError> {
    let request = BY_NAME.get(envelope.msg_type.as_str());
    let request = request.ok_or_else(|| EnvelopeError::UnknownType(envelope.msg_type.clone()))?;
    (request.prepare)(envelope)
}

impl Read for Ping {
    fn read(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<Health> {
        tx.ping()?;
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
