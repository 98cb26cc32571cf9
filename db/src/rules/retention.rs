//! Ended calls are kept for a while and then removed, a few each second, so that no request waits for it.

use faena_domain::log::StoredLog;
use faena_domain::{CallNum, FunctionId, Payload, Timestamp};

use super::transitions::{COUNTED, kept_bytes};
use super::{RequestContext, RuleResult, blobs, credentials};
use crate::reserve::Disk;
use crate::tx::{StoreResult, Tx};

/// The part of the bytes of all functions that one function may hold: a quarter.
const PART: u64 = 4;
/// Functions that are judged by their bytes at once.
const FUNCTIONS: u32 = 8;
/// The most calls whose logs or results are forgotten at once.
const HEAVY: u32 = 500;
/// The most calls that are forgotten at once: more than any steady load ends in a second.
const BATCH: u32 = 2000;
/// The most lines of the audit log that are forgotten at once.
const AUDIT_LINES: u32 = 1000;

/// Forgets keys whose life is over, and calls that were kept long enough or are too many; how many calls.
///
/// A call stays while an idempotency key stands for it or its callback is not delivered yet, and a dead letter longer than others.
pub(super) fn forget(tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<u64> {
    let keep = &context.settings.keep;
    tx.forget_keys(context.now)?;
    credentials::forget(tx, context.wall)?;
    tx.forget_audit(context.wall.saturating_sub(keep.audit_for_ms), AUDIT_LINES)?;
    let before = context.now.saturating_sub(keep.calls_for_ms);
    let letters_before = context.now.saturating_sub(keep.dead_letters_for_ms);
    let mut gone = tx.calls_ended_before(before, letters_before.min(before), BATCH)?;
    let mut batched = tx.delete_batches_ended_before(before, BATCH)?;
    if gone.is_empty() && batched == 0 {
        let too_many = tx.count_ended()?.saturating_sub(keep.calls);
        if let Some(oldest) = tx.end_of_oldest(too_many, BATCH)? {
            let most = u32::try_from(too_many).unwrap_or(BATCH).min(BATCH);
            gone = tx.done_calls_ended_before(oldest + 1, most)?;
            batched = tx.delete_batches_ended_before(oldest + 1, BATCH)?;
        }
    }
    tx.delete_calls(&gone)?;
    Ok(gone.len() as u64 + batched + forget_bytes(tx, context)?)
}

/// A function that holds too much, and how much of that has to go.
struct Heavy {
    function: FunctionId,
    excess: u64,
    /// It is within its own part, and gives up a part of the excess of all functions together.
    is_for_all: bool,
}

/// The functions that hold more than their part; where all together hold too much, or the disk is tight, the heaviest.
fn heaviest(tx: &dyn Tx, context: &RequestContext<'_>) -> StoreResult<Vec<Heavy>> {
    let bound = context.settings.keep.bytes.0;
    let all = tx.kept_bytes()?;
    let is_tight = context.disk != Disk::Roomy;
    let part = if all > bound || is_tight { 0 } else { bound / PART };
    let heavy = |(function, bytes): (FunctionId, u64)| {
        let over = bytes.saturating_sub(bound / PART).max(all.saturating_sub(bound).min(bytes));
        // A tight disk takes a tenth of what the heaviest hold, again and again until it is tight no more.
        let excess = if is_tight { over.max(bytes / 10) } else { over };
        Heavy { function, excess, is_for_all: bytes <= bound / PART }
    };
    Ok(tx.heaviest_functions(part, FUNCTIONS)?.into_iter().map(heavy).collect())
}

/// Forgets the oldest logs of functions that hold too much, and where that is not enough their oldest calls; how many calls.
fn forget_bytes(tx: &dyn Tx, context: &RequestContext<'_>) -> StoreResult<u64> {
    let (mut gone, is_tight) = (0, context.disk != Disk::Roomy);
    for heavy in heaviest(tx, context)? {
        let (freed, are_all) = forget_logs(tx, &heavy, context.now)?;
        // Calls go once there are no more logs. On a tight disk they stay, and the next function's logs go.
        if freed < heavy.excess && are_all && !is_tight {
            gone += forget_calls(tx, &heavy.function, heavy.excess - freed)?;
        }
        // The excess of all functions together is taken from the heaviest one; the rest is judged in a second.
        if heavy.is_for_all && (freed > 0 || !is_tight) {
            break;
        }
    }
    Ok(gone)
}

/// Forgets the oldest logs of a function that are large enough to count; how many bytes that frees, and whether none are left.
fn forget_logs(tx: &dyn Tx, heavy: &Heavy, now: i64) -> StoreResult<(u64, bool)> {
    let mut remark = StoredLog::new(COUNTED);
    remark.remark(Timestamp(now), "[this log was forgotten: the function's logs and results held too much]");
    let remark = Payload::Text(remark.into_text());
    let oldest = tx.oldest_logs(&heavy.function, COUNTED, HEAVY)?;
    let (mut freed, are_all) = (0, oldest.len() < HEAVY as usize);
    for kept in oldest {
        if freed >= heavy.excess {
            return Ok((freed, false));
        }
        blobs::release_log(tx, (&heavy.function.namespace, kept.num), (&kept.log, &kept.result), now)?;
        tx.replace_log(kept.num, &remark, kept_bytes(&kept.result, &remark))?;
        freed += kept.log.len();
    }
    Ok((freed, are_all))
}

/// Forgets the oldest calls of a function, those with rows and those in batches alike; how many calls.
fn forget_calls(tx: &dyn Tx, function: &FunctionId, excess: u64) -> StoreResult<u64> {
    let (mut freed, mut gone) = (0, 0);
    let (mut calls, mut batches): (Vec<CallNum>, Vec<CallNum>) = (Vec::new(), Vec::new());
    for kept in tx.oldest_calls(function, HEAVY)? {
        if freed >= excess {
            break;
        }
        if kept.is_batch { &mut batches } else { &mut calls }.push(kept.num);
        freed += kept.bytes;
        gone += kept.calls;
    }
    tx.delete_calls(&calls)?;
    tx.delete_batches(&batches)?;
    Ok(gone)
}
