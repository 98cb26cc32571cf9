//! Calls that had no row while they ran, written when they have ended.

use faena_protocol::db::CallsRecord;
use faena_protocol::records::EndedCall;

use crate::rules::transitions::kept_bytes;
use crate::rules::{RequestContext, RuleResult, Write, blobs, completed};
use crate::tx::{BlobOwner, EndedRow, Tx};

fn row(ended: &EndedCall) -> EndedRow<'_> {
    let call = &ended.call;
    EndedRow { spec: completed::spec(ended.clone()), call, kept_bytes: kept_bytes(&call.result, &call.logs) }
}

impl Write for CallsRecord {
    fn write(&self, tx: &dyn Tx, _context: &RequestContext<'_>) -> RuleResult<()> {
        tx.insert_batches(&self.batches)?;
        let rows: Vec<EndedRow<'_>> = self.calls.iter().map(|ended| row(ended)).collect();
        tx.insert_ended(&rows)?;
        for EndedRow { spec, call, .. } in &rows {
            let owner = BlobOwner::Call(spec.namespace.clone(), call.num);
            blobs::refer(tx, &owner, [&spec.params, &call.result, &call.logs].into_iter().chain(&spec.body))?;
        }
        Ok(())
    }
}
