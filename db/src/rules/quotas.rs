//! Quotas of namespaces, and their usage.

use faena_domain::{Namespace, Quota};
use faena_protocol::DbError;
use faena_protocol::db::{Resource, VersionPut};
use faena_protocol::records::NamespaceRecord;

use super::{RuleResult, not_found, refuse};
use crate::clock::day;
use crate::tx::Tx;

/// What a namespace may have and do, where it exists.
pub(super) fn quota(tx: &dyn Tx, name: &Namespace) -> RuleResult<Quota> {
    Ok(tx.quota(name)?.ok_or_else(|| not_found(Resource::Namespace, name))?)
}

/// A namespace, and what it has; its builds are counted for the day of `wall`.
pub(super) fn namespace(tx: &dyn Tx, name: &Namespace, wall: i64) -> RuleResult<NamespaceRecord> {
    Ok(tx.namespace(name, day(wall))?.ok_or_else(|| not_found(Resource::Namespace, name))?)
}

/// Refuses a version where its namespace has as much as it may.
pub(super) fn check_quota(tx: &dyn Tx, request: &VersionPut, is_new: bool, wall: i64) -> RuleResult<()> {
    let quota = quota(tx, &request.namespace)?;
    if quota == Quota::default() {
        return Ok(());
    }
    let NamespaceRecord { usage, name, .. } = namespace(tx, &request.namespace, wall)?;
    let over = |message: String| refuse(DbError::OverQuota { message: format!("the namespace {name} {message}") });
    let functions = usage.functions;
    let stored = usage.stored_bytes + request.source_bytes;
    if let Some(most) = quota.memory_bytes.filter(|most| request.limits.memory.0 > *most) {
        let bytes = request.limits.memory.0;
        return over(format!(
            "may use {most} bytes of memory, and one instance of this version {bytes} (quota memoryBytes)"
        ));
    }
    if let Some(most) = quota.functions.filter(|most| is_new && functions >= *most) {
        return over(format!("has {functions} functions, and may have {most} (quota functions)"));
    }
    if let Some(most) = quota.stored_bytes.filter(|most| stored > *most) {
        return over(format!("would have archives of {stored} bytes, and may have {most} (quota storedBytes)"));
    }
    check_build_time(tx, &request.namespace, wall)
}

/// Refuses a build where its namespace has built for as long as it may today.
pub(super) fn check_build_time(tx: &dyn Tx, name: &Namespace, wall: i64) -> RuleResult<()> {
    let Some(most) = quota(tx, name)?.build_minutes_per_day else { return Ok(()) };
    let minutes = namespace(tx, name, wall)?.usage.build_minutes_per_day;
    if minutes < most {
        return Ok(());
    }
    let message = format!(
        "the namespace {name} has built for {minutes} minutes today, and may build for {most} (quota buildMinutesPerDay)"
    );
    refuse(DbError::OverQuota { message })
}
